"""Untrained: the encoder as it was initialised, the floor that every method must beat."""

from torch import nn

from .. import Method


class Untrained(Method):
    """It sees no data."""

    columns = ()
    passes = 0

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
