"""Supervised: the text encoder trained with the labels, the ceiling at this budget.

    L = - log p(y | x)                                                     cross-entropy of a linear head

Unlabelled sentences (label -1) do not count.
"""

from torch import nn

from .. import Method
from ..parts.losses import labelled_loss


class SupervisedText(Method):
    """A linear classifier on the encoder, and both learn."""

    columns = ("token", "label")

    def __init__(self, encoder: nn.Module, *, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)

    def forward(self, batch):
        loss, right = labelled_loss(self.head(self.encoder(batch["token"])), batch["label"])
        return loss, {"accuracy": right}
