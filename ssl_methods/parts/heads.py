"""Heads: what stands on an encoder while it is pretrained, and is thrown away after that."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import masked_mean


def mlp(inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm_last: bool = False) -> nn.Sequential:
    """A projector or predictor: linear layers with batch-norm and ReLU between them, (N, inputs) -> (N, outputs)."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    modules: list[nn.Module] = []
    for i in range(layers):
        modules.append(nn.Linear(widths[i], widths[i + 1], bias=False))
        if i < layers - 1:
            modules += [nn.BatchNorm1d(widths[i + 1]), nn.ReLU(inplace=True)]
    if norm_last:
        modules.append(nn.BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*modules)


class Decoder(nn.Module):
    """Features (N, D) to pictures (N, 3, size, size): from 4 x 4, doubled with a convolution each time.

    The last doubling is a sub-pixel convolution, a quarter of the price: Shi et al. 2016,
    https://arxiv.org/abs/1609.05158
    """

    def __init__(self, dim: int, width: int, size: int):
        super().__init__()
        self.size = size
        self.first = nn.Linear(dim, width * 16)
        stages, side = [], 4
        while 2 * side < size:
            half = max(width // 2, 16)
            stages += [nn.Upsample(scale_factor=2), nn.Conv2d(width, half, 3, padding=1, bias=False)]
            stages += [nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
            width, side = half, side * 2
        self.stages = nn.Sequential(*stages)
        self.last = nn.Conv2d(width, 3 * 2**2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.last(self.stages(self.first(h).unflatten(1, (-1, 4, 4)))), 2)
        return x[..., : self.size, : self.size]  # (N, 3, H, W)


class TokenHead(nn.Module):
    """Which word stands at a place, from the features of its token, with the embeddings as weights, as in BERT."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h: Tensor, embeddings: Tensor) -> Tensor:
        """(..., D), (V, D) -> (..., V)"""
        return F.linear(self.transform(h), embeddings, self.bias)


class OrderHead(nn.Module):
    """Whether the second sentence of a pair follows the first, from the mean of each one's tokens.

    The two are compared as in InferSent, by (u * v, |u - v|), through one hidden layer: Conneau et al. 2017, figure 1,
    https://arxiv.org/abs/1705.02364
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, u: Tensor, v: Tensor, follows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share that is told right. (N, D), (N, D), (N,), (N,)"""
        logits = self.layers(torch.cat([u * v, (u - v).abs()], dim=1))[:, 0].float()  # (N,)
        loss = F.binary_cross_entropy_with_logits(logits, follows.float(), reduction="none")
        return masked_mean(loss, counts), masked_mean(((logits > 0) == follows).float(), counts)


def shapes_of_maps(encoder: nn.Module, size: int) -> list[tuple[int, int]]:
    """Width and side of each of the encoder's `maps` of pictures of that size; the encoder itself is left as it is."""
    sketch = copy.deepcopy(encoder).to("meta").eval()  # shapes without numbers
    return [(m.shape[1], m.shape[2]) for m in sketch.maps(torch.empty(1, 3, size, size, device="meta"))]
