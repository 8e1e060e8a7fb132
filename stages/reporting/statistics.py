"""Means, intervals, ties, ranks and rank correlations: what may be said of a handful of runs.

Runs are paired by seed: the same seed means the same initial encoder and the same order of the data. What is drawn is
drawn from a fixed seed, so that equal results give equal numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

ALPHA = 0.05  # of tests
LEVEL = 1 - ALPHA  # of intervals
FEWEST = 3  # seeds; below that a spread says nothing, and no interval is given
FEWEST_RANKED = 5  # methods; below that a rank correlation says nothing
DRAWS = 10_000  # of all means, for the intervals of ranks
RESAMPLES = 2_000  # of the methods, for the intervals of rank correlations


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and its 95 % Student-t interval; `low` and `high` are None below three seeds."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Comparison:
    """How an entry stands to another: the paired difference (its own minus the other's) and its Holm-adjusted p."""

    difference: Estimate
    p: float

    @property
    def tied(self) -> bool:
        return self.p >= ALPHA


@dataclass(frozen=True)
class Gain(Estimate):
    """A paired difference, and the Holm-adjusted p of a test that there is none; `p` is None where none was made."""

    p: float | None

    @property
    def shown(self) -> bool:
        """Whether it is shown to be more, or less, than none, at the 5 % level."""
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True)
class Place:
    """An entry's rank among others, 1 the highest: by its mean, and what the noise of the seeds leaves of it."""

    rank: int
    mean: float  # over the draws
    low: int  # with `high`, a 95 % interval
    high: int


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, from -1 to 1, and its 95 % interval; no interval for a perfect one, which has no spread."""

    value: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 or -1 where the two are shown to agree or to disagree, 0 where the interval leaves that open."""
        low, high = (self.value, self.value) if self.low is None else (self.low, self.high)
        return (low > 0) - (high < 0)


@dataclass(frozen=True)
class Agreement:
    """How far two measures order `n` methods alike; None below five methods, and for a measure that is constant."""

    n: int
    spearman: Correlation | None
    kendall: Correlation | None  # tau-b


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of (n,) finite values with its interval. Raises ValueError when there are none."""
    n = len(values)
    if n == 0:
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    if n < FEWEST:
        return Estimate(mean, None, None, n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """`values` minus `reference`, paired by seed; both {seed: value}. Raises ValueError when they share no seed."""
    return estimate([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())])


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of m p-values, in the order given."""
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(ps), 0, -1) * np.array(ps, float)[order]))
    return adjusted.tolist()


def against(
    entries: Mapping[str, Mapping[int, float]], references: Mapping[str, Mapping[int, float]]
) -> dict[str, Comparison]:
    """How each entry stands to the reference of its name: moderated t-tests, Holm-corrected over the entries.

    Both are {name: {seed: value}} over the same n seeds. Below three seeds nothing is tested, and the result is empty.

    Three seeds tell little of how much one entry varies, but all entries together tell much of how much entries vary.
    So the variance of each is drawn towards that of the others (`noise`), and a difference has the noise of both. With
    one entry and one reference that is the paired t-test. In simulated tables, something false is shown in 3 % where
    all vary alike, in 5 to 7 % where standard deviations differ by a factor of 1.6, in up to 9 % where by one of 2.7.
    """
    seeds = sorted(next(iter(references.values()), {}))
    if len(seeds) < FEWEST:
        return {}
    n, rows = len(seeds), {}  # {an entry's values: its number}; a reference of many is one row
    for values in (*entries.values(), *references.values()):
        rows.setdefault(tuple(values[seed] for seed in seeds), len(rows))
    x = np.array(list(rows))  # (k, n)
    means, (variances, freedom), found = x.mean(axis=1), noise(x), {}
    for name, values in entries.items():
        i, j = (rows[tuple(of[seed] for seed in seeds)] for of in (values, references[name]))
        mean, error = float(means[i] - means[j]), 0.0 if i == j else math.sqrt((variances[i] + variances[j]) / n)
        half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * error)
        # Without noise, any difference is certain: the limit of the test.
        p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
        found[name] = Estimate(mean, mean - half, mean + half, n), p
    adjusted = holm([p for _, p in found.values()])
    return {name: Comparison(difference, p) for (name, (difference, _)), p in zip(found.items(), adjusted, strict=True)}


