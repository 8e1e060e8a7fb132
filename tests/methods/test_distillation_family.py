"""DINO, SwAV, DeepCluster, SimMIM, I-JEPA and data2vec: their equations, what they promise, and what they learn."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_methods import Method, build_encoder
from ssl_methods.clustering.deepcluster import group_loss, spherical_kmeans
from ssl_methods.clustering.swav import sinkhorn, swapped_prediction
from ssl_methods.distillation.dino import cosines, sharpen
from ssl_methods.masked.data2vec import feed_forwards, hidden_regression, mean_of_layers
from ssl_methods.masked.ijepa import distance, draw_blocks, draw_context
from ssl_methods.masked.simmim import absolute_error
from ssl_methods.modalities import image
from ssl_methods.parts.losses import swapped
from stages.common.settings import Settings
from stages.training import loop
from stages.training.columns import Columns
from stages.training.loop import build_method, descend, fit
from tests.methods.test_losses import mean, same_with_gradients
from tests.methods.test_methods import FACTS, SMALL, TRAINING, batches, matched, pretrained, small


def made(params: Settings, name: str, **hyper) -> Method:
    return build_method(small(params.entry("image", name), **hyper), FACTS, seed=0).train()


def slow_cross_entropy(p: Tensor, logits: Tensor) -> Tensor:
    """- p . log softmax(logits), term by term."""
    total = sum(value.exp() for value in logits)
    return -sum(p[k] * (logits[k].exp() / total).log() for k in range(len(p)))


@pytest.fixture
def lightly():
    return pytest.importorskip("lightly.loss")


# ---- What DINO and SwAV share


def test_swapped_predicts_every_target_from_every_other_view():
    torch.manual_seed(0)
    targets, logits = torch.randn(2, 3, 5).softmax(-1), torch.randn(4, 3, 5, requires_grad=True)
    pairs = [(g, v) for g in range(2) for v in range(4) if v != g]
    slow = mean([slow_cross_entropy(targets[g, n], logits[v, n]) for g, v in pairs for n in range(3)])
    same_with_gradients(swapped(targets, logits), slow, logits)


def test_swapped_has_its_closed_forms():
    one = F.one_hot(torch.tensor([[0, 2], [0, 2]]), 4).float()  # (G, N, K)
    even = torch.zeros(3, 2, 4)
    assert swapped(one, even).item() == pytest.approx(math.log(4))
    sure = torch.cat([one, one[:1]]) * 30
    assert swapped(one, sure).item() == pytest.approx(0, abs=1e-6)
    assert swapped(one, sure.flip(1)).item() == pytest.approx(30, rel=1e-5)


def test_a_views_own_target_teaches_it_nothing():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    swapped(
        torch.stack([torch.eye(5)[:3], torch.zeros(3, 5)]), logits
    ).backward()  # of the second view, nothing is known
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_views_have_boxes_of_their_scale(monkeypatch):
    drawn = []
    monkeypatch.setattr(image, "crop", lambda x, scale, ratio, flip: drawn.append(scale) or x)
    x = torch.rand(2, 3, 8, 8)
    image.simclr_view(x, 1.0, scale=(0.14, 1))
    image.simclr_view(x, 0.5, scale=(0.05, 0.4))
    np.testing.assert_allclose(drawn, [(0.14, 1), (0.525, 0.7)])
    assert image.simclr_view(x, 0, scale=(0.05, 0.4)).equal(x)


def test_multi_crop_has_two_wide_views_and_small_near_ones(monkeypatch):
    drawn = []
    monkeypatch.setattr(image, "crop", lambda x, scale, ratio, flip: drawn.append(scale) or x)
    monkeypatch.setattr(image, "jitter", lambda x, *amounts, **others: x)
    monkeypatch.setattr(image, "grey", lambda x, p: x)
    x = torch.rand(2, 3, 8, 8)
    wide, near = image.multi_crop(x, 3, 1.0, border=0.4)
    np.testing.assert_allclose(drawn, [(0.4, 1), (0.05, 0.4)])
    assert wide.equal(torch.cat([x, x]))  # view after view
    halved = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))  # each 2 x 2 pixels to their mean
    torch.testing.assert_close(near, halved.repeat(3, 1, 1, 1))


# ---- DINO


def test_dinos_last_layer_has_weights_of_unit_length():
    torch.manual_seed(0)
    z, prototypes = torch.randn(4, 6), torch.randn(7, 6)
    slow = torch.stack([torch.stack([(a / a.norm()).dot(c / c.norm()) for c in prototypes]) for a in z])
    torch.testing.assert_close(cosines(z, prototypes), slow)
    torch.testing.assert_close(cosines(z, 9 * prototypes), slow)


def test_dino_is_equations_1_and_3():
    torch.manual_seed(0)
    student, teacher, centre = torch.randn(4, 3, 5, requires_grad=True), torch.randn(2, 3, 5), torch.randn(5)
    terms = []
    for g, v, n in itertools.product(range(2), range(4), range(3)):
        if g != v:
            raised = ((teacher[g, n] - centre) / 0.5).exp()
            terms.append(slow_cross_entropy(raised / raised.sum(), student[v, n] / 0.1))
    same_with_gradients(swapped(sharpen(teacher, centre, 0.5), student / 0.1), mean(terms), student)


def test_dino_is_lightlys_with_its_centre(lightly, params, pictures):
    torch.manual_seed(0)
    theirs = lightly.DINOLoss(output_dim=5, teacher_temp=0.07, student_temp=0.1, center_momentum=0.9)
    theirs.center.copy_(torch.randn(5))
    method = made(params, "dino", prototypes=5, centring=0.9)
    method.centre.copy_(theirs.center.flatten())
    student, teacher = torch.randn(4, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    ours = swapped(sharpen(teacher, method.centre, 0.07), student / 0.1)
    same_with_gradients(ours, theirs(list(teacher), list(student)), student)  # which moves their centre too
    method.taught = teacher.flatten(0, 1)
    method.after_step()
    torch.testing.assert_close(method.centre, theirs.center.flatten())


def test_centring_closes_one_shortcut_and_sharpening_the_other():
    """Where all features agree, the centred teacher says nothing; where none do, it says the more the sharper it is."""
    same = torch.eye(8)[:1].expand(6, 8)
    torch.testing.assert_close(sharpen(same, same.mean(0), 0.04), torch.full((6, 8), 1 / 8))
    torch.manual_seed(0)
    unlike = torch.randn(6, 8)
    entropies = [torch.special.entr(sharpen(unlike, unlike.mean(0), t)).sum(-1).mean() for t in (0.04, 0.1, 1.0)]
    assert entropies == sorted(entropies)
    assert entropies[0] < 0.1 < math.log(8) / 2 < entropies[-1]


def test_dinos_teacher_softens_as_long_as_it_rises(params):
    method, seen = made(params, "dino", teacher_start=0.04, teacher_end=0.08, rise=0.5), []
    for method.progress in (0.0, 0.25, 0.5, 1.0):
        seen.append(method.teacher_temperature())
    assert seen == pytest.approx([0.04, 0.06, 0.08, 0.08])
    method = made(params, "dino", rise=0.0)
    assert method.teacher_temperature() == method.teacher_end


def test_dinos_teacher_slows_down_and_is_what_remains(params, pictures):
    method = made(params, "dino", momentum=0.5)
    method(next(batches(pictures, 1)))  # whereby the two gather different batch-norm statistics
    weights = method.teacher[0].stem.weight
    start = weights.clone()
    with torch.no_grad():
        for p in method.student.parameters():
            p += 1
    method.progress = 0.5
    method.after_step()
    torch.testing.assert_close(weights, start + 0.25)
    assert not torch.equal(method.encoder.stem.weight, weights)
    before = {name: value.clone() for name, value in method.teacher[0].state_dict().items()}
    assert any(not torch.equal(value, method.encoder.state_dict()[name]) for name, value in before.items())
    method.progress = 1.0
    method.after_step()
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_dino_passes_small_crops_to_the_student_alone(params, pictures):
    method, seen = made(params, "dino", crops=3), {"student": [], "teacher": []}
    for name, passed in seen.items():
        getattr(method, name).register_forward_pre_hook(lambda _, x, passed=passed: passed.append(tuple(x[0].shape)))
    method(next(batches(pictures, 1)))
    assert seen == {"student": [(16, 3, 16, 16), (24, 3, 8, 8)], "teacher": [(16, 3, 16, 16)]}


# ---- SwAV


def slow_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Eq. (5): rows and columns are scaled by turns until both sums are right."""
    q = (scores / epsilon).exp()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_scales_rows_and_columns_by_turns(iterations, lightly):
    torch.manual_seed(0)
    scores = cosines(torch.randn(12, 4), torch.randn(5, 4))
    ours = sinkhorn(scores, 0.05, iterations)
    torch.testing.assert_close(ours, slow_sinkhorn(scores, 0.05, iterations), rtol=1e-4, atol=1e-6)
    theirs = lightly.swav_loss.sinkhorn(scores, iterations=iterations, epsilon=0.05)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_sinkhorn_gives_pictures_out_whole_and_prototypes_equal_shares():
    torch.manual_seed(0)
    codes = sinkhorn(cosines(torch.randn(20, 4), torch.randn(5, 4)), 0.1, 100)
    torch.testing.assert_close(codes.sum(1), torch.ones(20))
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 4.0), rtol=1e-3, atol=1e-3)
    assert sinkhorn(torch.eye(4), 0.001, 3).isfinite().all()  # e^1000 would not be
    torch.testing.assert_close(sinkhorn(torch.eye(4), 0.01, 3), torch.eye(4))


