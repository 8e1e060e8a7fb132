"""MLM: some words of a sentence are hidden, and its other words must tell them (masked language modelling).

Devlin, Chang, Lee, Toutanova. BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding. NAACL
2019. https://arxiv.org/abs/1810.04805

    L = mean over hidden words of - log p(word | the sentence without them)             section 3.1, task 1
    15 % of the words are hidden: 80 % of these as [MASK], 10 % as a random word, 10 % as themselves

`unigram` is the same loss for words told from their frequency alone: below it, the context has been of use.

Departs from the paper: one sentence at a time, each with its own 15 %, and no next-sentence prediction (see bert.py).
"""

from torch import nn

from .. import Fraction, Method
from ..modalities import text
from ..parts.heads import TokenHead
from ..parts.losses import labelled_loss
from ..parts.statistics import Unigram


class MLM(Method):
    """Section 3.1, task 1; needs a TextTransformer that sees both ways."""

    columns = ("token",)

    def __init__(self, encoder: nn.Module, *, vocabulary: int, mask: Fraction = 0.15):
        super().__init__()
        self.encoder = encoder
        self.head = TokenHead(encoder.dim, vocabulary)
        self.unigram = Unigram(vocabulary)
        self.vocabulary, self.mask = vocabulary, mask

    def forward(self, batch):
        self.latest = batch["token"]  # (N, L)
        hidden = text.choose(self.latest, self.mask)  # (N, L)
        h = self.encoder.tokens(text.corrupt(self.latest, hidden, self.vocabulary))  # (N, L, D)
        words, target = self.head(h[hidden], self.encoder.embed.weight), self.latest[hidden]  # (T, V), (T,)
        loss, right = labelled_loss(words, target)
        return loss, {"accuracy": right, "nats": loss.detach(), "unigram": self.unigram.loss(target)}

    def after_step(self):
        self.unigram.add(self.latest)
