"""Supervised: the text encoder trained with the labels, the ceiling at this budget.

    L = - log p(y | x)                                                     cross-entropy of a linear head

Unlabelled sentences (label -1) do not count.
"""

import torch.nn.functional as F
from torch import nn

from .. import Method


class SupervisedText(Method):
    """A linear classifier on the encoder, and both learn."""

    columns = ("token", "label")

    def __init__(self, encoder: nn.Module, *, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)

    def forward(self, batch):
        y = batch["label"]  # (N,)
        logits, known = self.head(self.encoder(batch["token"])).float(), y >= 0  # (N, classes), (N,)
        total = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
        count = known.sum().clamp(min=1)  # a batch may hold no labelled sentence
        return total / count, {"accuracy": (logits.argmax(1) == y).sum() / count}
