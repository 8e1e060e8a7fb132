"""SimCSE: a sentence read twice, each time with other units dropped, must find itself among the batch.

Gao, Yao, Chen. SimCSE: Simple Contrastive Learning of Sentence Embeddings. EMNLP 2021.
https://arxiv.org/abs/2104.08821

    h, h' = f(x, m), f(x, m')                                              two dropout masks of the encoder f
    L = - log  exp(sim(h_i, h'_i) / T) / sum_j exp(sim(h_i, h'_j) / T)     Eq. (4), sim: cosine

As in the paper, a layer with tanh stands above the encoder in training alone.

Departs from the paper: it starts from scratch and not from BERT's weights; h is the mean of the tokens.
"""

import math

from torch import nn

from .. import Method, Positive
from ..parts.losses import info_nce
from ..parts.processes import all_rows


class SimCSE(Method):
    """Section 3, unsupervised; needs an encoder with dropout."""

    columns = ("token",)

    def __init__(self, encoder: nn.Module, *, temperature: Positive = 0.05):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = nn.Sequential(nn.Linear(encoder.dim, encoder.dim), nn.Tanh())
        self.temperature = temperature

    def forward(self, batch):
        h = self.projector(self.encoder(batch["token"].repeat(2, 1)))  # (2N, D)
        h1, h2 = h.chunk(2)  # (N, D) each
        loss = info_nce(h1, h2, self.temperature)
        return loss, {"information": math.log(all_rows(h1)) - loss.detach()}
