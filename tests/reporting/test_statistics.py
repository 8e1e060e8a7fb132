"""Statistics: known answers, slow references, and simulation of what is claimed of intervals, tests and ranks."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from stages.reporting import statistics
from stages.reporting.statistics import Correlation, Gain, Place

SEEDS = range(3)


def table_of(means, random, noise=1.0, shared=3.0, seeds=SEEDS):
    """{name: {seed: value}}: entries named by their place in `means`, with noise of their own and what all share."""
    common = {seed: shared * random.standard_normal() for seed in seeds}
    return {
        str(i): {seed: mean + common[seed] + noise * random.standard_normal() for seed in seeds}
        for i, mean in enumerate(means)
    }


# Means and differences


def test_interval_is_students():
    values = [63.1, 64.0, 65.2, 63.9]
    found = statistics.estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((64.05, low, high))


@pytest.mark.parametrize("n", [1, 2])
def test_no_interval_below_three_seeds(n):
    found = statistics.estimate([60.0, 61.0][:n])
    assert found.mean == [60.0, 60.5][n - 1]
    assert found.low is found.high is found.half_width is None


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no values"):
        statistics.estimate([])


def test_difference_is_paired_over_shared_seeds():
    found = statistics.difference({0: 5.0, 1: 7.0, 2: 9.0, 9: 1e6}, {2: 8.0, 1: 5.0, 0: 2.0, 8: -1e6})
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(2) at 0.975, deviation 1


@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover(n):
    """The mean's, and that of a difference whose two sides share much of their noise."""
    random, tables = np.random.default_rng(n), 3000
    covered = np.zeros(2)
    for _ in range(tables):
        table = table_of([1.0, 0.0], random, seeds=range(n))
        alone = statistics.estimate(list(table["0"].values()))
        apart = statistics.difference(table["0"], table["1"])
        covered += [alone.low <= 1.0 <= alone.high, apart.low <= 1.0 <= apart.high]
    assert covered / tables == pytest.approx(0.95, abs=0.012)  # three standard deviations of the simulation


# Tests


def test_one_comparison_is_the_paired_t_test():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 5))
    found = statistics.against({"a": dict(enumerate(a))}, {"a": dict(enumerate(b))})["a"]
    theirs = stats.ttest_rel(a, b)
    interval = theirs.confidence_interval()
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("other", "p"), [([1.0, 2.0, 3.0], 1.0), ([2.0, 3.0, 4.0], 0.0)])
def test_a_difference_without_noise_is_certain(other, p):
    reference = {0: 1.0, 1: 2.0, 2: 3.0}
    assert statistics.against({"a": dict(enumerate(other))}, {"a": reference})["a"].p == p


def test_many_that_vary_alike_are_compared_by_a_randomised_block_design():
    """Its error has (k - 1) (n - 1) degrees of freedom; here computed from the sum of squares."""
    x = np.array([[1.0, 2.0, 3.0], [2.0, 3.1, 4.2], [5.0, 5.9, 7.1]])
    rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    variance = (rest**2).sum() / 4
    entries = {name: dict(enumerate(row)) for name, row in zip("abc", x.tolist(), strict=True)}
    found = statistics.against({name: entries[name] for name in "bc"}, dict.fromkeys("bc", entries["a"]))
    t = (x[2].mean() - x[0].mean()) / np.sqrt(2 * variance / 3)
    assert found["c"].p == pytest.approx(2 * 2 * stats.t.sf(t, 4), rel=1e-6)
    half = stats.t.ppf(0.975, 4) * np.sqrt(2 * variance / 3)
    assert found["c"].difference.half_width == pytest.approx(half)


def test_variances_of_known_law_are_drawn_together_as_far_as_they_should():
    """s^2 = sigma^2 chi^2_d / d, and 1 / sigma^2 = chi^2_d0 / (d0 s0^2): Smyth's prior, whose d0 and s0^2 are found."""
    random, d, d0, common = np.random.default_rng(0), 2, 6.0, 4.0
    sigma = d0 * common / random.chisquare(d0, 20_000)
    variances = sigma * random.chisquare(d, 20_000) / d
    drawn, freedom = statistics.moderated(variances, d)
    assert freedom - d == pytest.approx(d0, rel=0.1)
    expected = (d0 * common + d * variances) / (d0 + d)
    assert drawn == pytest.approx(expected, rel=0.1)
    assert np.mean((drawn - sigma) ** 2) < 0.5 * np.mean((variances - sigma) ** 2)


def test_equal_variances_become_one_and_one_alone_stays():
    drawn, freedom = statistics.moderated(np.array([1.0, 1.1, 0.9]), 2)
    assert (drawn.tolist(), freedom) == (pytest.approx([1.0] * 3), np.inf)
    alone, freedom = statistics.moderated(np.array([2.0, 0.0]), 2)
    assert (alone.tolist(), freedom) == ([2.0, 0.0], 2)


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01; 2 x 0.03; at least that
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_tie_with_the_leader():
    entries = {
        "near": {0: 63.0, 1: 65.1, 2: 63.9},
        "best": {0: 64.0, 1: 65.0, 2: 64.0},
        "far": {0: 50.0, 1: 51.1, 2: 50.0},
    }
    leader, others = statistics.compare(entries)
    assert leader == "best"
    assert {name: comparison.tied for name, comparison in others.items()} == {"near": True, "far": False}


