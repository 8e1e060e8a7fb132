"""SwAV: sort a batch evenly into groups, and tell the group of one view from another view.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin. Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments. NeurIPS 2020. https://arxiv.org/abs/2006.09882

    z = g(f(x)) / |g(f(x))|                                                encoder f, projector g; prototypes c_k, unit
    l(z_t, q_s) = - sum_k q_s^k log p_t^k,  p_t^k ~ exp(z_t . c_k / T)     Eq. (2)
    Q = Diag(u) exp(C^T Z / epsilon) Diag(v)                               Eq. (5): of all that give every prototype an
                                                                           equal share, the best for Z; by Sinkhorn
    L = sum_{i in {1, 2}} sum_{v != i} l(z_v, q_i)                         Eq. (6), multi-crop, here the mean of them

Departs from the paper: no blur; local crops have half the side of global ones; the queue fills from the first step on.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32, swapped
from ..parts.processes import gather
from ..parts.statistics import spread
from ..parts.teachers import enqueue


@in_float32
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Eq. (5), by turns: every prototype takes an equal share, every picture is given out whole. (N, K) -> (N, K)"""
    codes = scores / epsilon
    for _ in range(iterations):
        codes = codes.log_softmax(0).log_softmax(1)
    return codes.exp()


@in_float32
def swapped_prediction(
    z: Tensor, prototypes: Tensor, queue: Tensor, temperature: float, epsilon: float, iterations: int
) -> Tensor:
    """Eq. (6). z: (V, N, D), prototypes: (K, D), of unit length; queue: (2, Q, D), older z of the first two views."""
    scores = z @ prototypes.T  # (V, N, K)
    with torch.no_grad():
        older = queue @ prototypes.T  # (2, Q, K), they only help to sort
        both = torch.cat([scores[:2], older], dim=1)
        codes = torch.stack([sinkhorn(s, epsilon, iterations) for s in both])[:, : z.shape[1]]  # (2, N, K)
    return swapped(codes, scores / temperature)


class SwAV(Method):
    """Section 3, with multi-crop; needs an encoder that takes pictures of any size, such as the ResNet."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden: Count = 2048,
        width: Count = 128,
        prototypes: Count = 3000,
        crops: Count = 6,
        strength: NonNegative = 1.0,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Count = 3,
        frozen: Fraction = 0.0025,
        queue: Annotated[int, Ge(0)] = 0,
        start: Fraction = 0.0375,
    ):
        """Prototypes learn from `progress` = `frozen` on (Appendix A.1), and the queue is used from `start` on."""
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, hidden, width)  # g
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, width), dim=1))  # C
        self.register_buffer("queue", F.normalize(torch.randn(2, queue, width), dim=2))
        self.crops, self.strength, self.temperature = crops, strength, temperature
        self.epsilon, self.iterations, self.frozen, self.start = epsilon, iterations, frozen, start

    def forward(self, batch):
        x = image.unit(batch["image"])
        wide, near = image.multi_crop(x, self.crops, self.strength, border=0.14)
        z = self.projector(torch.cat([self.encoder(wide), self.encoder(near)]))
        z = F.normalize(z.float(), dim=1).chunk(2 + self.crops)  # (N, D) each
        z = torch.stack([gather(view) for view in z])  # (V, all N, D)
        self.newest = z[:2].detach()
        queue = self.queue if self.progress >= self.start else self.queue[:, :0]
        prototypes = self.prototypes if self.progress >= self.frozen else self.prototypes.detach()
        loss = swapped_prediction(z, prototypes, queue, self.temperature, self.epsilon, self.iterations)
        return loss, {"spread": spread(z.flatten(0, 1))}

    @torch.no_grad()
    def after_step(self):
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        enqueue(self.queue, self.newest)
