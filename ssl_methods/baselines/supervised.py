"""Supervised: the encoder trained with the labels, the ceiling at this budget.

    L = - log p(y | x)                                                     cross-entropy of a linear head

Unlabelled pictures (label -1) do not count.
"""

import torch.nn.functional as F
from torch import nn

from .. import Method, NonNegative
from ..modalities import image


class Supervised(Method):
    """A linear classifier on the encoder, and both learn."""

    columns = ("image", "label")

    def __init__(self, encoder: nn.Module, *, classes: int, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)
        self.strength = strength

    def forward(self, batch):
        x, y = image.light_view(image.unit(batch["image"]), self.strength), batch["label"]
        logits = self.head(self.encoder(x)).float()  # (N, classes)
        return F.cross_entropy(logits, y, ignore_index=-1), {"accuracy": (logits.argmax(1) == y).float().mean()}
