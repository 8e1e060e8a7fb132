"""The measures of features that need no probe, against closed forms; clustering; neighbours and maps to look at."""

import math

import numpy as np
import pytest
import torch

from stages.measures import varying
from stages.measures.clustering import agreement, clustering
from stages.measures.diagnostics import nearest, tsne
from stages.measures.health import alignment, dead, effective_rank, lidar, spread, uniformity


def objects(variances, noise, count=4000, views=8, width=6, seed=0):
    """Views (count, views, width): objects vary along the first axes by so much, and views along all by `noise`."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.zeros(width).index_copy(0, torch.arange(len(variances)), torch.tensor(variances).sqrt())
    centres = torch.randn(count, 1, width, generator=generator) * scale
    return centres + noise * torch.randn(count, views, width, generator=generator)


# ---- Effective rank and spread


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.eye(8).repeat(10, 1), 8),
        (torch.outer(torch.arange(1.0, 50), torch.arange(1.0, 9)), 1),
        (torch.diag(torch.tensor([2.0, 1.0, 1.0])), 2**1.5),  # p = 1/2, 1/4, 1/4
        (5 * torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))[:3], 2**1.5),  # wider than long, and scaled
        (torch.zeros(20, 8), 1),
    ],
)
def test_the_effective_rank_has_closed_forms(features, expected):
    assert effective_rank(features) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.cat([torch.eye(8), -torch.eye(8)]), 1),
        (torch.full((10, 8), 3.0), 0),
        (torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]]), 0.5),  # one channel of four deviates, by 1
        (torch.eye(4), math.sqrt(3) / 2),  # a deviation of sqrt(1/4 * 3/4) in each
        (torch.zeros(10, 8), 0),
    ],
)
def test_the_spread_has_closed_forms(features, expected):
    assert spread(features) == pytest.approx(expected, abs=1e-6)
    assert spread(100 * features) == pytest.approx(expected, abs=1e-6)


# ---- LiDAR


@pytest.mark.parametrize(("directions", "expected"), [(1, 1), (3, 3), (6, 6)])
def test_lidar_counts_the_directions_in_which_objects_differ(directions, expected):
    views = objects([100.0] * directions, noise=0.1)
    assert lidar(views) == pytest.approx(expected, rel=0.01)
    assert lidar(1000 * views + 5) == pytest.approx(lidar(views), rel=1e-6)  # scale and place tell nothing


def test_lidar_is_the_entropy_of_the_ratio_of_variances():
    """Variances 4 and 1 between objects; within, 0.01: after whitening, shares 4/5 and 1/5."""
    views = objects([4.0, 1.0], noise=0.1, count=20_000, width=2)
    assert lidar(views) == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), rel=0.01)


def test_lidar_is_that_of_a_slow_count():
    views = objects([3.0, 1.0, 0.5], noise=0.4, count=30, views=5, width=3).double().numpy()
    means = views.mean(1)
    within = sum(np.cov(views[i].T) for i in range(30)) / 30
    within += 1e-4 * np.trace(within) / 3 * np.eye(3)
    shares = np.linalg.eigvals(np.linalg.solve(within, np.cov(means.T))).real  # similar to the symmetric form
    shares /= shares.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert lidar(torch.from_numpy(views)) == pytest.approx(expected, rel=1e-4)


def test_rank_alone_does_not_raise_lidar():
    """Three directions in which views differ as much as objects do add to the rank of features, but tell nothing."""
    views = objects([100.0] * 3, noise=0.1)
    views[:, :, 3:] = 10 * torch.randn(*views.shape[:2], 3, generator=torch.Generator().manual_seed(1))
    assert lidar(views) == pytest.approx(3, rel=0.02)


def test_lidar_of_what_is_all_alike_is_one():
    assert lidar(torch.full((10, 4, 3), 2.0)) == pytest.approx(1, abs=1e-4)
    assert math.isfinite(lidar(torch.randn(10, 1, 3).expand(10, 4, 3)))  # views that do not differ at all


# ---- Alignment and uniformity


def test_alignment_is_the_squared_distance_on_the_sphere():
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert alignment(x, 5 * x) == pytest.approx(0)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, x.flip(1)) == pytest.approx(2)
    assert alignment(x, torch.tensor([[1.0, 0.0], [4.0, 0.0]])) == pytest.approx(1)  # 0 and 2


def test_uniformity_has_closed_forms():
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert uniformity(torch.tensor([[1.0, 0.0], [-7.0, 0.0]])) == pytest.approx(-8)  # the only pair is 2 apart
    corners = torch.eye(4)  # all pairs are sqrt(2) apart
    assert uniformity(corners) == pytest.approx(-4)
    mixed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # one pair at 0, two at 2
    assert uniformity(mixed) == pytest.approx(math.log((1 + 2 * math.exp(-8)) / 3))


def test_uniformity_of_the_uniform_circle():
    """E exp(-2 |x - y|^2) = e^-4 I_0(4) on the unit circle, as |x - y|^2 = 2 - 2 cos."""
    angle = torch.arange(2000) * (2 * math.pi / 2000)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    expected = -4 + math.log(torch.special.i0(torch.tensor(4.0)).item())
    assert uniformity(circle) == pytest.approx(expected, abs=0.02)  # pairs of a point with itself do not count


# ---- Dead units


def test_units_that_do_not_vary_are_dead():
    generator = torch.Generator().manual_seed(0)
    alive = torch.randn(50, 6, generator=generator) * torch.tensor([1e-8, 1.0, 1e8, 1.0, 1.0, 1.0])
    constant = torch.tensor([0.0, 3.0]).expand(50, 2)
    features = torch.cat([alive, constant], dim=1)
    assert dead(features) == 25
    assert varying(features).tolist() == [True] * 6 + [False] * 2
    rounding = 100 + torch.randn(50, 1, generator=generator) * 1e-5
    assert dead(rounding) == 100
    once = torch.zeros(50, 1).index_fill(0, torch.tensor([7]), 1.0)
    assert dead(once) == 0  # a unit that opens for one input alone is no constant


# ---- Clustering


def test_clusters_that_are_the_classes_score_full_marks_in_any_order():
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] + 0.01 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert clustering(features, labels, 3) == pytest.approx({"nmi": 100, "ari": 100, "accuracy": 100})
    lengths = torch.linspace(1, 50, 60)[:, None]  # only directions count
    assert clustering(lengths * features, labels, 3) == pytest.approx({"nmi": 100, "ari": 100, "accuracy": 100})


def test_agreement_has_closed_forms():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    groups = np.array([2, 2, 1, 0, 0, 0, 1, 1, 1, 0])  # 2 is class 0, 0 is class 1, 1 is class 2: 8 of 10
    found = agreement(groups, labels, 3)
    assert found["accuracy"] == 80
    table = np.array([[2, 1, 0], [0, 0, 3], [0, 3, 1]]) / 10  # classes by groups 2, 1, 0
    expected = table.sum(1)[:, None] * table.sum(0)
    information = (table[table > 0] * np.log(table / expected, where=table > 0, out=table * 0)[table > 0]).sum()
    entropies = [-(p * np.log(p)).sum() for p in (table.sum(0), table.sum(1))]
    assert found["nmi"] == pytest.approx(100 * information / np.mean(entropies))
    together = [np.equal.outer(one, one)[np.triu_indices(10, 1)] for one in (labels, groups)]  # pairs of rows
    same, one, other = (np.logical_and(*together).sum(), *(pairs.sum() for pairs in together))
    chance = one * other / 45
    assert found["ari"] == pytest.approx(100 * (same - chance) / ((one + other) / 2 - chance))


def test_two_clusters_that_want_one_class_must_share():
    labels = np.array([0, 0, 0, 0, 1, 1])
    groups = np.array([0, 0, 1, 1, 0, 1])
    assert agreement(groups, labels, 2)["accuracy"] == 50  # the majority of both is class 0, but one must be class 1


def test_clusters_of_noise_agree_by_chance_and_those_of_constants_are_no_error():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (800,), generator=generator)
    found = clustering(torch.randn(800, 8, generator=generator), labels, 4)
    assert abs(found["ari"]) < 2
    assert 25 <= found["accuracy"] < 33
    assert clustering(torch.ones(20, 3), torch.arange(20) % 4, 4)["nmi"] == pytest.approx(0)
    assert clustering(torch.ones(2, 3), torch.arange(2), 4) == {}  # fewer rows than clusters


def test_clustering_is_the_same_every_time():
    features, labels = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 7
    first = clustering(features, labels, 7)
    torch.manual_seed(5)
    np.random.seed(5)
    assert clustering(features, labels, 7) == first


# ---- To look at


def test_the_nearest_are_nearest_by_angle():
    bank = torch.tensor([[0.0, 9.0], [1.0, 1.0], [5.0, 0.1], [-1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert nearest(queries, bank, 2).tolist() == [[2, 1], [0, 1]]
    assert nearest(queries, bank, 9).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3]]


def test_groups_stay_together_on_the_map_and_it_is_the_same_every_time():
    labels = torch.arange(90) % 3
    features = 20 * torch.eye(8)[labels] + torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    x, y = tsne(features)
    places = torch.tensor([x, y]).T
    apart = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert (labels[apart.argmin(1)] == labels).all()
    np.random.seed(3)
    assert tsne(features) == (x, y)
    assert all(value == round(value, 2) for value in x + y)
