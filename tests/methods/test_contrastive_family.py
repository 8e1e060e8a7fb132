"""SimCLR's siblings, with negatives and with decorrelated features: their losses, what they promise, what they learn.

Every loss is compared with the terms of its paper's equation written out, with a closed form, and with lightly where
that has it.
"""

import math
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_methods import Method
from ssl_methods.contrastive.dcl import decoupled_contrast
from ssl_methods.contrastive.nnclr import nearest, neighbour_contrast
from ssl_methods.contrastive.semi_supcon import contrast, labelled_rows
from ssl_methods.contrastive.simclr import nt_xent
from ssl_methods.contrastive.supcon import supervised_contrast
from ssl_methods.decorrelation.barlow_twins import cross_correlation, redundancy_reduction
from ssl_methods.decorrelation.lejepa import prediction_error, sigreg
from ssl_methods.decorrelation.vicreg import covariance_loss, invariance_loss, variance_loss
from ssl_methods.decorrelation.w_mse import whiten, whitened_error
from stages.training.loop import build_method
from tests.methods.test_losses import cosine, mean, same_with_gradients, slow_nt_xent
from tests.methods.test_methods import FACTS, batches, matched, pretrained, small, whole_step

NAMES = ["dcl", "nnclr", "barlow_twins", "vicreg", "w_mse", "lejepa", "semi_supcon", "supcon"]


@pytest.fixture
def many() -> tuple[Tensor, Tensor]:
    """Two views of more rows than features, alike and with features of different scales and means."""
    torch.manual_seed(0)
    z1 = torch.randn(24, 5) * torch.tensor([0.3, 1, 2, 3, 0.5]) + torch.arange(5.0)
    return z1.requires_grad_(), (z1.detach() + 0.3 * torch.randn(24, 5)).requires_grad_()


@pytest.fixture
def build(params) -> Callable[..., Method]:
    def build(name: str, seed: int = 0, **hyper) -> Method:
        return build_method(small(params.entry("image", name), **hyper), FACTS, seed).train()

    return build


def loss_of(method: Method, batch: dict[str, Tensor]) -> Tensor:
    """The loss of the same views every time."""
    torch.manual_seed(5)
    return method(batch)[0]


def columns_of(z: Tensor) -> list[list[Tensor]]:
    """The features of z (N, D) as D lists of N scalars."""
    return [[row[i] for row in z] for i in range(z.shape[1])]


# ---- SupCon


def slow_supcon(z1: Tensor, z2: Tensor, y: list[int], temperature: float, among: list[int] | None = None) -> Tensor:
    """SupCon's Eq. (2), term by term, averaged over all views, or over those `among` the views of these pictures."""
    z, y, n = [*z1, *z2], [*y, *y], len(z1)
    views = [i for i in range(2 * n) if among is None or i % n in among]
    total = torch.zeros(())
    for i in views:
        others = sum((cosine(z[i], z[k]) / temperature).exp() for k in views if k != i)
        positives = [p for p in views if p != i and y[p] == y[i]]
        terms = [((cosine(z[i], z[p]) / temperature).exp() / others).log() for p in positives]
        total = total - sum(terms) / len(positives)
    return total / len(views)