def test_sinkhorn_spreads_a_collapsed_batch_over_all_prototypes():
    same = torch.randn(1, 5).expand(8, 5)
    torch.testing.assert_close(sinkhorn(same, 0.05, 3), torch.full((8, 5), 0.2))


@pytest.fixture
def scored() -> tuple[Tensor, Tensor, Tensor]:
    """Views (V, N, D), prototypes (K, D) and a queue (2, Q, D), of unit length."""
    torch.manual_seed(0)
    z, prototypes, queue = torch.randn(4, 6, 3), torch.randn(5, 3), torch.randn(2, 7, 3)
    z, prototypes, queue = (F.normalize(x, dim=-1) for x in (z, prototypes, queue))
    return z.requires_grad_(), prototypes.requires_grad_(), queue


@pytest.mark.parametrize("length", [0, 7])
def test_swav_is_equation_6(scored, length):
    z, prototypes, queue = scored
    terms = []
    for i in range(2):
        stack = torch.cat([z[i], queue[i, :length]]).detach()
        codes = slow_sinkhorn(stack @ prototypes.detach().T, 0.05, 3)
        for v, n in itertools.product(range(4), range(6)):
            if v != i:
                terms.append(slow_cross_entropy(codes[n], z[v, n] @ prototypes.T / 0.1))
    ours = swapped_prediction(z, prototypes, queue[:, :length], 0.1, 0.05, 3)
    same_with_gradients(ours, mean(terms), z, prototypes)


