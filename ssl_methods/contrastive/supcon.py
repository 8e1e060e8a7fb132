"""SupCon: all views of a class must find each other among all views of the batch, and labels say which those are.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan. Supervised Contrastive Learning. NeurIPS 2020.
https://arxiv.org/abs/2004.11362

    x1, x2 = t(x), t'(x)                                                   two augmentations of one picture
    z = g(f(x))                                                            encoder f, projection head g
    l(i) = - mean_{p in P(i)} log  exp(s_ip / T) / sum_{k != i} exp(s_ik / T)          Eq. (2), s: cosine similarity

P(i) are the other views of the class of i. Were every picture a class of its own, this would be SimCLR.

As in the authors' code, both views share one pass, and so their batch-norm statistics.

Departs from the paper: batch-norm in the head; the views are SimCLR's. An unlabelled picture (label -1) is a class of
its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import gather


@in_float32
def supervised_contrast(z1: Tensor, z2: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Eq. (2), averaged over the 2N views. z1, z2: (N, D), not yet normalised; y: (N,), the classes."""
    z, y = F.normalize(torch.cat([gather(z1), gather(z2)]), dim=1), gather(y).repeat(2)  # (2N, D), (2N,)
    s = (z @ z.T / temperature).fill_diagonal_(-1e9)  # (2N, 2N); finite, so that 0 of it is 0
    positive = (y[:, None] == y).float().fill_diagonal_(0)  # (2N, 2N)
    return F.cross_entropy(s, positive / positive.sum(1, keepdim=True))


class SupCon(Method):
    """Section 3.1, with the better one of the two losses of section 3.2.2."""

    columns = ("image", "label")

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: Count = 128,
        temperature: Positive = 0.1,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, encoder.dim, width)  # g
        self.temperature, self.strength = temperature, strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        y = torch.where(batch["label"] < 0, -1 - batch["index"], batch["label"])  # (N,)
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        z1, z2 = z.chunk(2)  # (N, D) each
        return supervised_contrast(z1, z2, y, self.temperature), {}
