"""Retrieval: how often a query finds its own partner, among all of a gallery or among those of its group.

The rank of a query's partner, and where several are right, of the nearest of them:

    rank_i = 1 + #{j: s(q_i, g_j) > s(q_i, g_i)} + 1/2 #{j != i: s(q_i, g_j) = s(q_i, g_i)},   s: the cosine

where g_i is the nearest partner, and j runs over what is wrong. The average precision of a query with partners P:

    AP_i = mean over p in P of  place of p among P / place of p among all

with places as above (Manning, Raghavan, Schütze. Introduction to Information Retrieval. 2008, section 8.4,
https://nlp.stanford.edu/IR-book/). A tie counts as half a place, so features that are all alike rank in the middle, as
guessing does, and a partner tied with another is never the first. What is no number ranks last.
"""

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
    beyond: tuple[Tensor, Tensor] | None = None,
    block: int = 1024,
) -> dict[str, float]:
    """How well queries (N, D) find their partners in a gallery (M, D).

    The partners of a query are what has the name (`names`, (M,)) that it wants (`wanted`, (N,)); without, row i belongs
    to row i. With groups `among` (N,), each looks in its own group alone, and N is M. With groups `beyond`, (N,) of the
    queries and (M,) of the gallery, what has the wanted name and is of the query's own group, as the query itself, is
    passed over. `block` queries are compared at a time.

    In percent, queries whose partner is among the first 1, 5 and 10 (`r1`, `r5`, `r10`), what guessing would find first
    (`chance_r1`), and the mean average precision (`map`); and the partners' `median_rank`. Every query needs a partner.
    """
    wanted = torch.arange(len(queries), device=queries.device) if wanted is None else wanted
    names = torch.arange(len(gallery), device=gallery.device) if names is None else names
    q, g, found = F.normalize(queries, dim=1), F.normalize(gallery, dim=1), []
    for rows in torch.arange(len(q), device=q.device).split(block):
        right = wanted[rows, None] == names  # (n, M)
        inside = torch.ones_like(right) if among is None else among[rows, None] == among
        if beyond is not None:
            inside &= ~(right & (beyond[0][rows, None] == beyond[1]))
        found.append(ranks(q[rows] @ g.T, right & inside, inside & ~right))
    rank, precision, guessed = (torch.cat(parts) for parts in zip(*found, strict=True))  # (N,) each
    return {
        **{f"r{most}": 100 * (rank <= most).double().mean().item() for most in (1, 5, 10)},
        "median_rank": rank.quantile(0.5).item(),
        "chance_r1": 100 * guessed.mean().item(),
        "map": 100 * precision.mean().item(),
    }


def ranks(s: Tensor, right: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries whose cosines with a gallery are `s` (n, M), and which of it is right for each, and which wrong:

    the rank of the nearest right one, the average precision, and the share of what is right; (n,) each, in float64.
    """
    s = s.masked_fill(s.isnan() & right, -torch.inf).masked_fill(s.isnan() & wrong, torch.inf)
    partners = right.sum(1)
    nearest = s.masked_fill(~right, -torch.inf).topk(int(partners.max()), dim=1).values  # (n, P), then -inf
    before = [ahead(s, place, wrong) for place in nearest.T]  # (n,) each
    total = torch.zeros(len(s), dtype=torch.float64, device=s.device)
    for i, place in enumerate(nearest.T):
        own = ahead(s, place, right) + 0.5  # its place among partners: it is tied with itself, which is half a place
        total += torch.where(i < partners, own / (own + before[i]), 0)
    return 1 + before[0], total / partners, partners / (right | wrong).sum(1).double()


def ahead(s: Tensor, place: Tensor, those: Tensor) -> Tensor:
    """How many of `those` (n, M) have a higher `s` (n, M) than `place` (n,), and half of how many have the same."""
    lower, upper = (place - SAME)[:, None], (place + SAME)[:, None]
    return (((s > upper) & those).sum(1) + ((s >= lower) & those).sum(1)).double() / 2
