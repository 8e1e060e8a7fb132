"""Every loss against a slow, obvious reference written from its paper's equation, and against a closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_methods.contrastive.moco import info_nce
from ssl_methods.contrastive.simclr import nt_xent
from ssl_methods.distillation.byol import regression
from ssl_methods.distillation.simsiam import negative_cosine
from ssl_methods.encoders.transformers import patchify
from ssl_methods.masked.mae import hidden_error, normalise
from ssl_methods.parts.heads import mlp
from ssl_methods.parts.losses import in_float32
from ssl_methods.parts.statistics import spread
from ssl_methods.parts.teachers import follow, teacher_of


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def slow_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's Eq. (1), term by term."""
    z = [*z1, *z2]
    n, total = len(z1), torch.zeros(())
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum((cosine(z[i], z[k]) / temperature).exp() for k in range(2 * n) if k != i)
        total = total - ((cosine(z[i], z[j]) / temperature).exp() / others).log()
    return total / (2 * n)


def slow_info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's Eq. (1), term by term."""
    total = torch.zeros(())
    for i in range(len(q)):
        positive = (q[i].dot(k[i]) / temperature).exp()
        total = total - (positive / (positive + sum((q[i].dot(old) / temperature).exp() for old in queue))).log()
    return total / len(q)


def slow_hidden_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """MAE's loss, value by value: only hidden patches count."""
    errors = [
        (predicted[n, i, p] - target[n, i, p]) ** 2
        for n in range(hidden.shape[0])
        for i in range(hidden.shape[1])
        for p in range(target.shape[2])
        if hidden[n, i]
    ]
    return sum(errors) / len(errors)


def same_with_gradients(fast: Tensor, slow: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_equation_1_with_its_gradient(views, temperature):
    same_with_gradients(nt_xent(*views, temperature), slow_nt_xent(*views, temperature), *views)


def test_nt_xent_of_collapsed_features_is_log_of_all_others():
    z = torch.ones(7, 3)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(2 * 7 - 1), rel=1e-6)


def test_nt_xent_of_orthogonal_pairs_has_its_closed_form():
    z, t = torch.eye(4), 0.5  # partners at cosine 1, all 6 others at cosine 0
    assert nt_xent(z, z, t).item() == pytest.approx(-1 / t + math.log(math.exp(1 / t) + 6), rel=1e-5)


def test_nt_xent_does_not_care_for_scale_or_for_which_view_comes_first(views):
    z1, z2 = views
    torch.testing.assert_close(nt_xent(z1, z2, 0.5), nt_xent(3 * z2, 7 * z1, 0.5))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_is_equation_1_with_its_gradient(views, temperature):
    q, k = (F.normalize(v.detach(), dim=1).requires_grad_() for v in views)
    queue = F.normalize(torch.randn(9, 5), dim=1)
    same_with_gradients(info_nce(q, k, queue, temperature), slow_info_nce(q, k, queue, temperature), q, k)


def test_info_nce_of_collapsed_features_is_log_of_the_queue_and_one():
    one = F.normalize(torch.ones(3, 4), dim=1)
    assert info_nce(one, one, one[:1].expand(10, 4), 0.2).item() == pytest.approx(math.log(11), rel=1e-6)


def test_byol_regresses_unit_vectors(views):
    p, z = views
    slow = sum((a / a.norm() - b / b.norm()).square().sum() for a, b in zip(p, z, strict=True)) / len(p)
    same_with_gradients(regression(p, z), slow, p, z)


@pytest.mark.parametrize(("scale", "expected"), [(2.0, 0.0), (-3.0, 4.0)])
def test_byol_closed_forms(views, scale, expected):
    p = views[0].detach()
    assert regression(p, scale * p).item() == pytest.approx(expected, abs=1e-5)


def test_simsiam_is_the_negative_cosine_and_its_target_is_constant(views):
    p, z = views
    slow = -sum(cosine(a, b) for a, b in zip(p, z.detach(), strict=True)) / len(p)
    same_with_gradients(negative_cosine(p, z), slow, p)
    negative_cosine(p, z).backward()
    assert z.grad is None
    assert negative_cosine(p, p).item() == pytest.approx(-1, abs=1e-6)


