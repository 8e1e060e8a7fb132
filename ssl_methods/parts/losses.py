"""Losses that several methods share, and what losses are written with."""

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .processes import averaged, gather, processes


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Computes a loss in float32, whatever precision the networks before it run in."""

    @functools.wraps(loss)
    def exact(*arguments, **settings):
        floats = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
        device = floats[0].device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return loss(*floats, **settings)

    return exact


def masked_mean(error: Tensor, counts: Tensor) -> Tensor:
    """The mean of `error` (...) over the places where `counts` (...) is true, or 1; 0 where there are none.

    On several processes, their mean is that of all places.
    """
    return (error * counts).sum() / averaged(counts.sum()).clamp(min=1 / processes())


@in_float32
def info_nce(q: Tensor, k: Tensor, temperature: float, among: Tensor | None = None) -> Tensor:
    """Each query must find its own key among all keys of the batch: q, k (N, D), not yet normalised.

        - log  exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T)               with the cosine similarity

    With groups `among` (N,), j runs over the query's own group alone.

    van den Oord, Li, Vinyals. Representation Learning with Contrastive Predictive Coding. 2018.
    https://arxiv.org/abs/1807.03748
    """
    s = F.normalize(gather(q), dim=1) @ F.normalize(gather(k), dim=1).T / temperature  # (N, N)
    if among is not None:
        group = gather(among)
        s = s.masked_fill(group[:, None] != group, -torch.inf)
    return F.cross_entropy(s, torch.arange(len(s), device=s.device))


class CrossEntropy(torch.autograd.Function):
    """- log softmax(logits) at the target, (M, V), (M,) -> (M,), in float32: what F.cross_entropy says, for a CPU.

    It takes half of the time there: some rows at once, which stay in the core's cache from one operation to the next,
    and the gradient, which is the softmax but for the target, in the same pass.
    """

    BLOCK = 2**17  # logits

    @staticmethod
    def forward(context, logits, target):
        few = max(1, CrossEntropy.BLOCK // logits.shape[1])
        found, slope = [], torch.empty_like(logits)
        for rows, at, down in zip(*(x.split(few) for x in (logits, target[:, None], slope)), strict=True):
            p = rows.float().log_softmax(1)
            told = p.gather(1, at)
            down.copy_(p.exp_().scatter_(1, at, told.expm1()))  # p, but p - 1 at the target
            found.append(told[:, 0].neg_())
        context.save_for_backward(slope)
        return torch.cat(found)

    @staticmethod
    def backward(context, above):
        (slope,) = context.saved_tensors
        return slope * above[:, None].to(slope.dtype), None


def counted(counts: Tensor, *values: Tensor) -> list[Tensor]:
    """In rows, and most of what does not count left out: counts (N, M), values (N, M, ...) -> (T,), (T, ...).

    T is a multiple of 64, for a CPU prepares anew for each size of a matrix. Elsewhere it is N * M, and nothing is left
    out: to know how many count is to wait for the device.
    """
    rows = [x.flatten(0, 1) for x in (counts, *values)]
    if counts.device.type != "cpu":
        return rows
    most = -(-int(counts.sum()) // 64) * 64
    places = rows[0].byte().argsort(descending=True, stable=True)[:most]
    return [x.index_select(0, places) for x in rows]


def token_loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The cross-entropy of tokens, averaged over the places that count. (..., V), (...), (...)."""
    logits, target = logits.flatten(0, -2), target.flatten().long()
    if logits.device.type == "cpu":
        cross = CrossEntropy.apply(logits, target)
    else:
        cross = F.cross_entropy(logits.float(), target, reduction="none")
    return masked_mean(cross.view_as(counts), counts)


def token_accuracy(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The share of the places that count where no token is likelier than the right one. (..., V), (...), (...)."""
    most = logits.amax(-1)  # to ask which token it is takes five to ten times as long on a CPU
    return masked_mean((logits.gather(-1, target.long()[..., None])[..., 0] == most).float(), counts)


@in_float32
def labelled_loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy with the labels and the share told right, over the rows that have one. (N, C), (N,)

    Rows with label -1 do not count; both are 0 where there is no other.
    """
    count = averaged((y >= 0).sum()).clamp(min=1 / processes())
    loss = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
    return loss / count, (logits.argmax(1) == y).sum() / count


@in_float32
def swapped(targets: Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of every view with the target of every *other* view, averaged over these pairs and the batch.

    targets: (G, N, K), distributions for the first G views; logits: (V, N, K), of all V views.
    """
    cross = -torch.einsum("gnk,vnk->gv", targets, logits.log_softmax(-1)) / logits.shape[1]  # (G, V)
    return (cross.sum() - cross.diagonal().sum()) / (cross.numel() - len(targets))
