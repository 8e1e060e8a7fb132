"""DINO: from a small crop, a network must guess in which class of its own making a slow teacher puts the whole picture.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin. Emerging Properties in Self-Supervised Vision Transformers.
ICCV 2021. https://arxiv.org/abs/2104.14294

    P_s(x) = softmax(g_s(x) / T_s)                                         Eq. (1), student
    P_t(x) = softmax((g_t(x) - c) / T_t)                                   teacher, centred, and sharper as T_t < T_s
    L = sum_{x in globals} sum_{x' in all views, x' != x} - P_t(x) . log P_s(x')        Eq. (3), here the mean of them
    c <- m c + (1 - m) mean of g_t over the batch                          Eq. (4)
    teacher <- l teacher + (1 - l) student                                 section 3.1, l: cosine from its start to 1

The encoder that is evaluated is the teacher's, as in the paper.

Departs from the paper: the head has batch-norm and ReLU, which suits a ResNet; all views are distorted alike (no blur
and no solarisation on small pictures); local crops have half the side of global ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32, swapped
from ..parts.processes import gather
from ..parts.teachers import follow, teacher_of


@in_float32
def cosines(z: Tensor, prototypes: Tensor) -> Tensor:
    """The weight-normalised last layer, with lengths fixed to one: (N, D) and (K, D) -> (N, K)."""
    return F.normalize(z, dim=1) @ F.normalize(prototypes, dim=1).T


@in_float32
def sharpen(scores: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's distributions. scores: (..., K), centre: (K,)."""
    return ((scores - centre) / temperature).softmax(-1)


class Prototypes(nn.Module):
    """Features (N, D) to scores (N, K)."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        return cosines(z, self.weight)


class DINO(Method):
    """Algorithm 1 with multi-crop; needs an encoder that takes pictures of any size, such as the ResNet."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden: Count = 2048,
        width: Count = 256,
        prototypes: Count = 65536,
        crops: Count = 10,
        strength: NonNegative = 1.0,
        temperature: Positive = 0.1,
        teacher_start: Positive = 0.04,
        teacher_end: Positive = 0.07,
        rise: Fraction = 0.1,
        centring: Fraction = 0.9,
        momentum: Fraction = 0.996,
    ):
        super().__init__()
        self.encoder = encoder
        head = mlp(encoder.dim, hidden, width, layers=3)
        self.student = nn.Sequential(encoder, head, Prototypes(width, prototypes))  # g_s
        self.teacher = teacher_of(self.student)  # g_t
        self.register_buffer("centre", torch.zeros(prototypes))  # c
        self.crops, self.strength, self.temperature = crops, strength, temperature
        self.teacher_start, self.teacher_end, self.rise = teacher_start, teacher_end, rise
        self.centring, self.momentum = centring, momentum

    def forward(self, batch):
        x = image.unit(batch["image"])
        wide, near = image.multi_crop(x, self.crops, self.strength, border=0.4)
        scores = torch.cat([self.student(wide), self.student(near)])  # (V * N, K), V = 2 + crops
        with torch.no_grad():
            self.taught = self.teacher(wide)  # (2N, K)
            p = sharpen(self.taught, self.centre, self.teacher_temperature()).unflatten(0, (2, -1))  # (2, N, K)
        loss = swapped(p, scores.unflatten(0, (-1, len(x))) / self.temperature)
        return loss, {"entropy": torch.special.entr(p).sum(-1).mean()}  # of the teacher: 0 or log K when collapsed

    def teacher_temperature(self) -> float:
        """T_t rises, linearly, as long as `progress` is below `rise`."""
        share = self.progress / self.rise if self.progress < self.rise else 1.0
        return self.teacher_start + share * (self.teacher_end - self.teacher_start)

    def after_step(self):
        self.centre.lerp_(gather(self.taught).mean(0), 1 - self.centring)
        follow(self.teacher, self.student, 1 - (1 - self.momentum) * (math.cos(math.pi * self.progress) + 1) / 2)
        if self.progress == 1:
            self.encoder.load_state_dict(self.teacher[0].state_dict())