def test_mae_counts_hidden_patches_alone():
    torch.manual_seed(0)
    predicted, target = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, 5)
    hidden = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1.0]])
    same_with_gradients(
        hidden_error(predicted, target, hidden), slow_hidden_error(predicted, target, hidden), predicted
    )
    gradient = torch.autograd.grad(hidden_error(predicted, target, hidden), predicted)[0]
    assert (gradient[hidden == 0] == 0).all()


def test_mae_targets_have_no_mean_and_unit_variance():
    patches = normalise(torch.rand(2, 3, 48) * 5 + 1)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 3), atol=1e-4, rtol=0)
    assert normalise(torch.full((1, 1, 48), 0.3)).isfinite().all()  # an even patch


def test_losses_are_computed_in_float32_under_autocast(views):
    z1, z2 = (v.detach() for v in views)
    with torch.autocast("cpu", torch.bfloat16):
        low = nt_xent(z1.bfloat16(), z2.bfloat16(), 0.1)
    exact = nt_xent(z1.bfloat16().float(), z2.bfloat16().float(), 0.1)
    assert low.dtype == torch.float32
    assert low.item() == exact.item()


def test_in_float32_keeps_the_name_of_what_it_wraps():
    assert in_float32(nt_xent).__name__ == "nt_xent"


def test_spread_is_one_on_the_sphere_and_zero_when_collapsed():
    torch.manual_seed(0)
    assert spread(torch.randn(5000, 64)).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(50, 64)).item() == pytest.approx(0, abs=1e-5)


def test_a_teacher_is_a_moving_average_that_no_gradient_reaches():
    student = mlp(3, 4, 2)
    teacher = teacher_of(student)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p += 1
    follow(teacher, student, 0.9)
    for old, new in zip(before, teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
        assert not new.requires_grad


# ---- Against lightly, with gradients


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_lightlys(views, temperature):
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    same_with_gradients(nt_xent(*views, temperature), theirs(*views), *views)


def test_info_nce_is_lightlys_with_a_memory_bank(views):
    """Theirs normalises by itself."""
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2, memory_bank_size=(9, 5))
    queue = F.normalize(torch.randn(9, 5), dim=1)
    theirs.memory_bank.bank, theirs.memory_bank.bank_ptr = queue.clone(), torch.zeros(1, dtype=torch.long)
    q, k = (F.normalize(v, dim=1) for v in views)
    same_with_gradients(info_nce(q, k, queue, 0.2), theirs(*views), *views)


def test_negative_cosine_is_lightlys_and_byols_loss_two_and_twice_it(views):
    p, z = views
    theirs = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    same_with_gradients(negative_cosine(p, z), theirs(p, z.detach()), p)
    same_with_gradients(regression(p, z), 2 + 2 * theirs(p, z), p, z)


def test_mae_is_lightlys():
    """Their patches have the colours last, ours first; they too divide by the unbiased variance."""
    lightly = pytest.importorskip("lightly.models.utils")
    x = torch.rand(3, 3, 16, 16)
    theirs = lightly.patchify(x, 4).unflatten(2, (16, 3)).transpose(2, 3).flatten(2)
    ours = patchify(x, 4)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(normalise(ours), lightly.normalize_mean_var(theirs), rtol=1e-5, atol=1e-5)

    predicted = torch.randn(3, 16, 48, requires_grad=True)
    keep, masked = lightly.random_token_mask((3, 16), mask_ratio=0.75, mask_class_token=True)
    hidden = torch.zeros(3, 16).scatter(1, masked, 1.0)
    assert (16 - keep.shape[1]) == hidden.sum(1)[0] == 12
    told, true = (lightly.get_at_index(patches, masked) for patches in (predicted, normalise(ours)))
    same_with_gradients(hidden_error(predicted, normalise(ours), hidden), F.mse_loss(told, true), predicted)