def test_holm_can_make_a_tie():
    """A difference that one test calls real is a tie among many tests."""
    best = {0: 0.0, 1: 0.0, 2: 0.0}
    behind = {0: -1.0, 1: -1.3, 2: -1.7}
    assert stats.ttest_rel(list(behind.values()), [0, 0, 0]).pvalue < 0.05
    assert not statistics.compare({"best": best, "behind": behind})[1]["behind"].tied
    noisy = {f"noisy{i}": {0: -1.0 * i, 1: 1.0, 2: -1.0 + i} for i in range(1, 9)}
    assert statistics.compare({"best": best, "behind": behind, **noisy})[1]["behind"].tied


def holm_by_closure(ps):
    """The largest Bonferroni p of any set of hypotheses that has this one in it (Marcus, Peritz and Gabriel. 1976)."""
    sets = [s for size in range(1, len(ps) + 1) for s in itertools.combinations(range(len(ps)), size)]
    return [max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s) for i in range(len(ps))]


@pytest.mark.parametrize("m", range(1, 8))
def test_holm_is_the_closure_of_bonferroni(m):
    random = np.random.default_rng(m)
    for _ in range(20):
        ps = random.choice([0.001, 0.01, 0.02, 0.3, 0.9], m) * random.choice([1.0, random.uniform()], m)
        assert statistics.holm(ps.tolist()) == pytest.approx(holm_by_closure(ps.tolist()))


@pytest.mark.parametrize(("spread", "most"), [(0.0, 0.05), (0.5, 0.07)])
def test_gains_are_seldom_shown_where_there_are_none(spread, most):
    """Over all of a table's methods together, in at most 5 % of tables, or 7 % where methods vary unlike."""
    random, tables = np.random.default_rng(0), 1000
    shown = 0
    for _ in range(tables):
        noise = np.exp(spread * random.standard_normal((9, 1))) * random.standard_normal((9, 3))
        table = {str(i): dict(enumerate(row)) for i, row in enumerate((noise + random.standard_normal(3)).tolist())}
        floor = table.pop("8")
        found = statistics.against(table, dict.fromkeys(table, floor))
        shown += any(not comparison.tied for comparison in found.values())
    assert shown / tables < most + 0.02  # three standard deviations of the simulation


def test_three_seeds_show_a_gain_of_three_deviations_among_many_methods():
    """Which t-tests of each alone, with two degrees of freedom, hardly ever do."""
    random, tables = np.random.default_rng(0), 100
    shown = alone = 0
    for _ in range(tables):
        table = table_of([3.0] * 28 + [0.0], random)
        floor = table.pop("28")
        found = statistics.against(table, dict.fromkeys(table, floor))
        shown += sum(not comparison.tied for comparison in found.values())
        each = [statistics.against({name: values}, {name: floor})[name].p for name, values in table.items()]
        alone += sum(p < 0.05 for p in statistics.holm(each))
    assert shown / (28 * tables) > 0.6
    assert alone / (28 * tables) < 0.05


def test_each_entry_is_compared_with_its_own_reference():
    entries = {"a": {0: 5.0, 1: 6.1, 2: 7.0}, "b": {0: 5.0, 1: 6.1, 2: 7.0}}
    references = {"a": {0: 5.1, 1: 6.0, 2: 6.8}, "b": {0: 1.0, 1: 2.0, 2: 3.0}}
    found = statistics.against(entries, references)
    assert found["a"].difference.mean == pytest.approx(0.2 / 3)
    assert found["b"].difference.mean == pytest.approx(4 + 0.1 / 3)
    assert found["a"].p > 0.3
    assert found["b"].p < 0.001


def test_nothing_is_tested_below_three_seeds():
    entries = {"a": {0: 5.0, 1: 6.0}, "b": {0: 1.0, 1: 2.5}}
    assert statistics.against(entries, {name: {0: 0.0, 1: 0.0} for name in entries}) == {}
    assert statistics.compare(entries) == ("a", {})
    assert statistics.places(entries) == {}


@pytest.mark.parametrize("p", [None, 0.05])
def test_a_gain_that_is_not_shown(p):
    assert not Gain(3.0, 2.0, 4.0, 3, p).shown
    assert Gain(-3.0, -4.0, -2.0, 3, 0.049).shown


@pytest.mark.parametrize("means", [[0.0] * 10, [0.0] * 2 + [-50.0] * 8, [0.5] + [0.0] * 9])
def test_the_truly_best_keeps_its_mark(means):
    """Entry 0 is the best, or its equal; it is called behind the leader in at most 5 % of tables."""
    random, tables = np.random.default_rng(0), 500
    behind = 0
    for _ in range(tables):
        _, comparisons = statistics.compare(table_of(means, random))
        behind += "0" in comparisons and not comparisons["0"].tied
    assert behind / tables < 0.05


