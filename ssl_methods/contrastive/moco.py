"""MoCo: a view must find its partner among a long queue of pictures seen before, as a slow teacher encodes them.

He, Fan, Wu, Xie, Girshick. Momentum Contrast for Unsupervised Visual Representation Learning. CVPR 2020.
https://arxiv.org/abs/1911.05722, with the head and the views of MoCo v2, https://arxiv.org/abs/2003.04297

    q = f(x1),  k = f'(x2)                                                 encoder f, teacher f'
    L = -log  exp(q.k / T) / (exp(q.k / T) + sum_{i in queue} exp(q.k_i / T))          Eq. (1)
    f' <- m f' + (1 - m) f                                                              Eq. (2)

log(K + 1) - L, for a queue of K, bounds the views' mutual information: `information` (see simclr.py).

Departs from the paper: no shuffled batch-norm, which needs several devices; batch-norm in the head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import gather
from ..parts.teachers import enqueue, follow, teacher_of


@in_float32
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Eq. (1), averaged over the batch. q, k: (N, D), queue: (K, D), all of unit length."""
    positive = (q * k).sum(1, keepdim=True)  # (N, 1)
    negative = q @ queue.T  # (N, K)
    logits = torch.cat([positive, negative], dim=1) / temperature  # (N, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


class MoCo(Method):
    """Algorithm 1."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: Count = 128,
        temperature: Positive = 0.2,
        strength: NonNegative = 1.0,
        queue: Count = 65536,
        momentum: Fraction = 0.999,
    ):
        super().__init__()
        self.encoder = encoder
        self.student = nn.Sequential(encoder, mlp(encoder.dim, encoder.dim, width))  # f
        self.teacher = teacher_of(self.student)  # f'
        self.register_buffer("queue", F.normalize(torch.randn(queue, width), dim=1))
        self.temperature, self.strength, self.momentum = temperature, strength, momentum

    def forward(self, batch):
        x = image.unit(batch["image"])
        x1, x2 = image.simclr_view(x.repeat(2, 1, 1, 1), self.strength).chunk(2)  # (N, 3, H, W) each
        q = F.normalize(self.student(x1), dim=1)  # (N, D)
        with torch.no_grad():
            self.keys = F.normalize(self.teacher(x2), dim=1)  # (N, D)
        loss = info_nce(q, self.keys, self.queue, self.temperature)
        return loss, {"information": math.log(len(self.queue) + 1) - loss.detach()}

    def after_step(self):
        follow(self.teacher, self.student, self.momentum)
        enqueue(self.queue, gather(self.keys))
