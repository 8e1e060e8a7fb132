"""Rotation: by how many quarter turns was the picture rotated? To tell, one must know what it shows.

Gidaris, Singh, Komodakis. Unsupervised Representation Learning by Predicting Image Rotations. ICLR 2018.
https://arxiv.org/abs/1803.07728

    L = - log F^y(g(x, y))                                                 Eq. (3), g: rotation by y quarter turns

Departs from the paper: each picture is turned once a step, by a random y, where the paper shows all four at once.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .. import Method, NonNegative
from ..modalities import image


class Rotation(Method):
    """Section 2.1."""

    columns = ("image",)

    def __init__(self, encoder: nn.Module, *, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, 4)
        self.strength = strength

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        y = torch.randint(4, (len(x),), device=x.device)  # (N,) quarter turns
        logits = self.head(self.encoder(image.rotate90(x, y))).float()  # (N, 4)
        return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}
