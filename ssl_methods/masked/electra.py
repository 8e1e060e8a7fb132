"""ELECTRA: a small generator replaces some words by likely ones, and the encoder must tell which.

Clark, Luong, Le, Manning. ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators. ICLR 2020.
https://arxiv.org/abs/2003.10555

    x_masked = the sentence with 15 % of its words as [MASK],   x_corrupt = with words drawn from p_G(. | x_masked)
    L = L_MLM(x_masked; G) + w * mean over tokens of L_Disc(x_corrupt; D)               section 2, w = 50
    L_Disc = - log D(x_corrupt, t) where the word is the original, - log(1 - D(x_corrupt, t)) where it is not

No gradient passes through the drawing. As in the paper, the two share their embeddings.

Departs from the paper: one sentence at a time; the special tokens are not asked about.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..encoders.transformers import Transformer
from ..modalities import text
from ..parts.heads import TokenHead
from ..parts.losses import in_float32, labelled_loss, masked_mean
from ..parts.statistics import Unigram


@in_float32
def draw_words(logits: Tensor, chance: Tensor) -> Tensor:
    """From each distribution (T, V) the first word whose cumulative share passes a random one, `chance` (T,): (T,).

    `torch.multinomial` draws a number for every word of the vocabulary, and training takes a fifth longer on a CPU.
    """
    shares = logits.detach().softmax(-1).cumsum(-1)
    passed = chance[:, None] * shares[:, -1:]  # (T, 1)
    return torch.searchsorted(shares, passed, right=True)[:, 0].clamp(max=shares.shape[1] - 1)


@in_float32
def detection_loss(logits: Tensor, replaced: Tensor, words: Tensor) -> Tensor:
    """L_Disc, averaged over the words: logits of having been replaced (N, L), replaced, words (N, L) true or false."""
    return masked_mean(F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="none"), words)


class ELECTRA(Method):
    """Section 2; needs a TextTransformer that sees both ways. The generator is thrown away."""

    columns = ("token",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        vocabulary: int,
        mask: Fraction = 0.15,
        width: Count = 64,
        depth: Count = 12,
        heads: Count = 1,
        weight: NonNegative = 50.0,
    ):
        super().__init__()
        self.encoder = encoder  # D
        self.enter, self.leave = nn.Linear(encoder.dim, width), nn.Linear(width, encoder.dim)
        self.generator = Transformer(width, depth, heads)  # G
        self.head, self.detector = TokenHead(encoder.dim, vocabulary), nn.Linear(encoder.dim, 1)
        self.unigram = Unigram(vocabulary)
        self.mask, self.weight = mask, weight

    def forward(self, batch):
        ids = self.latest = batch["token"]  # (N, L)
        hidden = text.choose(ids, self.mask)  # (N, L)
        masked, target = ids.masked_fill(hidden, text.MASK), ids[hidden]  # (N, L), (T,)
        h = self.generator(self.enter(self.encoder.enter(masked)), self.encoder.seen(masked))  # (N, L, W)
        words = self.head(self.leave(h[hidden]), self.encoder.embed.weight)  # (T, V)
        chance = torch.rand(ids.shape, device=ids.device)[hidden]  # (T,), from one for each place
        corrupted = ids.masked_scatter(hidden, draw_words(words, chance).to(ids.dtype))  # (N, L)

        doubt = self.detector(self.encoder.tokens(corrupted))[..., 0]  # (N, L)
        replaced, real = corrupted != ids, ids > text.MASK
        (generator, _), detector = labelled_loss(words, target), detection_loss(doubt, replaced, real)
        extras = {
            "nats": generator.detach(),
            "unigram": self.unigram.loss(target),
            "detector": detector.detach(),
            "found": masked_mean((doubt > 0).float(), replaced & real),
        }
        return generator + self.weight * detector, extras

    def after_step(self):
        self.unigram.add(self.latest)
