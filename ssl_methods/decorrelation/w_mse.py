"""W-MSE: two views must agree after the batch has been whitened, which leaves no room to collapse.

Ermolov, Siarohin, Sangineto, Sebe. Whitening for Self-Supervised Representation Learning. ICML 2021.
https://arxiv.org/abs/2007.06346

    v = g(f(x))                                                            encoder f, projector g
    L = mean over the batch of  2 - 2 cos(z1, z2)                          section 3
    z = W (v - mean(V)),  W^T W = Cov(V)^-1                                section 3, W: Cholesky's factor, inverted

Each view is whitened by itself, in random sub-batches of at least 2 D pictures, the same for both ("batch slicing").
The batch must be larger than the width D, unless the covariance is shrunk towards the identity.

Departs from the paper: the views are SimCLR's, and share one pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import agreed, gather
from ..parts.statistics import covariance, spread


def whiten(v: Tensor, shrinkage: float) -> Tensor:
    """z from v: (N, D) to the same with zero mean and, if `shrinkage` is 0, the identity as covariance."""
    identity = torch.eye(v.shape[1], device=v.device)
    shrunk = torch.lerp(covariance(v), identity, shrinkage)  # (D, D)
    factor = torch.linalg.cholesky_ex(shrunk).L  # unchecked: a check would wait for the device
    return torch.linalg.solve_triangular(factor, (v - v.mean(0)).T, upper=False).T


@in_float32
def whitened_error(v1: Tensor, v2: Tensor, order: Tensor, shrinkage: float) -> Tensor:
    """L, in sub-batches along `order` (N,), a permutation. v1, v2: (N, D)."""
    n, d = v1.shape
    batches = order.tensor_split(max(1, n // (2 * d)))
    z1, z2 = (torch.cat([whiten(v[rows], shrinkage) for rows in batches]) for v in (v1, v2))  # (N, D) each
    return (2 - 2 * F.cosine_similarity(z1, z2, dim=1)).mean()


class WMSE(Method):
    """Section 3, for two views."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden: Count = 1024,
        width: Count = 64,
        shrinkage: Fraction = 0.0,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, hidden, width)  # g
        self.shrinkage, self.strength = shrinkage, strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        v = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        v1, v2 = (gather(half) for half in v.chunk(2))  # (N, D) each
        order = agreed(torch.randperm(len(v1), device=v.device))
        return whitened_error(v1, v2, order, self.shrinkage), {"spread": spread(v)}