@pytest.mark.parametrize("length", [0, 7])
def test_swav_is_lightlys(scored, length, lightly):
    z, prototypes, queue = scored
    loss = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    scores = z @ prototypes.T
    older = list(queue[:, :length] @ prototypes.T) if length else None
    theirs = loss(list(scores[:2]), list(scores[2:]), older).squeeze()  # theirs has one dimension, ours none
    same_with_gradients(swapped_prediction(z, prototypes, queue[:, :length], 0.1, 0.05, 3), theirs, z, prototypes)


def test_swav_queues_the_newest_first_and_only_later_uses_it(params, pictures):
    method, batch = made(params, "swav", queue=20, start=0.5), next(batches(pictures, 1))
    old = method.queue.clone()

    def loss(progress: float) -> float:
        torch.manual_seed(1)
        method.progress = progress
        return method(batch)[0].item()

    early, late = loss(0.4), loss(0.5)
    torch.testing.assert_close(method.queue, old)  # until the step is over: none of its own is among the older ones
    method.queue.copy_(method.queue.flip(2))
    assert loss(0.4) == early
    assert loss(0.5) != pytest.approx(late, rel=1e-6)
    method.after_step()
    torch.testing.assert_close(method.queue[:, :8], method.newest)
    torch.testing.assert_close(method.queue[:, 8:], old.flip(2)[:, :12])


