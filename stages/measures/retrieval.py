"""Retrieval: how often a query finds its own partner, among all rows or among those of its group.

    rank_i = 1 + #{j: s(q_i, g_j) > s(q_i, g_i)} + 1/2 #{j != i: s(q_i, g_j) = s(q_i, g_i)},   s: the cosine

A tie counts as half a place, so features that are all alike rank in the middle, as guessing does, and a partner tied
with another is never the first. What is no number ranks last.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SAME = 1e-6  # cosines that differ by less differ by rounding


def retrieval(queries: Tensor, gallery: Tensor, groups: Tensor | None = None, *, block: int = 1024) -> dict[str, float]:
    """Row i of the queries (N, D) belongs to row i of the gallery (N, D), and with `groups` (N,) looks among its group.

    In percent, queries whose partner is among the first 1, 5 and 10 (`r1`, `r5`, `r10`), and what guessing would find
    first (`chance_r1`); and the partners' `median_rank`. `block` queries are compared at a time.
    """
    groups = torch.zeros(len(queries), device=queries.device) if groups is None else groups
    blocks = ranks(queries, gallery, groups, block)
    rank, size = (torch.cat(parts) for parts in zip(*blocks, strict=True))  # (N,) each
    found = {f"r{most}": 100 * (rank <= most).double().mean().item() for most in (1, 5, 10)}
    guessed = 100 * size.double().reciprocal().mean().item()
    return {**found, "median_rank": rank.quantile(0.5).item(), "chance_r1": guessed}


def ranks(queries: Tensor, gallery: Tensor, groups: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rank of each query's partner, and the size of its group, (n,) each, block by block."""
    q, g = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    for rows in torch.arange(len(q), device=q.device).split(block):
        inside = groups[rows, None] == groups  # (n, N)
        s = q[rows] @ g.T
        margin = s - s.gather(1, rows[:, None])
        above, tied = ~(margin <= SAME) & inside, (margin.abs() <= SAME) & inside  # the partner is tied with itself
        yield 1 + above.sum(1) + (tied.sum(1) - 1) / 2, inside.sum(1)
