"""VICReg: two views must have the same features, each of which varies over the batch and none with another.

Bardes, Ponce, LeCun. VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning. ICLR 2022.
https://arxiv.org/abs/2105.04906

    z = g(f(x))                                                            encoder f, expander g
    v(Z) = mean over features of max(0, 1 - sqrt(Var(z_j) + eps))          Eq. (1), (2)
    c(Z) = sum_{i != j} Cov(Z)_ij^2 / D                                    Eq. (3), (4)
    s(Z1, Z2) = mean over the batch of |z1 - z2|^2                         Eq. (5)
    L = lambda s(Z1, Z2)  +  mu (v(Z1) + v(Z2))  +  nu (c(Z1) + c(Z2))     Eq. (6)

Departs from the paper: as in its Algorithm 1, s is a mean over features too; both views are drawn alike (no blur and no
solarisation on small pictures), and share one pass.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import gather
from ..parts.statistics import covariance

EPSILON = 1e-4


@in_float32
def variance_loss(z: Tensor) -> Tensor:
    """Eq. (1), v. z: (N, D)."""
    return F.relu(1 - (gather(z).var(0) + EPSILON).sqrt()).mean()


@in_float32
def covariance_loss(z: Tensor) -> Tensor:
    """Eq. (4), c. z: (N, D)."""
    c = covariance(gather(z)).fill_diagonal_(0)  # (D, D)
    return c.square().sum() / len(c)


@in_float32
def invariance_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Eq. (5), s, over D. z1, z2: (N, D)."""
    return F.mse_loss(z1, z2)


class VICReg(Method):
    """Section 4.1, with the expander of section 4.2."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: Count = 8192,
        invariance: NonNegative = 25.0,
        variance: NonNegative = 25.0,
        covariance: NonNegative = 1.0,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, width, width, layers=3)  # g
        self.invariance, self.variance, self.covariance = invariance, variance, covariance  # lambda, mu, nu
        self.strength = strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        z1, z2 = self.projector(self.encoder(image.simclr_view(x, self.strength))).chunk(2)  # (N, D) each
        s = invariance_loss(z1, z2)
        v = variance_loss(z1) + variance_loss(z2)
        c = covariance_loss(z1) + covariance_loss(z2)
        extras = {"invariance": s.detach(), "variance": v.detach(), "covariance": c.detach()}
        return self.invariance * s + self.variance * v + self.covariance * c, extras
