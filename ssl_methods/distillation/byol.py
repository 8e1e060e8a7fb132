"""BYOL: a network must predict what its own slowly moving average says of another view.

Grill et al. Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning. NeurIPS 2020.
https://arxiv.org/abs/2006.07733

    z = g(f(x)),  z' = g'(f'(x'))                                          online and target networks
    L = || q(z) / |q(z)|  -  z' / |z'| ||^2                                Eq. (2), predictor q; and with x, x' swapped
    target <- tau target + (1 - tau) online                                Eq. (1)
    tau = 1 - (1 - tau_base) (cos(pi progress) + 1) / 2                    section 3.3

Departs from the paper: both views are drawn alike (no blur and no solarisation on small pictures), and share one pass.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.statistics import spread
from ..parts.teachers import follow, teacher_of


@in_float32
def regression(p: Tensor, z: Tensor) -> Tensor:
    """Eq. (2), averaged over the batch: 2 - 2 cos(p, z). p, z: (N, D)."""
    return (2 - 2 * F.cosine_similarity(p, z, dim=1)).mean()


class BYOL(Method):
    """Section 3.1."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden: Count = 4096,
        width: Count = 256,
        strength: NonNegative = 1.0,
        tau: Fraction = 0.996,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.online = nn.Sequential(encoder, mlp(encoder.dim, hidden, width))  # g(f(x))
        self.teacher = teacher_of(self.online)  # g'(f'(x))
        self.predictor = mlp(width, hidden, width)  # q
        self.strength, self.tau = strength, tau

    def forward(self, batch):
        x = image.simclr_view(image.unit(batch["image"]).repeat(2, 1, 1, 1), self.strength)  # (2N, 3, H, W)
        z = self.online(x)  # (2N, D)
        p1, p2 = self.predictor(z).chunk(2)  # (N, D) each
        with torch.no_grad():
            t1, t2 = self.teacher(x).chunk(2)
        return regression(p1, t2) + regression(p2, t1), {"spread": spread(z)}

    def after_step(self):
        tau = 1 - (1 - self.tau) * (math.cos(math.pi * self.progress) + 1) / 2
        follow(self.teacher, self.online, tau)
