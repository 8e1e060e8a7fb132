"""NNCLR: what is nearest to one view among pictures seen before must find the other view among those of the batch.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman. With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations. ICCV 2021. https://arxiv.org/abs/2104.14548

    z = g(f(x)),  p = q(z)                                                 encoder f, projector g, predictor q
    NN(z) = argmin_{s in queue} |z - s|                                    section 3.2; all are of unit length
    L = -log  exp(NN(z1) . p2 / T) / sum_k exp(NN(z1) . p2_k / T)          section 3.2; and with the views swapped

log N - L is a bound on mutual information, of a picture's neighbour and its view: `information` (see simclr.py).

Departs from the paper: both views share one pass, and so their batch-norm statistics.
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
from ..parts.teachers import enqueue


@in_float32
def nearest(z: Tensor, queue: Tensor) -> Tensor:
    """NN(z), for every row. z: (N, D), queue: (K, D), all of unit length, so that nearest is most alike."""
    return queue[(z @ queue.T).argmax(1)]  # (N, D)


@in_float32
def neighbour_contrast(neighbour: Tensor, p: Tensor, temperature: float) -> Tensor:
    """L, averaged over the batch. neighbour, p: (N, D), of unit length."""
    s = gather(neighbour) @ gather(p).T / temperature  # (N, N)
    return F.cross_entropy(s, torch.arange(len(s), device=s.device))


class NNCLR(Method):
    """Section 3.2, with the heads of section 4.1."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden: Count = 2048,
        width: Count = 256,
        temperature: Positive = 0.1,
        strength: NonNegative = 1.0,
        queue: Count = 98304,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, hidden, width, layers=3, norm_last=True)  # g
        self.predictor = mlp(width, 2 * hidden, width)  # q
        self.register_buffer("queue", F.normalize(torch.randn(queue, width), dim=1))
        self.temperature, self.strength = temperature, strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        p1, p2 = F.normalize(self.predictor(z), dim=1).chunk(2)  # (N, D) each
        z1, z2 = F.normalize(z.detach(), dim=1).chunk(2)
        self.keys = z1
        loss1 = neighbour_contrast(nearest(z1, self.queue), p2, self.temperature)
        loss2 = neighbour_contrast(nearest(z2, self.queue), p1, self.temperature)
        loss = (loss1 + loss2) / 2
        return loss, {"information": math.log(all_rows(z1)) - loss.detach()}

    def after_step(self):
        enqueue(self.queue, gather(self.keys))