def test_the_truly_worse_loses_its_mark():
    random, tables = np.random.default_rng(0), 100
    behind = 0
    for _ in range(tables):
        _, comparisons = statistics.compare(table_of([10.0, 0.0, 0.0, 0.0], random, seeds=range(5)))
        behind += all(not comparisons[name].tied for name in "123")
    assert behind / tables > 0.9


# Ranks


def test_places_far_apart_are_certain():
    table = table_of([0.0, 3e6, 2e6, 1e6], np.random.default_rng(0))
    assert statistics.places(table) == {
        name: Place(rank, rank, rank, rank) for name, rank in zip("0123", [4, 1, 2, 3], strict=True)
    }
    assert statistics.places({"alone": {0: 1.0, 1: 5.0, 2: 3.0}}) == {"alone": Place(1, 1, 1, 1)}


def test_what_seeds_do_to_all_alike_moves_no_place():
    table = table_of([0.0, 0.5, 1.0, 1.5], np.random.default_rng(0))
    moved = {name: {seed: value + 100 * seed for seed, value in values.items()} for name, values in table.items()}
    assert statistics.places(moved) == statistics.places(table)


def test_mean_places_by_integration():
    """1 and, for each other entry, the probability that its mean is drawn above."""
    table = table_of([0.0, 0.3, 1.0], np.random.default_rng(1))
    values = np.array([list(entry.values()) for entry in table.values()])
    variances, freedom = statistics.noise(values)
    means, t = values.mean(axis=1), stats.t(freedom)

    def above(j, i):
        errors = np.sqrt(variances / 3)
        density = lambda x: t.pdf(x) * t.sf((means[i] + errors[i] * x - means[j]) / errors[j])  # noqa: E731
        return integrate.quad(density, -np.inf, np.inf)[0]

    found = statistics.places(table)
    for i in range(3):
        assert found[str(i)].mean == pytest.approx(1 + sum(above(j, i) for j in range(3) if j != i), abs=0.03)


@pytest.mark.parametrize("step", [0.3, 1.0, 4.0])
def test_intervals_of_places_cover(step):
    """The true ranks of entries `step` times their noise apart, in 95 % of tables, and not by saying nothing."""
    random, tables, k = np.random.default_rng(0), 150, 8
    covered, width = np.zeros(k), 0.0
    for _ in range(tables):
        places = list(statistics.places(table_of([-step * i for i in range(k)], random)).values())
        covered += [place.low <= rank <= place.high for rank, place in enumerate(places, 1)]
        width += np.mean([place.high - place.low for place in places]) / tables
    assert (covered / tables).mean() > 0.95
    assert (covered / tables).min() > 0.92
    assert width < {0.3: 6.5, 1.0: 4.0, 4.0: 1.2}[step]  # of 7


# Rank correlations


def test_correlations_are_scipys():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 6, (2, 4, 9)).astype(float)  # with ties
    for found, of in ((statistics.spearman, stats.spearmanr), (statistics.kendall, stats.kendalltau)):
        assert found(x, y) == pytest.approx([of(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_agreement_is_scipys_with_its_bootstrap():
    random = np.random.default_rng(0)
    x = random.standard_normal(20)
    y = x + random.standard_normal(20)
    found = statistics.agreement(x, y)
    assert found.n == 20
    for ours, of in ((found.spearman, stats.spearmanr), (found.kendall, stats.kendalltau)):
        theirs = stats.bootstrap(
            (x, y), lambda a, b, of=of: of(a, b).statistic, paired=True, vectorized=False, method="percentile",
            n_resamples=1500, rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        assert ours.value == pytest.approx(of(x, y).statistic)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04)


def test_perfect_order_has_no_interval():
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert statistics.agreement(x, np.log(x)).spearman == Correlation(pytest.approx(1.0), None, None)
    assert statistics.agreement(x, [-value for value in x]).kendall == Correlation(pytest.approx(-1.0), None, None)


def test_no_agreement_of_few_methods_or_with_a_constant():
    assert statistics.agreement([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]) == statistics.Agreement(4, None, None)
    assert statistics.agreement([7.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == statistics.Agreement(6, None, None)


@pytest.mark.parametrize(
    ("low", "high", "value", "sign"),
    [(0.1, 0.9, 0.5, 1), (-0.1, 0.9, 0.5, 0), (-0.9, -0.1, -0.5, -1), (None, None, -1.0, -1), (None, None, 1.0, 1)],
)
def test_sign_of_a_correlation(low, high, value, sign):
    assert Correlation(value, low, high).sign == sign


def test_intervals_of_correlations_cover():
    """Those of the normal distribution with correlation 0.6, whose rank correlations are known in closed form."""
    random, tables, rho = np.random.default_rng(0), 150, 0.6
    truth = 6 / math.pi * math.asin(rho / 2), 2 / math.pi * math.asin(rho)
    covered = np.zeros(2)
    for _ in range(tables):
        x = random.standard_normal(20)
        found = statistics.agreement(x, rho * x + math.sqrt(1 - rho**2) * random.standard_normal(20))
        covered += [c.low <= t <= c.high for c, t in zip((found.spearman, found.kendall), truth, strict=True)]
    assert covered / tables == pytest.approx(0.95, abs=0.05)