def test_swavs_prototypes_stay_of_unit_length_and_wait_to_learn(params, pictures):
    method, batch = made(params, "swav", frozen=0.5, queue=0), next(batches(pictures, 1))
    method(batch)[0].backward()
    assert method.prototypes.grad is None
    method.progress = 0.5
    method(batch)[0].backward()
    assert method.prototypes.grad.any()
    with torch.no_grad():
        method.prototypes += torch.rand_like(method.prototypes)
    method.after_step()
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(len(method.prototypes)))
    assert method.prototypes.requires_grad


# ---- DeepCluster


def test_kmeans_finds_what_lies_together():
    torch.manual_seed(0)
    groups = torch.arange(3).repeat(40)
    z = F.normalize(torch.eye(3, 8)[groups] + 0.1 * torch.randn(120, 8), dim=1)
    found = [(z @ spherical_kmeans(z, 3, 10).T).argmax(1) for _ in range(10)]  # it may start with two in one group
    same = groups[:, None] == groups
    assert sum(torch.equal(f[:, None] == f, same) for f in found) >= 2


def test_kmeans_is_lloyds_algorithm_on_the_sphere():
    z, closeness, groups = F.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1), [], None
    for iterations in range(6):
        torch.manual_seed(1)  # the same start
        centroids = spherical_kmeans(z, 6, iterations)
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(6))
        for k in range(6) if iterations else ():
            total = z[groups == k].sum(0)
            torch.testing.assert_close(centroids[k], total / total.norm())
        groups = torch.cdist(z, centroids).argmin(1)
        closeness.append((z @ centroids.T).amax(1).mean().item())
    assert closeness == sorted(closeness)
    assert closeness[-1] > closeness[0] + 0.02


def test_kmeans_leaves_an_empty_group_where_it_is_and_passes_over_zeros():
    z = F.normalize(torch.tensor([[1.0, 0], [0, 0], [1, 0], [0, 0], [0, 1], [0, 0]]), dim=1)
    for _ in range(5):
        centroids = spherical_kmeans(z, 3, 5)  # two of the three lie in one place
        torch.testing.assert_close(centroids.sort(0).values, torch.tensor([[0.0, 0], [1, 0], [1, 1]]))
        assert (centroids.norm(dim=1) == 1).all()


def test_group_loss_is_the_cross_entropy_of_the_nearest_group_of_what_is_known():
    torch.manual_seed(0)
    z, prototypes, known = torch.randn(2, 4, 3, requires_grad=True), torch.randn(3, 5, 3), torch.randn(3, 4, 3)
    terms = []
    for v, g, n in itertools.product(range(2), range(3), range(4)):
        group = max(range(5), key=lambda k, g=g, n=n: prototypes[g, k].dot(known[g, n]).item())
        terms.append(slow_cross_entropy(F.one_hot(torch.tensor(group), 5), z[v, n] @ prototypes[g].T / 0.5))
    same_with_gradients(group_loss(z, prototypes, known, 0.5), mean(terms), z)


def test_group_loss_has_its_closed_forms():
    z = torch.eye(4)[None]
    assert group_loss(z, torch.ones(1, 7, 4), z, 0.1).item() == pytest.approx(math.log(7), rel=1e-6)
    agreed = -1 / 0.5 + math.log(math.exp(1 / 0.5) + 3)
    assert group_loss(z, z, z, 0.5).item() == pytest.approx(agreed, rel=1e-5)
    assert group_loss(z, z, z.roll(1, 1), 0.5).item() == pytest.approx(agreed + 1 / 0.5, rel=1e-5)


