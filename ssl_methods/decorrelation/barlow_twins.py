"""Barlow Twins: each feature of one view must correlate with itself in the other view, and with no other feature.

Zbontar, Jing, Misra, LeCun, Deny. Barlow Twins: Self-Supervised Learning via Redundancy Reduction. ICML 2021.
https://arxiv.org/abs/2103.03230

    z = g(f(x))                                                            encoder f, projector g
    L = sum_i (1 - C_ii)^2  +  lambda sum_i sum_{j != i} C_ij^2            Eq. (1)
    C_ij = mean over the batch of z1_i z2_j, each standardised             Eq. (2)

Departs from the paper: both views are drawn alike (no blur and no solarisation on small pictures), and share one pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import gather
from ..parts.statistics import spread


@in_float32
def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """Eq. (2). z1, z2: (N, D)."""
    z1, z2 = (F.batch_norm(gather(z), None, None, training=True) for z in (z1, z2))  # zero mean and unit variance
    return z1.T @ z2 / len(z1)  # (D, D)


@in_float32
def redundancy_reduction(z1: Tensor, z2: Tensor, off_diagonal: float) -> Tensor:
    """Eq. (1), `off_diagonal` its lambda. z1, z2: (N, D)."""
    c = cross_correlation(z1, z2)  # (D, D)
    error = (c - torch.eye(len(c), device=c.device)).square()
    return (error * torch.full_like(c, off_diagonal).fill_diagonal_(1)).sum()


class BarlowTwins(Method):
    """Section 2.1, with the projector of section 2.2."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: Count = 8192,
        off_diagonal: NonNegative = 0.005,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, width, width, layers=3)  # g
        self.off_diagonal, self.strength = off_diagonal, strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        z1, z2 = z.chunk(2)  # (N, D) each
        return redundancy_reduction(z1, z2, self.off_diagonal), {"spread": spread(z)}
