"""Probes, retrieval and zero-shot, against closed forms, hand-computed cases and scikit-learn."""

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from stages.measures import Labelled, accuracy, best, joined, knn, linear, standard_error
from stages.measures.retrieval import retrieval
from stages.measures.zero_shot import zero_shot

STRENGTHS = [1e-4, 1e-2, 1.0]


def clusters(rows, *, classes=4, width=8, apart=1.0, noise=1.0, seed=0):
    """Labelled rows around one centre per class; the centres depend on `classes` and `width` alone."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(classes * 1000 + width))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return apart * centres[labels] + noise * torch.randn(rows, width, generator=generator), labels


def splits(**kind):
    return [clusters(rows, seed=seed, **kind) for seed, rows in enumerate((400, 150, 150))]


# ---- Accuracies


def test_accuracy_and_its_error_are_in_percent():
    assert accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])) == 75
    assert standard_error(50, 100) == pytest.approx(5)
    assert standard_error(100, 100) == 0


def test_best_is_the_first_of_equals():
    assert best({1.0: 60.0, 0.1: 62.0, 0.01: 62.0}) == 0.1


# ---- k-NN


def test_knn_is_perfect_on_separated_clusters_and_at_chance_on_noise():
    kind = {"ks": [1, 5, 20], "temperature": 0.07, "classes": 4}
    apart = knn.scores(clusters(300, apart=5, noise=0.1), clusters(100, apart=5, noise=0.1, seed=1), **kind)
    noise = knn.scores(clusters(1000, apart=0), clusters(1000, apart=0, seed=1), **kind)
    assert apart == {1: 100, 5: 100, 20: 100}
    assert all(abs(score - 25) < 4 * standard_error(25, 1000) for score in noise.values())


@pytest.mark.parametrize(
    ("temperature", "k", "expected"),
    [
        (1.0, 1, 0),  # the nearest alone
        (1.0, 2, 0),  # e^1 = 2.72 for class 0, e^0.8 = 2.23 for class 1
        (1.0, 3, 1),  # 2.72, and 2 * 2.23 = 4.45
        (0.1, 3, 0),  # e^10 = 22026, and 2 * e^8 = 5962
        (1.0, 99, 1),  # more than the bank: all three vote
        (1e-4, 99, 0),  # e^10000 is no number, but its votes still count
    ],
)
def test_votes_are_weighted_by_similarity_and_temperature(temperature, k, expected):
    bank = torch.tensor([[0.8, 0.6], [5.0, 0.0], [0.8, -0.6]]), torch.tensor([1, 0, 1])  # cosines 0.8, 1, 0.8
    assert knn.predict(bank, torch.tensor([[2.0, 0.0]]), ks=[k], temperature=temperature, classes=2)[k] == expected


def test_one_search_and_any_block_give_the_same_predictions():
    bank, (queries, _) = clusters(300), clusters(70, seed=1)
    kind = {"temperature": 0.07, "classes": 4}
    together = knn.predict(bank, queries, ks=[3, 40, 10], block=16, **kind)
    for k, predicted in together.items():
        assert predicted.equal(knn.predict(bank, queries, ks=[k], **kind)[k])
    assert not together[3].equal(together[40])


def test_k_is_chosen_on_validation_and_the_bank_then_holds_both():
    train, validation, test = splits(apart=0.5)
    kind = {"temperature": 0.07, "classes": 4}
    curve = knn.scores(train, validation, ks=[1, 10, 50], **kind)
    voted = knn.read(curve, train, validation, test, **kind)
    assert len(set(curve.values())) > 1
    assert voted.validation == curve[voted.k] == max(curve.values())
    assert voted.test == knn.scores(joined(train, validation), test, ks=[voted.k], **kind)[voted.k]
    scrambled = knn.read(curve, train, validation, (test[0], test[1].roll(1)), **kind)
    assert (scrambled.k, scrambled.validation) == (voted.k, voted.validation)
    assert scrambled.test != voted.test


# ---- The linear probe


def probe_of(train: Labelled, validation: Labelled, test: Labelled, *, strengths: Iterable[float]) -> linear.Probe:
    """As evaluation does: the strength chosen on validation data, then test read with it."""
    chosen = linear.choose(train, validation, strengths=strengths, classes=4)
    return linear.read(chosen, train, validation, test, classes=4)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_probe_equals_scikit_learn(strength):
    (x, y), (x_test, _) = clusters(600, apart=0.5, width=12), clusters(300, apart=0.5, width=12, seed=1)
    x, x_test = x * 7 + 3, x_test * 7 + 3
    scaler = StandardScaler().fit(x.numpy())
    reference = LogisticRegression(C=1 / (len(x) * strength), tol=1e-8, max_iter=1000)
    reference.fit(scaler.transform(x.numpy().astype("float64")), y.numpy())
    ((found, classifier),) = linear.fit((x, y), strengths=[strength], classes=4)
    assert found == strength
    torch.testing.assert_close(classifier.weight.double(), torch.from_numpy(reference.coef_), atol=1e-4, rtol=0)
    torch.testing.assert_close(classifier.bias.double(), torch.from_numpy(reference.intercept_), atol=1e-4, rtol=0)
    assert classifier.predict(x_test).tolist() == reference.predict(scaler.transform(x_test.numpy())).tolist()


def test_the_path_goes_from_strong_to_weak_and_ends_where_a_fresh_start_ends():
    data = clusters(300, apart=0.5)
    path = dict(linear.fit(data, strengths=[1e-4, 1.0, 1e-2], classes=4))
    assert list(path) == [1.0, 1e-2, 1e-4]
    for strength, classifier in path.items():
        ((_, fresh),) = linear.fit(data, strengths=[strength], classes=4)
        torch.testing.assert_close(classifier.weight, fresh.weight, atol=1e-3, rtol=0)


def test_where_a_fit_starts_changes_its_time_alone(monkeypatch):
    first, second = clusters(300, apart=0.5), clusters(200, apart=0.5, seed=1)
    ((_, start),) = linear.fit(first, strengths=[1e-4], classes=4)
    evaluations, loss = [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *given, **how: (evaluations.append(1), loss(*given, **how))[1])
    counts, found = [], []
    for place in (None, start):
        evaluations.clear()
        ((_, classifier),) = linear.fit(joined(first, second), strengths=[1e-4], classes=4, start=place)
        counts.append(len(evaluations))
        found.append(classifier)
    assert 0 < counts[1] < counts[0]
    torch.testing.assert_close(found[1].weight, found[0].weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1].bias, found[0].bias, atol=1e-4, rtol=0)


class Sealed:
    """A test split that must not be looked at before the choice is made."""

    def __init__(self, data):
        self.data, self.chosen = data, False

    def __getitem__(self, part):
        assert self.chosen, "test was read before the strength was chosen"
        return self.data[part]

    def choose(self, curve):
        self.chosen = True
        return best(curve)


def test_the_strength_is_chosen_before_test_is_opened(monkeypatch):
    train, validation, test = splits(apart=0.15, width=100)
    sealed = Sealed(test)
    monkeypatch.setattr(linear, "best", sealed.choose)
    probe = probe_of(train, validation, sealed, strengths=STRENGTHS)
    scrambled = probe_of(train, validation, (test[0], test[1].roll(1)), strengths=STRENGTHS)
    assert (scrambled.strength, scrambled.curve) == (probe.strength, probe.curve)
    assert scrambled.test < probe.test


def test_a_probe_reports_its_curve_and_a_test_score_after_training_on_both():
    train, validation, test = splits(apart=0.15, width=100)
    probe = probe_of(train, validation, test, strengths=STRENGTHS)
    assert list(probe.curve) == [1.0, 1e-2, 1e-4]
    assert len(set(probe.curve.values())) > 1
    assert probe.validation == probe.curve[probe.strength] == max(probe.curve.values())
    ((_, both),) = linear.fit(joined(train, validation), strengths=[probe.strength], classes=4)
    assert probe.predicted.equal(both.predict(test[0]))
    assert probe.test == accuracy(probe.predicted, test[1])


def test_constant_columns_change_nothing():
    plain = splits()
    constant = torch.tensor([0.0, 0.1, -1e8])
    padded = [(torch.cat([x, constant.expand(len(x), 3)], 1), y) for x, y in plain]
    expected = probe_of(*plain, strengths=STRENGTHS)
    assert probe_of(*padded, strengths=STRENGTHS) == expected
    ((_, classifier),) = linear.fit(padded[0], strengths=[1e-4], classes=4)
    assert classifier.weight[:, 8:].abs().max() < 1e-6


def test_a_column_that_varies_by_rounding_alone_tells_nothing():
    plain = splits(apart=0)
    hinted = [(torch.cat([x, torch.full((len(x), 1), 100) + y[:, None] * 1e-5], 1), y) for x, y in plain]
    assert len(hinted[0][0][:, -1].unique()) > 1
    expected = probe_of(*plain, strengths=STRENGTHS)
    assert probe_of(*hinted, strengths=STRENGTHS) == expected


def test_the_scale_and_place_of_a_column_change_nothing():
    plain = splits()
    moved = [(x * torch.logspace(-4, 4, 8) + torch.linspace(-9, 9, 8), y) for x, y in plain]
    expected = probe_of(*plain, strengths=STRENGTHS)
    assert probe_of(*moved, strengths=STRENGTHS).curve == pytest.approx(expected.curve, abs=1)


def test_separable_data_has_finite_weights_and_no_mistakes():
    train, validation, test = splits(apart=20, noise=0.01)
    probe = probe_of(train, validation, test, strengths=[1e-8])
    ((_, classifier),) = linear.fit(train, strengths=[1e-8], classes=4)
    assert probe.test == 100
    assert classifier.weight.isfinite().all()
    assert classifier.weight.abs().max() < 100


def test_a_coarse_probe_stops_early_and_says_the_same():
    train, validation, _ = splits(apart=0.5)
    exact = linear.choose(train, validation, strengths=STRENGTHS, classes=4)
    coarse = linear.choose(train, validation, strengths=STRENGTHS, classes=4, change=linear.COARSE)
    assert coarse.curve == pytest.approx(exact.curve, abs=1)


def test_a_class_without_rows_is_never_predicted():
    data = clusters(200)
    ((_, classifier),) = linear.fit(data, strengths=[1e-2], classes=6)
    assert classifier.bias.isfinite().all()
    assert classifier.predict(data[0]).max() < 4


# ---- Retrieval


def test_retrieval_of_what_is_alike():
    assert retrieval(torch.eye(20), 3 * torch.eye(20)) == {
        "r1": 100.0,
        "r5": 100.0,
        "r10": 100.0,
        "median_rank": 1.0,
        "chance_r1": pytest.approx(5.0),
        "map": 100.0,
    }


def test_retrieval_counts_who_is_before_the_partner():
    angle = torch.tensor([0.0, 0.1, 0.3, 0.6])
    gallery = torch.stack([angle.cos(), angle.sin()], dim=1)
    query = gallery[:1].expand(4, 2)  # all ask for the first, so the partners rank 1, 2, 3 and 4
    found = retrieval(query, gallery)
    assert (found["r1"], found["r5"], found["median_rank"]) == (25.0, 100.0, 2.5)
    found = retrieval(query, gallery, among=torch.tensor([0, 1, 0, 1]))  # 1, 1, 2 and 2
    assert (found["r1"], found["median_rank"], found["chance_r1"]) == (50.0, 1.5, 50.0)


def test_ties_and_what_is_no_number_never_flatter():
    same = torch.ones(9, 3)
    found = retrieval(same, same)
    assert (found["r1"], found["r5"], found["median_rank"]) == (0.0, 100.0, 5.0)  # in the middle, as by guessing
    assert retrieval(same * torch.nan, same)["r5"] == 0
    assert retrieval(same * torch.nan, same)["median_rank"] >= 9


def test_retrieval_is_that_of_a_slow_count_whatever_the_block():
    torch.manual_seed(0)
    queries, groups = torch.randn(30, 4), torch.randint(3, (30,))
    gallery = queries + 0.7 * torch.randn(30, 4)
    for among in (None, groups):
        places = []
        for i in range(30):
            own = [j for j in range(30) if among is None or among[j] == among[i]]
            s = {j: F.cosine_similarity(queries[i], gallery[j], dim=0).item() for j in own}
            places.append(1 + sum(s[j] > s[i] for j in own if j != i))
        for block in (7, 1024):
            found = retrieval(queries, gallery, among=among, block=block)
            for most in (1, 5, 10):
                assert found[f"r{most}"] == pytest.approx(100 * sum(place <= most for place in places) / 30)


def test_the_nearest_of_several_partners_counts():
    angle = torch.tensor([0.0, 0.1, 0.3, 0.6])
    gallery = torch.stack([angle.cos(), angle.sin()], dim=1)
    query = gallery[:1].expand(3, 2)
    found = retrieval(query, gallery, wanted=torch.tensor([7, 8, 9]), names=torch.tensor([7, 8, 7, 9]))  # 1, 2 and 4
    assert (found["r1"], found["r5"], found["median_rank"]) == (pytest.approx(100 / 3), 100.0, 2.0)
    assert found["chance_r1"] == pytest.approx(100 * (2 + 1 + 1) / 12)
    two = retrieval(query, gallery, wanted=torch.tensor([8, 8, 8]), names=torch.tensor([7, 8, 8, 7]))  # one is before
    assert two["median_rank"] == 2.0
    alike = retrieval(query, torch.ones(4, 2), wanted=torch.tensor([7, 7, 7]), names=torch.tensor([7, 8, 7, 9]))
    assert (alike["r1"], alike["median_rank"]) == (0.0, 2.0)


def test_retrieval_among_several_partners_is_that_of_a_slow_count():
    torch.manual_seed(0)
    queries, gallery = torch.randn(20, 4), torch.randn(35, 4)
    wanted, names = torch.arange(20) % 9, torch.arange(35) % 9
    places = []
    for query, name in zip(queries, wanted, strict=True):
        order = F.cosine_similarity(query[None], gallery, dim=1).argsort(descending=True)
        places.append(names[order].tolist().index(name) + 1)
    found = retrieval(queries, gallery, wanted=wanted, names=names, block=6)
    # What is right does not stand in its own way, so the first right one has as many wrong ones before it as rows.
    assert found["r1"] == pytest.approx(100 * sum(place == 1 for place in places) / 20)
    assert found["r5"] == pytest.approx(100 * sum(place <= 5 for place in places) / 20)
    assert found["median_rank"] == pytest.approx(torch.tensor(places).double().quantile(0.5).item())


def test_average_precision_is_scikit_learns_where_nothing_is_tied():
    torch.manual_seed(0)
    queries, gallery = torch.randn(20, 4), torch.randn(35, 4)
    wanted, names = torch.arange(20) % 9, torch.arange(35) % 9
    similarity = F.cosine_similarity(queries[:, None], gallery[None], dim=2)
    precision = [
        average_precision_score(names == name, row) for name, row in zip(wanted.tolist(), similarity, strict=True)
    ]
    for block in (6, 1024):
        found = retrieval(queries, gallery, wanted=wanted, names=names, block=block)
        assert found["map"] == pytest.approx(100 * sum(precision) / 20, abs=1e-3)


@pytest.mark.parametrize(
    ("gallery", "names", "expected"),
    [
        ([0.0, 0.1, 0.3, 0.6], [7, 8, 7, 8], (1 / 1 + 2 / 3) / 2),
        ([0.1, 0.1, 0.3, 0.6], [7, 8, 8, 8], 1 / 1.5),  # tied with one that is wrong: half a place
        ([0.1, 0.1, 0.1, 0.6], [7, 7, 8, 8], 1.5 / 2),  # each: 1 + 1/2 among partners, 1 + 1/2 + 1/2 among all
        ([0.1, 0.1, 0.1, 0.1], [7, 8, 8, 8], 1 / 2.5),  # all alike: in the middle
    ],
)
def test_average_precision_by_hand(gallery, names, expected):
    angle = torch.tensor(gallery)
    found = retrieval(
        torch.tensor([[1.0, 0.0]]),
        torch.stack([angle.cos(), angle.sin()], dim=1),
        wanted=torch.tensor([7]),
        names=torch.tensor(names),
    )
    assert found["map"] == pytest.approx(100 * expected)


def test_a_partner_that_is_no_number_comes_last():
    gallery = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = retrieval(torch.tensor([[1.0, 0.0]]), gallery, wanted=torch.tensor([0]), names=torch.arange(4))
    assert (found["median_rank"], found["map"]) == (4.0, 25.0)


def test_what_is_of_the_querys_own_group_is_passed_over():
    """Concepts 0, 1 by vendors 0, 1, and a second drawing of concept 0 by vendor 0, which is no answer to the first."""
    angle = torch.tensor([0.0, 0.01, 0.5, 0.1, 1.5])
    h = torch.stack([angle.cos(), angle.sin()], dim=1)
    concept, vendor = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 0, 1])
    places = []
    for i in range(5):
        others = [j for j in range(5) if not (concept[j] == concept[i] and vendor[j] == vendor[i])]
        others.sort(key=lambda j, i=i: float((angle[i] - angle[j]).abs()))
        right = [place for place, j in enumerate(others, 1) if concept[j] == concept[i]]
        places.append(sum(n / place for n, place in enumerate(right, 1)) / len(right))
    found = retrieval(h, h, wanted=concept, names=concept, beyond=(vendor, vendor))
    assert found["map"] == pytest.approx(100 * sum(places) / 5)
    assert found["r1"] == 0  # without the groups, the twin of the first would be found
    assert retrieval(h, h, wanted=concept, names=concept)["r1"] == 100


# ---- Zero-shot


def test_zero_shot_is_of_the_class_whose_name_is_nearest():
    prompts = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, 30.0]])
    features = torch.tensor([[3.0, 1.0], [1.0, 4.0], [-1.0, 0.5], [9.0, 0.1]])
    found = zero_shot(features, torch.tensor([0, 1, 1, -1]), prompts, torch.tensor([0, 1, 1]))
    assert found == {"accuracy": 100.0, "majority": pytest.approx(200 / 3)}
    swapped = zero_shot(features, torch.tensor([1, 0, 0, -1]), prompts, torch.tensor([0, 1, 1]))
    assert swapped["accuracy"] == 0.0


def test_zero_shot_means_the_directions_of_names_and_not_their_lengths():
    prompts = torch.tensor([[100.0, 0.0], [0.0, 1.0], [1.0, 3.0]])  # class 0 points to (1, 1), and not along its first
    found = zero_shot(torch.tensor([[1.0, 1.1]]), torch.tensor([0]), prompts, torch.tensor([0, 0, 1]))
    assert found["accuracy"] == 100.0