def test_deepcluster_remembers_before_it_learns(params, pictures):
    method = made(params, "deepcluster", prototypes=4, rounds=2, groupings=3)
    for step, batch in enumerate(batches(pictures, 3)):
        method.progress = 0.1 * step
        assert not method(batch)[0].requires_grad
        method.after_step()
        torch.testing.assert_close(method.memory[:, batch["index"]], method.latest)
        assert not method.memory[:, batch["index"].max() + 1 :].any()
    assert not method.prototypes.any()
    method(batch)
    method.progress = 0.5
    method.after_step()
    torch.testing.assert_close(method.prototypes.norm(dim=2), torch.ones(3, 4))
    loss, _ = method(batch)
    assert loss.requires_grad


def test_deepcluster_groups_by_what_it_saw_last(params, pictures, monkeypatch):
    method, given = made(params, "deepcluster", prototypes=4, groupings=3), []
    monkeypatch.setattr("ssl_methods.clustering.deepcluster.group_loss", lambda *a: given.append(a[2]) or a[0].sum())
    first, second = batches(pictures, 2)
    method(first)
    method.after_step()
    remembered = method.memory[:, first["index"]].clone()
    mixed = {key: torch.cat([first[key], second[key]]) for key in first}
    method(mixed)
    torch.testing.assert_close(given[-1][:, :8], remembered[[0, 1, 0]])
    torch.testing.assert_close(given[-1][:, 8:], method.latest[[0, 1, 0], 8:])  # never seen before
    assert not torch.equal(given[-1][:, :8], method.latest[[0, 1, 0], :8])


def test_deepclusters_groups_hold_for_a_round(params, pictures):
    method, batch, prototypes = made(params, "deepcluster", prototypes=4, rounds=4), next(batches(pictures, 1)), []
    for step in range(8):
        method.progress = step / 8
        method(batch)
        method.progress = (step + 1) / 8
        method.after_step()
        prototypes.append(method.prototypes.clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(prototypes)]
    assert changed == [True, False, True, False, True, False, True]


# ---- Masks


@pytest.mark.parametrize(("side", "square", "share", "expected"), [(4, 2, 0.6, 12), (8, 2, 0.6, 40), (8, 1, 0.75, 48)])
def test_squares_are_hidden_whole_and_as_many_in_every_picture(side, square, share, expected):
    torch.manual_seed(0)
    hidden = image.hidden_squares(torch.zeros(400, 3, 4 * side, 4 * side), side, square, share)
    assert hidden.dtype == torch.bool
    assert (hidden.sum(1) == expected).all()
    tiles = hidden.view(-1, side // square, square, side // square, square).transpose(2, 3).flatten(3)
    assert (tiles.all(3) == tiles.any(3)).all()
    often = hidden.float().mean(0)
    assert (often - expected / side**2).abs().max() < 0.12  # every patch alike


def test_what_is_blanked_cannot_be_told(pictures):
    torch.manual_seed(0)
    encoder, x = build_encoder(SMALL["ViT"], FACTS).eval(), pictures[:2].float() / 255
    blank = torch.randn(encoder.dim)
    hidden = image.hidden_squares(x, 4, 2, 0.6)
    where = F.interpolate(hidden.view(2, 1, 4, 4).float(), scale_factor=4) == 1
    changed = torch.where(where, torch.rand_like(x), x)
    assert torch.equal(encoder.enter(x, hidden, blank), encoder.enter(changed, hidden, blank))
    seen = torch.where(where, x, torch.rand_like(x))
    assert not torch.equal(encoder.enter(x, hidden, blank), encoder.enter(seen, hidden, blank))
    nothing = torch.zeros_like(hidden)
    torch.testing.assert_close(encoder.transformer(encoder.enter(x, nothing, blank)), encoder.tokens(x))


@pytest.mark.parametrize("name", ["simmim", "data2vec"])
def test_only_what_is_hidden_is_asked_for(name, params, pictures):
    """The loss does not depend on what the head says of a patch that is seen."""
    method, seen = made(params, name, square=1), {}

    def disturb(_, inputs, output: Tensor) -> Tensor:
        noise = torch.zeros_like(output)
        noise[~seen["hidden"]] = 100
        return output + noise

    draw = image.hidden_squares

    def losses() -> list[float]:
        torch.manual_seed(0)
        return method(next(batches(pictures, 1)))[0].item()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "hidden_squares", lambda *a: seen.setdefault("hidden", draw(*a)))
        plain = losses()
        method.head.register_forward_hook(disturb)
        assert losses() == plain


