"""LSA: the directions in which weighted word counts vary most, the oldest features of text.

Deerwester, Dumais, Furnas, Landauer, Harshman. Indexing by Latent Semantic Analysis. 1990.
https://doi.org/10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9

    x = counts * idf, of unit length,   idf = 1 + log((1 + n) / (1 + df))  tf-idf, over n sentences
    X = U S V^T,   h = V_D^T x                                             the D largest singular values

V is found by subspace iteration, a pass over the data for each step: Q <- orthonormal basis of X^T X Q. Halko,
Martinsson, Tropp. Finding Structure with Randomness. 2011, Algorithm 4.4. https://arxiv.org/abs/0909.4061
"""

import torch

from .. import Method
from ..encoders.shallow import BagOfWords
from ..parts.processes import gather

SPARE = 20  # directions beyond those wanted, without which the last of these would come out late


class LSA(Method):
    """Needs the `BagOfWords` encoder. The first pass counts; each further one is a step of the iteration."""

    columns = ("token",)
    passes = 6

    def __init__(self, encoder: BagOfWords, *, vocabulary: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        basis = torch.linalg.qr(torch.randn(vocabulary, min(encoder.dim + SPARE, vocabulary))).Q
        self.register_buffer("basis", basis)  # Q, (V, D + SPARE)
        self.register_buffer("product", torch.zeros_like(basis))  # X^T X Q
        self.register_buffer("sentences", torch.zeros(()))  # n
        self.register_buffer("having", torch.zeros(vocabulary))  # df

    def forward(self, batch):
        self.turn = self.passes_done()
        ids = gather(batch["token"])  # (N, L)
        if self.turn == 0:
            counts = self.encoder.counts(ids)  # (N, V)
            self.sentences += len(counts)
            self.having += (counts > 0).sum(0)
            return counts.var(0).sum(), {}
        x = self.encoder.weighted(ids)  # (N, V)
        self.product += x.T @ (x @ self.basis)
        return x.var(0).sum(), {}  # the variance that there is to explain

    def after_step(self):
        if self.passes_done() == self.turn:
            return
        if self.turn == 0:
            self.encoder.idf.copy_(1 + ((1 + self.sentences) / (1 + self.having)).log())
        else:
            axes = torch.linalg.eigh(self.basis.T @ self.product).eigenvectors.flip(1)  # the largest first
            self.basis.copy_(torch.linalg.qr(self.product @ axes).Q)
            self.product.zero_()
        self.encoder.linear.weight.copy_(self.basis[:, : self.encoder.dim].T)
