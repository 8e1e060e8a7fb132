"""SimSiam: a view must predict the other; that no gradient flows to what is predicted is enough not to collapse.

Chen, He. Exploring Simple Siamese Representation Learning. CVPR 2021. https://arxiv.org/abs/2011.10566

    z = f(x),  p = h(z)                                                    encoder with projector f, predictor h
    D(p, z) = - p / |p| . z / |z|                                          Eq. (1)
    L = D(p1, stopgrad(z2)) / 2  +  D(p2, stopgrad(z1)) / 2                Eq. (4)

Departs from the paper: the predictor's learning rate decays with the others'; both views share one pass.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.statistics import spread


@in_float32
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Eq. (1), averaged over the batch; z is a constant. p, z: (N, D)."""
    return -F.cosine_similarity(p, z.detach(), dim=1).mean()


class SimSiam(Method):
    """Algorithm 1, with the heads of section 3."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: Count = 2048,
        hidden: Count = 512,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.dim, width, width, layers=3, norm_last=True)
        self.predictor = mlp(width, hidden, width)  # h, a bottleneck
        self.strength = strength

    def forward(self, batch):
        x = image.simclr_view(image.unit(batch["image"]).repeat(2, 1, 1, 1), self.strength)  # (2N, 3, H, W)
        z = self.projector(self.encoder(x))  # (2N, D)
        (z1, z2), (p1, p2) = z.chunk(2), self.predictor(z).chunk(2)  # (N, D) each
        return negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2, {"spread": spread(z)}
