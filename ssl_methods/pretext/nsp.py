"""NSP: does this sentence follow that one (next-sentence prediction)?

Devlin, Chang, Lee, Toutanova. BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding. NAACL
2019. https://arxiv.org/abs/1810.04805

    L = - log p(y | A, B)         y: whether B follows A, true for half of the pairs    section 3.1, task 2

Departs from the paper: alone, without masked words; a false B follows another sentence of the batch; the second
sentence begins at a fixed place, which stands for the segments' embeddings; y is told from the mean of A's tokens and
that of B's (see OrderHead). [CLS], which the paper reads, compares nothing until it has learned to, and without masked
words it does not.
"""

from torch import nn

from .. import Method
from ..modalities import text
from ..parts.heads import OrderHead


class NSP(Method):
    """Section 3.1, task 2; needs a TextTransformer that sees both ways, and data with an order."""

    columns = ("token", "next")

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.order = OrderHead(encoder.dim)

    def forward(self, batch):
        pair, y, counts = text.pairs(batch["token"], batch["next"])  # (N, 2L - 1), (N,), (N,)
        loss, right = self.order(*text.means(self.encoder, self.encoder.tokens(pair), pair), y, counts)
        return loss, {"next": right}
