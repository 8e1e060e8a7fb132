"""GPT: every word is told from those before it (next-token prediction).

Radford, Narasimhan, Salimans, Sutskever. Improving Language Understanding by Generative Pre-Training. 2018.
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf

    L = mean over i of - log p(u_i | u_1 ... u_{i-1})                      Eq. (1), over the words of a sentence
    p(u) = softmax(h W_e^T)                                                Eq. (2), W_e: the embeddings

`unigram` is the same loss for words told from their frequency alone; exp of either is a perplexity.

Departs from the paper: a sentence at a time, padding does not count.
"""

import torch
from torch import Tensor, nn

from .. import Method
from ..modalities import text
from ..parts.losses import labelled_loss
from ..parts.statistics import Unigram


class GPT(Method):
    """Section 3.1; needs a TextTransformer that is causal."""

    columns = ("token",)

    def __init__(self, encoder: nn.Module, *, vocabulary: int):
        super().__init__()
        if not encoder.causal:
            raise ValueError("it tells words from those before them, so the encoder must be `causal: true`")
        self.encoder = encoder
        self.unigram = Unigram(vocabulary)

    def forward(self, batch):
        self.latest = batch["token"]  # (N, L)
        h, following = self.encoder.tokens(self.latest[:, :-1]), self.latest[:, 1:]  # (N, L - 1, D), (N, L - 1)
        real = following > text.PAD
        words, target = self.words(h[real]), following[real]  # (T, V), (T,)
        loss, right = labelled_loss(words, target)
        return loss, {"accuracy": right, "nats": loss.detach(), "unigram": self.unigram.loss(target)}

    def words(self, h: Tensor) -> Tensor:
        """Logits: (..., D) -> (..., V)."""
        return h @ self.encoder.embed.weight.T

    def predict(self, ids: Tensor) -> Tensor:
        """What each token says of the next: (N, L) -> (N, L, V)."""
        return self.words(self.encoder.tokens(ids))

    def after_step(self):
        self.unigram.add(self.latest)

    def say(self, count):
        """Each word is drawn from p, until [SEP]."""
        device = self.unigram.counts.device
        ids = torch.full((count, 1), text.CLS, dtype=torch.int32, device=device)
        for _ in range(self.encoder.length - 1):
            logits = self.predict(ids)[:, -1].float()  # (count, V)
            logits[:, [text.PAD, text.CLS, text.MASK]] = -torch.inf
            word = torch.multinomial(logits.softmax(-1), 1).int()  # (count, 1)
            ended = (ids == text.SEP).any(1, keepdim=True)
            ids = torch.cat([ids, word.masked_fill(ended, text.PAD)], dim=1)
        return ids