@pytest.mark.parametrize(("side", "height", "width"), [(8, 3, 4), (4, 1, 2), (4, 4, 1)])
def test_blocks_are_rectangles_inside_the_picture(side, height, width):
    torch.manual_seed(0)
    places = draw_blocks(torch.zeros(300, 3, 1, 1), side, 4, height, width)
    assert places.shape == (300, 4, height * width)
    rows, columns = places // side, places % side
    shapes = torch.stack([rows.amax(2) - rows.amin(2) + 1, columns.amax(2) - columns.amin(2) + 1], dim=-1)
    assert set(map(tuple, shapes.flatten(0, 1).tolist())) == {(height, width), (width, height)}
    assert (places.sort(2).values.diff(dim=2) > 0).all()  # so many places in so large a rectangle: all of it
    assert places.min() == 0
    assert places.max() == side**2 - 1
    assert len(places[:, 0, 0].unique()) > side


def test_context_is_never_covered_by_a_block():
    torch.manual_seed(0)
    blocks = draw_blocks(torch.zeros(200, 3, 1, 1), 8, 4, 3, 4)
    context = draw_context(blocks, 64, 16)
    assert not (context[:, :, None] == blocks.flatten(1)[:, None]).any()
    assert (context.sort(1).values.diff(dim=1) > 0).all()
    assert len(context.unique()) == 64


@pytest.mark.parametrize("name", ["simmim", "data2vec", "ijepa"])
def test_a_mask_that_does_not_fit_is_refused(name, params):
    with pytest.raises(Exception, match="methods") as caught:
        made(params, name, **({"blocks": 16} if name == "ijepa" else {"square": 3}))
    assert "patches" in str(caught.value)


# ---- The losses of the masked


def test_simmim_is_equation_1():
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 4, 5)
    hidden = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1]]).bool()
    slow = mean(
        [
            (predicted[n, i, p] - target[n, i, p]).abs()
            for n, i, p in itertools.product(range(2), range(4), range(5))
            if hidden[n, i]
        ]
    )
    same_with_gradients(absolute_error(predicted, target, hidden), slow, predicted)
    assert not torch.autograd.grad(absolute_error(predicted, target, hidden), predicted)[0][~hidden].any()
    assert absolute_error(target + 0.25, target, hidden).item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_data2vec_is_equation_3(beta):
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 4, 5)
    hidden = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1]]).bool()
    terms = []
    for n, i, d in itertools.product(range(2), range(4), range(5)):
        if hidden[n, i]:
            gap = (target[n, i, d] - predicted[n, i, d]).abs()
            terms.append(gap**2 / (2 * beta) if gap <= beta else gap - beta / 2)
    same_with_gradients(hidden_regression(predicted, target, hidden, beta), mean(terms), predicted)
    assert hidden_regression(target + 5, target, hidden, beta).item() == pytest.approx(5 - beta / 2, rel=1e-5)


def test_data2vec_averages_normalised_layers():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 6) * 5 + 1, torch.randn(2, 3, 6)
    slow = sum((x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, correction=0).sqrt() for x in (a, b)) / 2
    torch.testing.assert_close(mean_of_layers(a, b), slow, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean_of_layers(7 * a + 3, b), mean_of_layers(a, b), rtol=1e-3, atol=1e-3)


