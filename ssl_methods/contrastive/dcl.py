"""DCL: two views of a picture attract each other and repel those of other pictures, neither weakened by the other.

Yeh, Hong, Hsu, Liu, Chen, LeCun. Decoupled Contrastive Learning. ECCV 2022. https://arxiv.org/abs/2110.06848

    x1, x2 = t(x), t'(x)                                                   two augmentations of one picture
    z = g(f(x))                                                            encoder f, projection head g
    l(i, j) = - s_ij / T + log sum_{k not i, j} exp(s_ik / T)              Eq. (6), s: cosine similarity

SimCLR's sum runs over the partner j too, which shrinks the gradient where the pair already agrees: the more so the
smaller the batch.

Departs from the paper: both views share one pass, and so their batch-norm statistics.
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
def decoupled_contrast(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Eq. (6), averaged over the 2N views. z1, z2: (N, D), not yet normalised."""
    z = F.normalize(torch.cat([gather(z1), gather(z2)]), dim=1)  # (2N, D)
    s, n = z @ z.T / temperature, len(z) // 2  # (2N, 2N)
    own = torch.eye(n, dtype=torch.bool, device=z.device).repeat(2, 2)  # views of one picture
    return s.masked_fill(own, -torch.inf).logsumexp(1).mean() - s.diagonal(n).mean()  # i <-> i + N


class DCL(Method):
    """Section 3: SimCLR with another loss."""

    columns = ("image",)

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
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        z1, z2 = z.chunk(2)  # (N, D) each
        return decoupled_contrast(z1, z2, self.temperature), {}