@pytest.mark.parametrize("y", [[0, 1, 0, 2, 1, 0], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_supcon_is_equation_2_with_its_gradient(views, y, temperature):
    fast = supervised_contrast(*views, torch.tensor(y), temperature)
    same_with_gradients(fast, slow_supcon(*views, y, temperature), *views)


def test_supcon_of_a_class_for_each_picture_is_simclr(views):
    fast = supervised_contrast(*views, torch.arange(6), 0.3)
    same_with_gradients(fast, nt_xent(*views, 0.3), *views)


def test_supcon_of_collapsed_features_is_log_of_all_others():
    z = torch.ones(7, 3)
    loss = supervised_contrast(z, z, torch.tensor([0, 0, 0, 1, 1, 2, 2]), 0.1)
    assert loss.item() == pytest.approx(math.log(2 * 7 - 1), rel=1e-6)


def test_supcon_of_opposite_classes_has_its_closed_form():
    """Two classes of two pictures, each one point: 3 positives of similarity 1, 4 negatives of similarity -1."""
    z, y = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]), torch.tensor([0, 0, 1, 1])
    expected = math.log(3 + 4 * math.exp(-2 / 0.5))
    assert supervised_contrast(z, z, y, 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_supcon_takes_an_unlabelled_picture_for_a_class_of_its_own(build, pictures):
    method, batch = build("supcon"), next(batches(pictures, 1))
    mixed = {**batch, "label": torch.tensor([0, -1, 1, 0, -1, -1, 1, 0])}
    spelled_out = {**batch, "label": torch.tensor([0, 7, 1, 0, 8, 9, 1, 0])}
    as_one = {**batch, "label": torch.tensor([0, 7, 1, 0, 7, 7, 1, 0])}
    assert loss_of(method, mixed) == loss_of(method, spelled_out)
    assert loss_of(method, mixed) != loss_of(method, as_one)


# ---- DCL


def slow_dcl(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """DCL's Eq. (6), term by term."""
    z, n, total = [*z1, *z2], len(z1), torch.zeros(())
    for i in range(2 * n):
        others = sum((cosine(z[i], z[k]) / temperature).exp() for k in range(2 * n) if k % n != i % n)
        total = total - cosine(z[i], z[(i + n) % (2 * n)]) / temperature + others.log()
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_dcl_is_equation_6_with_its_gradient(views, temperature):
    same_with_gradients(decoupled_contrast(*views, temperature), slow_dcl(*views, temperature), *views)


def test_dcl_closed_forms():
    one, two = torch.ones(7, 3), torch.eye(2)
    assert decoupled_contrast(one, one, 0.5).item() == pytest.approx(math.log(2 * 7 - 2), rel=1e-6)
    assert decoupled_contrast(two, two, 0.5).item() == pytest.approx(math.log(2) - 1 / 0.5, rel=1e-6)


def test_dcl_is_simclr_without_the_pair_in_the_sum():
    """Where all views fare alike, exp(SimCLR) = 1 + exp(DCL)."""
    z = torch.eye(4)
    assert nt_xent(z, z, 0.5).exp().item() == pytest.approx(1 + decoupled_contrast(z, z, 0.5).exp().item(), rel=1e-6)


# ---- NNCLR


def test_nnclr_finds_the_nearest_in_the_queue(views):
    z, queue = F.normalize(views[0].detach(), dim=1), F.normalize(torch.randn(11, 5), dim=1)
    slow = [min(queue, key=lambda s, row=row: (row - s).square().sum().item()) for row in z]
    assert torch.equal(nearest(z, queue), torch.stack(slow))


def test_nnclr_is_equation_2_with_its_gradient(views):
    neighbour, p = F.normalize(views[0].detach(), dim=1), F.normalize(views[1].detach(), dim=1).requires_grad_()
    total = torch.zeros(())
    for i in range(len(p)):
        scores = [(neighbour[i].dot(row) / 0.2).exp() for row in p]
        total = total - (scores[i] / sum(scores)).log()
    same_with_gradients(neighbour_contrast(neighbour, p, 0.2), total / len(p), p)


def test_nnclr_of_collapsed_predictions_is_log_of_the_batch(views):
    one = F.normalize(torch.ones(7, 5), dim=1)
    assert neighbour_contrast(one, one, 0.1).item() == pytest.approx(math.log(7), rel=1e-6)


def test_nnclrs_queue_is_first_in_first_out_and_lacks_the_batch_at_hand(build, pictures):
    method = build("nnclr", queue=20)
    old = method.queue.clone()
    torch.testing.assert_close(old.norm(dim=1), torch.ones(20))
    method(next(batches(pictures, 1)))
    assert torch.equal(method.queue, old)
    method.after_step()
    torch.testing.assert_close(method.queue[:8], method.keys)
    assert torch.equal(method.queue[8:], old[:12])


def test_nnclr_contrasts_each_views_neighbours_with_the_other_views_predictions(build, pictures):
    """The loss put together again from what the heads say, with the equations above."""
    method, batch = build("nnclr", queue=20), next(batches(pictures, 1))
    seen = []
    for head in (method.projector, method.predictor):
        head.register_forward_hook(lambda head, given, said: seen.append(F.normalize(said.detach(), dim=1).chunk(2)))
    loss = loss_of(method, batch)
    (z1, z2), (p1, p2) = seen
    one = neighbour_contrast(nearest(z1, method.queue), p2, method.temperature)
    two = neighbour_contrast(nearest(z2, method.queue), p1, method.temperature)
    torch.testing.assert_close(loss, (one + two) / 2)
    assert torch.equal(method.keys, z1)


# ---- Barlow Twins


def slow_barlow_twins(z1: Tensor, z2: Tensor, off_diagonal: float) -> Tensor:
    """Barlow Twins' Eq. (1) and (2), term by term."""
    a, b, total = columns_of(z1), columns_of(z2), torch.zeros(())
    a, b = ([[v - mean(column) for v in column] for column in columns] for columns in (a, b))
    for i in range(len(a)):
        for j in range(len(b)):
            scale = sum(v * v for v in a[i]).sqrt() * sum(v * v for v in b[j]).sqrt()
            c = sum(v * w for v, w in zip(a[i], b[j], strict=True)) / scale
            total = total + ((1 - c) ** 2 if i == j else off_diagonal * c**2)
    return total


def test_barlow_twins_is_equation_1_with_its_gradient(many):
    """But for the 1e-5 that keeps a constant feature from a division by zero."""
    fast, slow = redundancy_reduction(*many, 0.05), slow_barlow_twins(*many, 0.05)
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=0)
    for a, b in zip(torch.autograd.grad(fast, many), torch.autograd.grad(slow, many), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_barlow_twins_closed_forms():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # uncorrelated
    assert redundancy_reduction(signs, signs, 0.1).item() == pytest.approx(0, abs=1e-8)
    assert redundancy_reduction(signs, -signs, 0.1).item() == pytest.approx(2 * 2**2, rel=1e-4)
    copied = signs[:, :1].expand(4, 3)  # three times the same feature: 6 wrong correlations of 1
    assert redundancy_reduction(copied, copied, 0.1).item() == pytest.approx(6 * 0.1, rel=1e-4)


def test_barlow_twins_does_not_care_for_a_features_scale_or_mean(many):
    z1, z2 = many
    torch.testing.assert_close(cross_correlation(z1, z2), cross_correlation(5 * z1 - 3, 2 * z2 + 1), atol=1e-3, rtol=0)


def test_barlow_twins_of_constant_features_is_finite():
    loss = redundancy_reduction(torch.ones(4, 3), torch.ones(4, 3), 0.1)
    assert loss.item() == pytest.approx(3)


# ---- VICReg


def slow_variance(z: Tensor) -> Tensor:
    """VICReg's Eq. (1) and (2), term by term."""
    hinges = []
    for column in columns_of(z):
        variance = sum((v - mean(column)) ** 2 for v in column) / (len(column) - 1)
        hinges.append((1 - (variance + 1e-4).sqrt()).clamp(min=0))
    return mean(hinges)


def slow_covariance(z: Tensor) -> Tensor:
    """VICReg's Eq. (3) and (4), term by term."""
    columns, total = columns_of(z), torch.zeros(())
    columns = [[v - mean(column) for v in column] for column in columns]
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            if i != j:
                total = total + (sum(v * w for v, w in zip(a, b, strict=True)) / (len(a) - 1)) ** 2
    return total / len(columns)


def test_vicregs_terms_are_its_equations_with_their_gradients(many):
    z1, z2 = many
    same_with_gradients(variance_loss(z1), slow_variance(z1), z1)
    same_with_gradients(covariance_loss(z1), slow_covariance(z1), z1)
    slow = mean([sum((a - b) ** 2 for a, b in zip(r1, r2, strict=True)) / 5 for r1, r2 in zip(z1, z2, strict=True)])
    same_with_gradients(invariance_loss(z1, z2), slow, z1, z2)


def test_vicreg_closed_forms():
    constant, signs = torch.ones(4, 2), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert variance_loss(constant).item() == pytest.approx(1 - 1e-2, rel=1e-5)
    assert covariance_loss(constant).item() == 0
    assert variance_loss(signs).item() == 0  # a variance of 4/3 is enough
    assert covariance_loss(signs).item() == pytest.approx(0, abs=1e-12)
    assert covariance_loss(signs[:, :1].expand(4, 3)).item() == pytest.approx(6 * (4 / 3) ** 2 / 3, rel=1e-6)


def test_vicreg_weighs_its_terms(build, pictures):
    method, batch = build("vicreg", invariance=2.0, variance=3.0, covariance=5.0), next(batches(pictures, 1))
    loss, terms = method(batch)
    expected = 2 * terms["invariance"] + 3 * terms["variance"] + 5 * terms["covariance"]
    torch.testing.assert_close(loss.detach(), expected)


# ---- W-MSE


def slow_whiten(v: Tensor) -> Tensor:
    """W-MSE's Eq. (4), row by row, with W the inverse of the covariance's Cholesky factor."""
    centre = mean(list(v))
    covariance = sum(torch.outer(row - centre, row - centre) for row in v) / (len(v) - 1)
    w = torch.linalg.inv(torch.linalg.cholesky(covariance))
    return torch.stack([w @ (row - centre) for row in v])


def test_whitened_features_have_no_mean_and_the_identity_as_covariance(many):
    z = whiten(many[0].detach(), 0.0)
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [24, 20])  # two sub-batches of twice the width or a little more
def test_w_mse_is_equation_3_with_its_gradient(many, rows):
    v1, v2 = (v[:rows] for v in many)
    order = torch.randperm(rows)
    total = torch.zeros(())
    for part in (order[: rows // 2], order[rows // 2 :]):
        for a, b in zip(slow_whiten(v1[part]), slow_whiten(v2[part]), strict=True):
            total = total + 2 - 2 * cosine(a, b)
    fast = whitened_error(v1, v2, order, 0.0)
    torch.testing.assert_close(fast, total / rows, rtol=1e-4, atol=1e-6)
    for a, b in zip(torch.autograd.grad(fast, many), torch.autograd.grad(total / rows, many), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_w_mse_does_not_see_what_whitening_takes_away(many):
    """Of two views that differ by a lower triangular map, Cholesky's whitening makes one."""
    v, order = many[0].detach(), torch.arange(24)
    lower = torch.randn(5, 5).tril(-1) + torch.diag(torch.rand(5) + 0.5)
    assert whitened_error(v, v @ lower.T + 3, order, 0.0).item() == pytest.approx(0, abs=1e-4)
    assert whitened_error(v, -v, order, 0.0).item() == pytest.approx(4, abs=1e-4)


def test_w_mse_does_not_reward_collapse(many):
    """The same features, shrunk to almost a point: the loss stays, where that of unwhitened features would vanish."""
    v1, v2 = (v.detach() for v in many)
    order = torch.arange(24)
    shrunk = whitened_error(1e-3 * v1, 1e-3 * v2, order, 0.0)
    torch.testing.assert_close(shrunk, whitened_error(v1, v2, order, 0.0), rtol=1e-2, atol=1e-4)


def test_w_mse_takes_a_batch_smaller_than_its_width_if_the_covariance_is_shrunk(views):
    v1, v2 = (v[:4].detach() for v in views)
    assert whitened_error(v1, v2, torch.arange(4), 0.01).isfinite()


# ---- LeJEPA


def slow_sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """LeJEPA's statistic with complex numbers, at all 17 points of Algorithm 1."""
    t = torch.linspace(-5, 5, 17)
    gaussian, statistics = (-(t**2) / 2).exp(), []
    for a in directions.T:
        found = mean([torch.exp(1j * t * (row @ a)) for row in z])
        statistics.append(len(z) * torch.trapezoid((found - gaussian).abs() ** 2 * gaussian, t))
    return mean(statistics)


def test_sigreg_is_its_definition_with_its_gradient(views):
    directions = F.normalize(torch.randn(5, 4), dim=0)
    same_with_gradients(sigreg(views[0], directions), slow_sigreg(views[0], directions), views[0])


def test_sigreg_of_a_point_is_the_distance_of_its_spectrum_from_a_gaussians():
    """N times the integral of (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2)."""
    expected = 7 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    found = sigreg(torch.zeros(7, 3), F.normalize(torch.randn(3, 5), dim=0))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_sigreg_of_gaussian_features_is_that_of_chance_alone():
    """Its mean is then the integral of (1 - exp(-t^2)) exp(-t^2 / 2), whatever the size of the batch."""
    torch.manual_seed(0)
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for n in (16, 64):
        found = mean([sigreg(torch.randn(n, 32), F.normalize(torch.randn(32, 64), dim=0)) for _ in range(200)])
        assert found.item() == pytest.approx(expected, rel=0.05)
        assert sigreg(2 * torch.randn(n, 32), F.normalize(torch.randn(32, 64), dim=0)) > 1.5 * expected


def test_lejepa_predicts_the_mean_of_the_views(views):
    z1, z2 = views
    slow = mean([((a + b) / 2 - v) ** 2 for a, b in zip(z1.flatten(), z2.flatten(), strict=True) for v in (a, b)])
    same_with_gradients(prediction_error(z1, z2), slow, z1, z2)
    torch.testing.assert_close(prediction_error(z1, z2), (z1 - z2).square().mean() / 4)


def test_lejepa_trades_its_terms_off_and_draws_new_directions_every_time(build, pictures):
    method, batch = build("lejepa", trade_off=0.25), next(batches(pictures, 1))
    loss, terms = method(batch)
    torch.testing.assert_close(loss.detach(), 0.25 * terms["sigreg"] + 0.75 * terms["prediction"])
    still = build("lejepa", strength=0.0).eval()
    assert still(batch)[1]["sigreg"] != still(batch)[1]["sigreg"]


# ---- Semi-supervised


def test_semi_supcon_is_equation_2_among_the_labelled_with_its_gradient(views):
    fast = contrast(*views, torch.tensor([0, -1, 1, 0, -1, 2]), 0.3)
    same_with_gradients(fast, slow_supcon(*views, [0, -1, 1, 0, -1, 2], 0.3, among=[0, 2, 3, 5]), *views)


def test_semi_supcon_of_a_class_for_each_picture_is_simclr(views):
    fast = contrast(*views, torch.tensor([40, 7, 3, 90, 12, 5]), 0.3)
    same_with_gradients(fast, slow_nt_xent(*views, 0.3), *views)


def test_semi_supcon_of_no_labels_is_nothing(views):
    loss = contrast(*views, torch.full((6,), -1), 0.3)
    assert loss.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, views))


def test_semi_supcon_adds_what_its_lambdas_say(build, pictures):
    batch = next(batches(pictures, 1))
    loss, terms = build("semi_supcon", labelled=0.5, lambda_1=2.0, lambda_2=3.0)(batch)
    assert terms["supervised"] > 0
    torch.testing.assert_close(loss.detach(), 2 * terms["supervised"] + 3 * terms["own"])


def test_the_labelled_rows_are_a_fixed_set_that_grows_with_its_fraction():
    torch.manual_seed(1)
    few, more = labelled_rows(1000, 0.1), labelled_rows(1000, 0.25)
    torch.manual_seed(2)
    assert torch.equal(few, labelled_rows(1000, 0.1))
    default = labelled_rows(8466, 0.1)  # of the default data: whoever compares with its row needs these
    assert (len(default), default[:5].tolist(), default.sum().item()) == (847, [13, 31, 40, 42, 55], 3545374)
    assert (len(few), len(more)) == (100, 250)
    assert set(few.tolist()) < set(more.tolist()) < set(range(1000))
    assert (few.diff() > 0).all()
    assert few[-1] > 900  # they come from all over
    assert torch.equal(labelled_rows(1000, 1.0), torch.arange(1000))
    assert len(labelled_rows(1000, 0.0)) == 0


def test_the_labelled_rows_do_not_depend_on_the_runs_seed_or_its_random_state(build):
    one, two = build("semi_supcon", seed=0), build("semi_supcon", seed=1)
    assert torch.equal(one.known, two.known)
    assert torch.equal(one.known.nonzero()[:, 0], labelled_rows(FACTS["rows"], 0.1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    labelled_rows(1000, 0.1)
    assert torch.equal(before, torch.get_rng_state())


def test_labels_of_unlabelled_rows_change_nothing_and_those_of_labelled_rows_do(build, pictures):
    def weights(change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        method = build("semi_supcon", labelled=0.5)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
        for batch in batches(pictures, 3):
            known = method.known[batch["index"]]
            assert 0 < known.sum() < len(known)
            whole_step(method, optimizer, {**batch, "label": change(batch["label"], known)})
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    true = weights(lambda y, known: y)
    for other in (-1, 0, 1, 999):
        assert torch.equal(true, weights(lambda y, known, other=other: torch.where(known, y, other)))
    assert not torch.equal(true, weights(lambda y, known: torch.where(known, 0, y)))


# ---- All of them


def moments(z1: Tensor, z2: Tensor) -> Tensor:
    """VICReg's terms that span the batch."""
    return variance_loss(z1) + covariance_loss(z2)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(
            lambda a, b: supervised_contrast(a, b, torch.tensor([0, 1, 0, 2, 1, 0])[: len(a)], 0.3), id="supcon"
        ),
        pytest.param(lambda a, b: contrast(a, b, torch.tensor([0, 1, 0, -1, 1, 0])[: len(a)], 0.3), id="semi_supcon"),
        pytest.param(lambda a, b: decoupled_contrast(a, b, 0.3), id="dcl"),
        pytest.param(lambda a, b: neighbour_contrast(a, b, 0.3), id="nnclr"),
        pytest.param(lambda a, b: redundancy_reduction(a, b, 0.1), id="barlow_twins"),
        pytest.param(moments, id="vicreg"),
        pytest.param(lambda a, b: sigreg(a, torch.eye(5)), id="lejepa"),
    ],
)
def test_what_spans_the_batch_sees_the_rows_of_all_processes(loss, views, monkeypatch):
    """The loss of half the rows, where `gather` brings the other half, is the loss of all."""
    z1, z2 = (v.detach() for v in views)
    expected = loss(z1, z2)
    wholes = [z1, z2, torch.tensor([0, 1, 0, 2, 1, 0]), torch.tensor([0, 1, 0, -1, 1, 0])]

    def gather(x: Tensor) -> Tensor:
        return next(whole for whole in wholes if whole.dtype == x.dtype and torch.equal(whole[:4], x))

    for module in [m for name, m in sys.modules.items() if name.startswith("ssl_methods.") and hasattr(m, "gather")]:
        monkeypatch.setattr(module, "gather", gather)
    torch.testing.assert_close(loss(z1[:4], z2[:4]), expected)


def test_losses_are_computed_in_float32_under_autocast(many):
    z1, z2 = (v.detach().bfloat16() for v in many)
    y, directions = torch.arange(24) % 3, F.normalize(torch.randn(5, 4), dim=0)
    for loss in (
        lambda a, b: supervised_contrast(a, b, y, 0.1),
        lambda a, b: contrast(a, b, y, 0.1),
        lambda a, b: decoupled_contrast(a, b, 0.1),
        lambda a, b: neighbour_contrast(nearest(a, b), b, 0.1),
        lambda a, b: redundancy_reduction(a, b, 0.1),
        lambda a, b: variance_loss(a) + covariance_loss(a) + invariance_loss(a, b),
        lambda a, b: whitened_error(a, b, torch.arange(24), 0.01),
        lambda a, b: sigreg(a, directions) + prediction_error(a, b),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            low = loss(z1, z2)
        assert low.dtype == torch.float32
        assert low.item() == loss(z1.float(), z2.float()).item()


HYPER = {  # for the small pictures, and batches of 32
    "nnclr": {"hidden": 32, "width": 16, "queue": 64},
    "barlow_twins": {"width": 32},
    "vicreg": {"width": 32},
    "w_mse": {"hidden": 32, "width": 8},
    "lejepa": {"hidden": 32, "width": 16},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "supcon"])
def test_siblings_learn_to_tell_pictures_apart_under_views(name, build, params, pictures, tmp_path):
    method, _ = pretrained(pictures, params, name, tmp_path, 120, **{"strength": 0.5, **HYPER.get(name, {})})
    assert matched(method, pictures) > matched(build("untrained").eval(), pictures) + 0.05


def separation(method: Method, pictures: Tensor) -> float:
    """The share of the features' variance that lies between the classes."""
    y = pictures[:, 0].float().mean((1, 2)) > 140  # as in `pretrained`
    with torch.no_grad():
        h = F.normalize(method.encoder(pictures.float() / 255), dim=1)
    within = torch.stack([h[y].var(0, correction=0).sum() * y.sum(), h[~y].var(0, correction=0).sum() * (~y).sum()])
    return 1 - (within.sum() / len(h) / h.var(0, correction=0).sum()).item()


def test_supcon_learns_the_classes(build, params, pictures, tmp_path):
    method, _ = pretrained(pictures, params, "supcon", tmp_path, 120, strength=0.5)
    assert separation(method, pictures) > separation(build("untrained").eval(), pictures) + 0.2


def test_semi_supcon_learns_the_classes_from_the_few_labels(params, pictures, tmp_path):
    """From a tenth of the labels, which weigh much, against none of them and all else equal."""
    few, none = (
        pretrained(pictures, params, "semi_supcon", tmp_path, 120, strength=0.2, lambda_1=weight)[0]
        for weight in (4.0, 0.0)
    )
    assert separation(few, pictures) > separation(none, pictures) + 0.04


# ---- lightly


def equal_with_gradients(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dcl_is_lightlys(views):
    theirs = pytest.importorskip("lightly.loss").DCLLoss(temperature=0.3)
    equal_with_gradients(decoupled_contrast(*views, 0.3), theirs(*views), *views)


def test_nnclrs_neighbours_are_lightlys(views):
    modules = pytest.importorskip("lightly.models.modules")
    z, queue = F.normalize(views[0].detach(), dim=1), F.normalize(torch.randn(11, 5), dim=1)
    bank = modules.NNMemoryBankModule(size=(11, 5))
    bank.bank = queue
    torch.testing.assert_close(nearest(z, queue), bank(z, update=False))


def test_barlow_twins_is_lightlys(many):
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.05)
    equal_with_gradients(redundancy_reduction(*many, 0.05), theirs(*many), *many)


def test_vicreg_is_lightlys(many):
    """Which halves the variance's term, as the authors' code does and their paper does not."""
    theirs = pytest.importorskip("lightly.loss").VICRegLoss(lambda_param=3.0, mu_param=2 * 4.0, nu_param=0.5)
    z1, z2 = many
    ours = 3 * invariance_loss(z1, z2) + 4 * (variance_loss(z1) + variance_loss(z2))
    ours = ours + 0.5 * (covariance_loss(z1) + covariance_loss(z2))
    equal_with_gradients(ours, theirs(z1, z2), z1, z2)


def test_w_mse_is_lightlys(many):
    theirs = pytest.importorskip("lightly.loss.wmse_loss").WMSELoss(embedding_dim=5, w_size=12, num_samples=2)
    torch.manual_seed(1)
    expected = theirs(torch.cat(many))
    torch.manual_seed(1)
    equal_with_gradients(whitened_error(*many, torch.randperm(24), 0.0), expected, *many)


def test_lejepa_is_lightlys(views):
    """Whose default is 17 points in [0, 3], of a later version of the authors' code."""
    lightly = pytest.importorskip("lightly.loss.lejepa_loss")
    torch.manual_seed(1)
    expected = lightly.SIGReg(knots=9, t_max=5.0, num_vectors=7)(views[0])
    torch.manual_seed(1)
    equal_with_gradients(sigreg(views[0], F.normalize(torch.randn(5, 7), dim=0)), expected, views[0])
    both = torch.stack(views)
    expected = lightly.lejepa_invariance_loss(all_proj=both, global_proj=both)
    equal_with_gradients(prediction_error(*views), expected, *views)
