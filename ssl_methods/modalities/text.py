"""Text: the column `token`, int32 (N, L), rows of token ids as a vocabulary numbers them, padded with 0.

A row is a sentence: [CLS], its tokens, [SEP]. Where an order is known, the column `next` has the sentence that follows,
in the same form, or zeros where none does.
"""

import torch
from torch import Tensor, nn

from ..parts.processes import gather, places_of

columns = ("token",)
partner_columns = ("document",)

PAD, CLS, SEP, MASK, UNK = range(5)  # the ids that every vocabulary begins with


def embed(encoder: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation reads: the features (N, D) of each tower, here only one, at each of its depths, by name."""
    return {"text": encoder.depths(batch["token"])}


def features(encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The deepest features (N, D) alone, as fine-tuning needs them."""
    return encoder(batch["token"])


def partners(towers: dict[str, dict[str, Tensor]], columns: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation looks for in what: articles by their headline, or else their first sentence.

    An article is the mean of its other sentences; one without others is none. Features are the deepest.
    """
    *_, h = towers["text"].values()  # (N, D)
    document = columns["document"].unique(return_inverse=True)[1]  # (N,)
    place = torch.arange(len(h), device=h.device)
    first = torch.full((int(document.max()) + 1,), len(h), device=h.device).scatter_reduce(0, document, place, "amin")
    others = torch.ones(len(h), device=h.device).index_fill(0, first, 0)
    counts = torch.zeros(len(first), device=h.device).index_add(0, document, others)  # (documents,)
    totals = torch.zeros(len(first), h.shape[1], device=h.device).index_add(0, document, h * others[:, None])
    whole = counts > 0
    if not whole.any():
        return {}
    articles = totals[whole] / counts[whole, None]
    return {"headline to article": {"queries": h[first[whole]], "gallery": articles}}


def choose(ids: Tensor, share: float) -> Tensor:
    """Which words to hide: `share` of each sentence's at random, at least one. (N, L) -> true where hidden, (N, L)."""
    words = ids > MASK
    order = torch.rand(ids.shape, device=ids.device).masked_fill_(~words, 2.0).argsort(1).argsort(1)  # words first
    return words & (order < (words.sum(1, keepdim=True) * share).round().clamp(min=1))


def corrupt(ids: Tensor, hidden: Tensor, vocabulary: int) -> Tensor:
    """The sentences with their chosen words hidden: 80 % become [MASK], 10 % a random word, 10 % stay. Same shape.

    Devlin et al. 2019 (BERT), section 3.1. `hidden` (N, L) is that of `choose`.
    """
    fate = torch.rand(ids.shape, device=ids.device)
    random = torch.randint(UNK + 1, vocabulary, ids.shape, device=ids.device, dtype=ids.dtype)
    new = torch.where(fate < 0.8, MASK, torch.where(fate < 0.9, random, ids))
    return torch.where(hidden, new, ids)


def pairs(ids: Tensor, follows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each sentence (N, L) and, at even odds, what follows it or what follows another of the batch.

    Returns the pairs (N, 2L - 1), [CLS] A [SEP] ... B [SEP] ..., where B always begins at place L; whether B is the
    true one (N,); and which pairs count (N,): those where both sentences that B was drawn from exist.
    """
    n, every = len(ids), gather(follows)  # every: (all N, L)
    step = torch.randint(1, max(len(every), 2), (n,), device=ids.device)
    other = every[(places_of(ids) + step) % len(every)]  # never its own
    true = torch.rand(n, device=ids.device) < 0.5
    second = torch.where(true[:, None], follows, other)[:, 1:]  # without its [CLS]
    return torch.cat([ids, second], dim=1), true, (follows[:, 0] > 0) & (other[:, 0] > 0)


def means(encoder: nn.Module, h: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each sentence's tokens in a pair of `pairs`: (N, 2L - 1, D), (N, 2L - 1) -> (N, D) twice.

    It is 0 where a sentence is missing.
    """
    (h1, h2), (ids1, ids2) = h.chunk(2, dim=1), pair.chunk(2, dim=1)
    return encoder.mean(h1, ids1), encoder.mean(h2, ids2)
