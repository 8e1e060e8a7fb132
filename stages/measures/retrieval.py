"""Retrieval: how often a query finds its own partner, among all of a gallery or among those of its group.

    rank_i = 1 + #{j: s(q_i, g_j) > s(q_i, g_i)} + 1/2 #{j != i: s(q_i, g_j) = s(q_i, g_i)},   s: the cosine

Where several partners are right, g_i is the nearest of them, and j runs over what is wrong. A tie counts as half a
place, so features that are all alike rank in the middle, as guessing does, and a partner tied with another is never the
first. What is no number ranks last.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SAME = 1e-6  # cosines that differ by less differ by rounding


def retrieval(
    queries: Tensor,
    gallery: Tensor,
    *,
    wanted: Tensor | None = None,
    names: Tensor | None = None,
    among: Tensor | None = None,
    block: int = 1024,
) -> dict[str, float]:
    """How well queries (N, D) find their partners in a gallery (M, D).

    The partners of a query are what has the name (`names`, (M,)) that it wants (`wanted`, (N,)); without, row i belongs
    to row i. With groups `among` (N,), each looks in its own group alone, and N is M. `block` queries are compared at a
    time.

    In percent, queries whose partner is among the first 1, 5 and 10 (`r1`, `r5`, `r10`), and what guessing would find
    first (`chance_r1`); and the partners' `median_rank`.
    """
    wanted = torch.arange(len(queries), device=queries.device) if wanted is None else wanted
    names = torch.arange(len(gallery), device=gallery.device) if names is None else names
    blocks = ranks(queries, gallery, wanted, names, among, block)
    rank, guessed = (torch.cat(parts) for parts in zip(*blocks, strict=True))  # (N,) each
    found = {f"r{most}": 100 * (rank <= most).double().mean().item() for most in (1, 5, 10)}
    chance = 100 * guessed.mean().item()
    return {**found, "median_rank": rank.quantile(0.5).item(), "chance_r1": chance}


def ranks(
    queries: Tensor, gallery: Tensor, wanted: Tensor, names: Tensor, among: Tensor | None, block: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rank of each query's nearest partner, and the share of partners in what it looks through, block by block."""
    q, g = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    for rows in torch.arange(len(q), device=q.device).split(block):
        right = wanted[rows, None] == names  # (n, M)
        inside = torch.ones_like(right) if among is None else among[rows, None] == among
        s = q[rows] @ g.T
        best = s.masked_fill(~(right & inside) | s.isnan(), -torch.inf).amax(1, keepdim=True)
        margin, wrong = s - best, inside & ~right
        above, tied = ~(margin <= SAME) & wrong, (margin.abs() <= SAME) & wrong
        yield 1 + above.sum(1) + tied.sum(1) / 2, (right & inside).sum(1) / inside.sum(1).double()
