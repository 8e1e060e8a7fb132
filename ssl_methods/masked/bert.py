"""BERT: hidden words and the order of sentences at once, each sentence beside what may or may not follow it.

Devlin, Chang, Lee, Toutanova. BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding. NAACL
2019. https://arxiv.org/abs/1810.04805

    L = mean over hidden words of - log p(word | the pair without them)                 section 3.1, task 1 (mlm.py)
      + mean over pairs of - log p(y | A, B)                                            section 3.1, task 2 (nsp.py)

Departs from the paper: a pair is two sentences and not two stretches of text; the second begins at a fixed place, which
stands for the segments' embeddings; a false second sentence follows another sentence of the batch; y is told from the
means of the two sentences' tokens, as in nsp.py.
"""

from torch import nn

from .. import Fraction, Method
from ..modalities import text
from ..parts.heads import OrderHead, TokenHead
from ..parts.losses import labelled_loss
from ..parts.statistics import Unigram


class BERT(Method):
    """Section 3.1; needs a TextTransformer that sees both ways, and data with an order."""

    columns = ("token", "next")

    def __init__(self, encoder: nn.Module, *, vocabulary: int, mask: Fraction = 0.15):
        super().__init__()
        self.encoder = encoder
        self.head, self.order = TokenHead(encoder.dim, vocabulary), OrderHead(encoder.dim)
        self.unigram = Unigram(vocabulary)
        self.vocabulary, self.mask = vocabulary, mask

    def forward(self, batch):
        self.latest = batch["token"]  # (N, L)
        pair, y, counts = text.pairs(self.latest, batch["next"])  # (N, 2L - 1), (N,), (N,)
        hidden = text.choose(pair, self.mask)  # (N, 2L - 1)
        h = self.encoder.tokens(text.corrupt(pair, hidden, self.vocabulary))  # (N, 2L - 1, D)
        words, target = self.head(h[hidden], self.encoder.embed.weight), pair[hidden]  # (T, V), (T,)
        masked, right = labelled_loss(words, target)
        order, right_order = self.order(*text.means(self.encoder, h, pair), y, counts)
        unigram = self.unigram.loss(target)
        extras = {"accuracy": right, "nats": masked.detach(), "unigram": unigram, "next": right_order}
        return masked + order, extras

    def after_step(self):
        self.unigram.add(self.latest)
