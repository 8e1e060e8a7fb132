"""Autoencoder: what the encoder keeps must suffice to draw the picture again.

Hinton, Salakhutdinov. Reducing the Dimensionality of Data with Neural Networks. Science 2006.
https://doi.org/10.1126/science.1127647

    L = || x - d(f(x)) ||^2 / (number of pixel values)                     encoder f, decoder d

Departs from the paper: convolutional, and trained at once instead of layer by layer.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method
from ..modalities import image


class Decoder(nn.Module):
    """Features (N, D) to pictures (N, 3, size, size): from 4 x 4, doubled with a convolution each time."""

    def __init__(self, dim: int, width: int, size: int):
        super().__init__()
        self.size = size
        self.first = nn.Linear(dim, width * 16)
        stages, side = [], 4
        while side < size:
            half = max(width // 2, 16)
            stages += [nn.Upsample(scale_factor=2), nn.Conv2d(width, half, 3, padding=1, bias=False)]
            stages += [nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
            width, side = half, side * 2
        self.stages = nn.Sequential(*stages)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        x = self.last(self.stages(self.first(h).unflatten(1, (-1, 4, 4))))
        return x[..., : self.size, : self.size]  # (N, 3, H, W)


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