def test_data2vecs_layers_are_those_of_the_encoder(pictures):
    """Each perceptron's output is what its block adds last."""
    encoder, x = build_encoder(SMALL["ViT"], FACTS).eval(), pictures[:2].float() / 255
    added = []
    for block in encoder.transformer.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, output: added.append(output))
    encoder.tokens(x)
    assert len(added) == 2
    for ours, theirs in zip(feed_forwards(encoder, x), list(added), strict=False):
        torch.testing.assert_close(ours, theirs)


def test_data2vecs_targets_are_of_the_top_layers_alone(params, pictures):
    method, batch, losses = made(params, "data2vec", top=1), next(batches(pictures, 1)), []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            method.teacher.transformer.blocks[-1].mlp[-1].weight.mul_(scale)
            method.teacher.transformer.blocks[-1].mlp[-1].bias.mul_(scale)
        torch.manual_seed(0)
        losses.append(method(batch)[1]["spread"].item())
    assert losses[0] > 0
    assert losses[1] == 0  # the other layers still say what they said


def test_ijepa_is_the_smooth_distance_to_normed_features():
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 2, 3, 6, requires_grad=True), torch.randn(2, 2, 3, 6) * 4 + 1
    normed = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    gaps = (predicted - normed).abs().flatten()
    slow = mean([gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps])
    same_with_gradients(distance(predicted, target), slow, predicted)
    assert distance(normed + 3, target).item() == pytest.approx(2.5, rel=1e-4)


def test_ijepas_targets_are_the_tokens_that_lightlys_masks_cut_out(params, pictures, monkeypatch):
    lightly = pytest.importorskip("lightly.models.utils")
    method, seen = made(params, "ijepa", strength=0), {}
    file = "ssl_methods.masked.ijepa"
    monkeypatch.setattr(f"{file}.draw_blocks", lambda *a: seen.setdefault("places", draw_blocks(*a)))
    monkeypatch.setattr(f"{file}.distance", lambda p, target: seen.setdefault("target", target).mean() + p.mean())
    batch = next(batches(pictures, 1))
    method(batch)
    whole = method.teacher.tokens(batch["image"].float() / 255)
    theirs = lightly.apply_masks(whole, list(seen["places"].unbind(1)))  # block after block, (M * N, T, D)
    torch.testing.assert_close(seen["target"].transpose(0, 1).flatten(0, 1), theirs)


def test_ijepas_predictor_is_told_where_to_look(params, pictures):
    """Were it not, it would say the same of every place."""
    method, said = made(params, "ijepa"), []
    method.leave.register_forward_hook(lambda _, inputs, output: said.append(output))
    method(next(batches(pictures, 1)))
    blocks = said[0].unflatten(0, (8, 4)).detach()  # (N, M, T, D)
    assert (blocks[:, :, 0] - blocks[:, :, 1]).norm(dim=-1).min() > 1e-3


def test_ijepas_target_encoder_follows_ever_slower_and_is_what_remains(params, pictures):
    method = made(params, "ijepa", momentum=0.5)
    start = method.teacher.embed.weight.clone()
    with torch.no_grad():
        method.encoder.embed.weight.add_(1)
    for method.progress, expected in ((0.0, 0.5), (0.5, 0.625)):  # halfway the momentum is 0.75
        method.after_step()
        torch.testing.assert_close(method.teacher.embed.weight, start + expected)
        assert not torch.equal(method.encoder.embed.weight, method.teacher.embed.weight)
    method.progress = 1.0
    method.after_step()
    torch.testing.assert_close(method.teacher.embed.weight, start + 0.625)
    assert torch.equal(method.encoder.embed.weight, method.teacher.embed.weight)


def test_data2vecs_teacher_follows_at_one_pace_and_the_student_remains(params):
    method = made(params, "data2vec", momentum=0.75)
    start = method.teacher.embed.weight.clone()
    with torch.no_grad():
        method.encoder.embed.weight.add_(1)
    student = method.encoder.embed.weight.clone()
    method.progress = 1.0
    method.after_step()
    torch.testing.assert_close(method.teacher.embed.weight, start + 0.25)
    assert torch.equal(method.encoder.embed.weight, student)