def noise(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The variance over seeds of each row of x (k, n), entries by seeds, as (k,); and its degrees of freedom.

    What a seed does to all entries alike moves no difference, and is taken out, as its mean over entries; the factor
    k / (k - 1) gives back what this takes from the variance. What remains is `moderated`.
    """
    k, n = x.shape
    rest = x - x.mean(axis=0)
    variances, freedom = moderated(rest.var(axis=1, ddof=1) * k / max(k - 1, 1), n - 1)
    return variances, min(freedom, max(k - 1, 1) * (n - 1))


def moderated(variances: np.ndarray, freedom: int) -> tuple[np.ndarray, float]:
    """Variances (k,), each estimated with `freedom` degrees, drawn towards what they have in common; the degrees then.

        (d0 s0^2 + d s^2) / (d0 + d)                   s0, d0: fitted to the spread of log s^2, by its first two moments

    d0 is infinite where variances differ by no more than chance would have it: then there is but one. Smyth. 2004.
    Linear Models and Empirical Bayes Methods for Assessing Differential Expression in Microarray Experiments.
    Statistical Applications in Genetics and Molecular Biology 3, section 6.2. https://doi.org/10.2202/1544-6115.1027
    """
    d, positive = freedom, variances[variances > 0]
    if len(positive) < 2:
        return variances, d
    logs = np.log(positive) - special.digamma(d / 2) + math.log(d / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, d / 2)
    if excess <= 0:
        return np.full_like(variances, variances.mean()), math.inf
    half = optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-9, 1e9)  # d0 / 2
    common = math.exp(logs.mean() + special.digamma(half) - math.log(half))  # s0^2
    return (2 * half * common + d * variances) / (2 * half + d), 2 * half + d


def compare(entries: Mapping[str, Mapping[int, float]]) -> tuple[str, dict[str, Comparison]]:
    """The entry of highest mean, and how each other stands to it.

    `entries` is {name: {seed: value}}, every entry over the same seeds. Below three seeds nothing is tested, and the
    comparisons are empty. Raises ValueError when there are no entries.

    The leader is chosen by the same values, so what is claimed is what a multiple comparison with the best claims (Hsu.
    1984. Constrained simultaneous confidence intervals for multiple comparisons with the best. Annals of Statistics 12,
    1136): an entry that is truly the best, or its equal, is seldom called behind: in 3 % of simulated tables at most.
    That none of many equals is called behind is another claim, and not made: it fails in 12 % of tables of 28 equals
    over three seeds.
    """
    if not entries:
        raise ValueError("no entries to compare")
    leader = max(entries, key=lambda name: float(np.mean(list(entries[name].values()))))
    others = {name: values for name, values in entries.items() if name != leader}
    return leader, against(others, dict.fromkeys(others, entries[leader]))


def places(entries: Mapping[str, Mapping[int, float]]) -> dict[str, Place]:
    """The rank of each of k entries, with the interval that a parametric bootstrap gives.

    `entries` is {name: {seed: value}}, every entry over the same n seeds; below three seeds there is no noise to draw
    from, and the result is empty.

    An entry's mean is drawn from Student's t around it, with the variance and the degrees of freedom of `noise`.
    Resampling the seeds themselves would be too coarse: three give ten samples. Means that differ by more than their
    noise keep their place in at least 95 % of tables (simulated with 8 and 28 entries); where many are closer than a
    twentieth of it the truly first is held to be further back too often, as with every bootstrap of ranks (Hall and
    Miller. 2009. Using the bootstrap to quantify the authority of an empirical ranking. Annals of Statistics 37, 3929).
    """
    seeds = sorted(next(iter(entries.values()), {}))
    if len(seeds) < FEWEST:
        return {}
    x = np.array([[entry[seed] for seed in seeds] for entry in entries.values()])  # (k, n)
    means, (variances, freedom) = x.mean(axis=1), noise(x)
    drawn = means + np.sqrt(variances / len(seeds)) * np.random.default_rng(0).standard_t(freedom, size=(DRAWS, len(x)))
    ranks = stats.rankdata(-drawn, method="min", axis=1)  # (DRAWS, k)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = np.quantile(ranks, tails, axis=0, method="inverted_cdf")
    by_mean = stats.rankdata(-means, method="min")
    return {
        name: Place(int(by_mean[i]), float(ranks[:, i].mean()), int(bounds[0, i]), int(bounds[1, i]))
        for i, name in enumerate(entries)
    }


def agreement(x: Sequence[float], y: Sequence[float]) -> Agreement:
    """How far two measures of the same n methods, both (n,), order them alike.

    The intervals are percentiles over resampled methods: they say what other methods like these might have given, not
    what other seeds would have.
    """
    n = len(x)
    if n < FEWEST_RANKED:
        return Agreement(n, None, None)
    pairs = np.array([x, y], dtype=float)
    resampled = pairs[:, np.random.default_rng(0).integers(n, size=(RESAMPLES, n))]  # (2, RESAMPLES, n)
    return Agreement(n, *(correlation(of, pairs, resampled) for of in (spearman, kendall)))


def correlation(
    of: Callable[[np.ndarray, np.ndarray], np.ndarray], pairs: np.ndarray, resampled: np.ndarray
) -> Correlation | None:
    """The rank correlation `of` pairs (2, n), with its interval over resampled ones (2, RESAMPLES, n)."""
    value = float(of(*pairs))
    if math.isnan(value):
        return None
    if math.isclose(abs(value), 1.0):
        return Correlation(value, None, None)
    low, high = np.nanquantile(of(*resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Correlation(value, float(low), float(high))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho along the last axis, as scipy.stats.spearmanr but of many samples at once; NaN for a constant."""
    a, b = (stats.rankdata(values, axis=-1) for values in (x, y))
    return cosine(a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b along the last axis, as scipy.stats.kendalltau but of many samples at once; NaN for a constant.

    It is the correlation of the signs of all differences (Kendall. 1945. https://doi.org/10.1093/biomet/33.3.239).
    """
    i, j = np.triu_indices(x.shape[-1], 1)
    return cosine(*(np.sign(values[..., i] - values[..., j]) for values in (x, y)))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the angle between vectors along the last axis; NaN where one has no length."""
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
