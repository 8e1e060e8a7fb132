"""SimCLR: two views of a picture must find each other among all views of the batch.

Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual Representations. ICML 2020.
https://arxiv.org/abs/2002.05709

    x1, x2 = t(x), t'(x)                                                   two augmentations of one picture
    z = g(f(x))                                                            encoder f, projection head g
    l(i, j) = -log  exp(s_ij / T) / sum_{k != i} exp(s_ik / T)             Eq. (1), s: cosine similarity

The minimum over encoders bounds the views' mutual information from below by log(2N - 1) - l (InfoNCE, van den Oord
et al. 2018), which is plotted as `information`.

As in the authors' code, both views share one pass, and so their batch-norm statistics.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import all_rows, gather


@in_float32
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Eq. (1), averaged over the 2N views. z1, z2: (N, D), not yet normalised."""
    z = F.normalize(torch.cat([gather(z1), gather(z2)]), dim=1)  # (2N, D)
    s = (z @ z.T / temperature).fill_diagonal_(-torch.inf)  # (2N, 2N)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)  # i <-> i + N
    return F.cross_entropy(s, partner)


class SimCLR(Method):
    """Section 2.1, with the head of section 4.2."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: Count = 128,
        temperature: Positive = 0.5,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, encoder.dim, width)  # g
        self.temperature, self.strength = temperature, strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        z1, z2 = z.chunk(2)  # (N, D) each
        loss = nt_xent(z1, z2, self.temperature)
        return loss, {"information": math.log(2 * all_rows(z1) - 1) - loss.detach()}
