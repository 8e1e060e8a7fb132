"""Autoencoder: what the encoder keeps must suffice to draw the picture again.

Hinton, Salakhutdinov. Reducing the Dimensionality of Data with Neural Networks. Science 2006.
https://doi.org/10.1126/science.1127647

    L = || x - d(f(x)) ||^2 / (number of pixel values)                     encoder f, decoder d

Departs from the paper: convolutional, and trained at once instead of layer by layer.
"""

import torch.nn.functional as F
from torch import nn

from .. import Count, Method
from ..modalities import image
from ..parts.heads import Decoder


class Autoencoder(Method):
    """A deterministic encoder and decoder, and the mean squared error between a picture and its copy."""

    columns = ("image",)

    def __init__(self, encoder: nn.Module, *, size: int, width: Count = 64):
        super().__init__()
        self.encoder = encoder  # f
        self.decoder = Decoder(encoder.dim, width, size)  # d

    def forward(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        return F.mse_loss(self.decoder(self.encoder(x)).float(), x), {}

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        return {"output": self.decoder(self.encoder(x)), "truth": x}
