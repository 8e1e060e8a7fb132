"""Supervised: the encoder trained with the labels, the ceiling at this budget.

    L = - log p(y | x)                                                     cross-entropy of a linear head

Unlabelled pictures (label -1) do not count.
"""

from torch import nn

from .. import Method, NonNegative
from ..modalities import image
from ..parts.losses import labelled_loss


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
        loss, right = labelled_loss(self.head(self.encoder(x)), y)
        return loss, {"accuracy": right}
