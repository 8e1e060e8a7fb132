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


@in_float32
def labelled_loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy with the labels and the share told right, over the rows that have one. (N, C), (N,)

    Rows with label -1 do not count; both are 0 where there is no other. On several processes, their mean is that of all
    rows.
    """
    count = averaged((y >= 0).sum()).clamp(min=1 / processes())
    loss = F.cross_entropy(logits, y.long(), ignore_index=-1, reduction="sum")
    return loss / count, (logits.argmax(1) == y).sum() / count


@in_float32
def swapped(targets: Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of every view with the target of every *other* view, averaged over these pairs and the batch.

    targets: (G, N, K), distributions for the first G views; logits: (V, N, K), of all V views.
    """
    cross = -torch.einsum("gnk,vnk->gv", targets, logits.log_softmax(-1)) / logits.shape[1]  # (G, V)
    return (cross.sum() - cross.diagonal().sum()) / (cross.numel() - len(targets))