# ---- What they learn


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("dino", {"prototypes": 64, "crops": 2, "momentum": 0.9}),
        ("swav", {"prototypes": 32, "crops": 2, "queue": 128}),
        ("deepcluster", {"prototypes": 64, "rounds": 15}),
    ],
)
def test_those_that_group_tell_pictures_apart_under_views(name, hyper, params, pictures, tmp_path):
    untrained = made(params, "untrained").eval()
    method, _ = pretrained(pictures, params, name, tmp_path, 120, strength=0.5, **hyper)
    assert matched(method, pictures) > matched(untrained, pictures) + 0.05


def test_simmim_paints_what_is_hidden_better_than_the_mean_picture(params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, "simmim", tmp_path, 300, lr=5e-3, strength=0, square=1)
    x = (pictures.float() / 255 - 0.5) * 4
    assert curve[-1]["loss"] < 0.8 * (x - x.mean(0)).abs().mean().item()


@pytest.mark.parametrize(("name", "hyper"), [("ijepa", {}), ("data2vec", {"square": 1})])
def test_those_that_foretell_features_do_it_for_their_own_picture(name, hyper, params, tmp_path):
    """What they say of a picture fits another worse, so the picture was looked at and the teacher has not collapsed.

    Each picture has one colour, which is brighter below: what is seen tells what is hidden.
    """
    colours = torch.rand(256, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    pictures = (200 * colours + torch.linspace(0, 55, 16)[:, None]).expand(256, 3, 16, 16).to(torch.uint8)
    method, curve = pretrained(pictures, params, name, tmp_path, 200, momentum=0.95, strength=0, **hyper)
    batch = {"image": pictures[:64]}

    def loss() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return method(batch)[0].item()

    own, embed = loss(), method.teacher.embed
    embed.register_forward_hook(lambda _, inputs, output: output.roll(1, 0))  # the teacher sees another picture
    assert own < 0.3 * loss()
    assert curve[-1]["spread"] > 0.1


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("dino", {"prototypes": 32, "crops": 1}),
        ("swav", {"prototypes": 32, "crops": 1, "queue": 64, "start": 0.3}),
        ("deepcluster", {"prototypes": 16, "rounds": 4}),
        ("ijepa", {}),
    ],
)
def test_an_interrupted_run_ends_the_same(name, hyper, params, pictures, tmp_path, monkeypatch):
    np.save(tmp_path / "image.npy", pictures.numpy())
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)

    def ended(log=None, keep: Path | None = None) -> dict[str, Tensor]:
        method = made(params, name, **hyper)
        columns = Columns(tmp_path, method.columns, torch.device("cpu"))
        torch.manual_seed(0 if keep is None or log else 99)  # a resumed run takes the random state from its checkpoint
        fit(method, columns, TRAINING, steps=12, seed=0, log=log, keep=keep)
        return method.state_dict()

    def stop_at_7(step: int, **numbers: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    straight = ended()
    (tmp_path / "keep").mkdir()
    with pytest.raises(KeyboardInterrupt):
        ended(stop_at_7, tmp_path / "keep")
    resumed = ended(keep=tmp_path / "keep")
    for key, value in straight.items():
        assert torch.equal(value, resumed[key]), key


@pytest.mark.parametrize("name", ["dino", "swav", "deepcluster"])
def test_gradients_flow_once_there_is_something_to_learn(name, params, pictures):
    """At the very first step DeepCluster only remembers, and SwAV's prototypes are frozen."""
    method = made(params, name)
    for method.progress in (0.0, 0.6):
        loss, _ = method(next(batches(pictures, 1)))
        descend(torch.optim.SGD(method.parameters()), loss, 0.0, None)
        if method.progress == 0:
            method.progress = 0.5
            method.after_step()
    assert all(p.grad is not None and p.grad.any() for p in method.encoder.parameters())
    learned = [p for n, p in method.named_parameters() if p.requires_grad and p.ndim > 1]
    assert all(p.grad is not None and p.grad.any() for p in learned)
