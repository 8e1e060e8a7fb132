"""Inpainting: what is missing from the picture must be drawn from what surrounds it.

Pathak, Krähenbühl, Donahue, Darrell, Efros. Context Encoders: Feature Learning by Inpainting. CVPR 2016.
https://arxiv.org/abs/1604.07379

    L = || M * (x - d(f((1 - M) * x))) ||^2                                Eq. (1), M: 1 where the picture is missing

What is drawn also overlaps its surroundings, by a margin that counts ten times, so that it fits them (section 5.1).

Departs from the paper: the missing square lies anywhere, not in the middle. There is no adversarial loss, nor is there
when the paper learns features (section 5.2).
"""

import torch
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..modalities import image
from ..parts.heads import Decoder
from ..parts.losses import in_float32


def square(corner: Tensor, side: int, size: int) -> Tensor:
    """1 in squares whose top and left are `corner` (2, N, 1), and 0 elsewhere: (N, 1, size, size)."""
    place = torch.arange(size, device=corner.device)
    rows, cols = ((place >= corner) & (place < corner + side)).float()  # (N, size) each
    return (rows[:, :, None] * cols[:, None])[:, None]


def blot(x: Tensor, hole: Tensor) -> Tensor:
    """Grey where the picture is missing."""
    return torch.lerp(x, torch.full_like(x, 0.5), hole)


@in_float32
def weighted_error(drawn: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of squared errors. drawn, x: (N, 3, H, W), weight: (N, 1, H, W)."""
    return ((drawn - x).square().mean(1, keepdim=True) * weight).sum() / weight.sum()


class Inpainting(Method):
    """Sections 3 and 5.1. `missing` and `margin` are shares of the picture's side."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int,
        width: Count = 64,
        missing: Fraction = 0.5,
        margin: Fraction = 7 / 128,
        margin_weight: NonNegative = 10.0,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.decoder = Decoder(encoder.dim, width, size)  # d
        self.side, self.margin = round(missing * size), round(margin * size)
        self.margin_weight, self.strength = margin_weight, strength
        if self.side + 2 * self.margin > size:
            raise ValueError(f"`missing` {missing} and `margin` {margin} on both sides are more than the whole picture")

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        hole, around = self.holes(x)
        drawn = self.decoder(self.encoder(blot(x, hole)))  # (N, 3, H, W)
        return weighted_error(drawn, x, hole + self.margin_weight * around), {}

    def holes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """M, and what surrounds it: (N, 1, H, W) each."""
        size = x.shape[2]
        corner = torch.randint(self.margin, size - self.side - self.margin + 1, (2, len(x), 1), device=x.device)
        hole = square(corner, self.side, size)
        return hole, square(corner - self.margin, self.side + 2 * self.margin, size) - hole

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        hole, _ = self.holes(x)
        seen = blot(x, hole)
        return {"input": seen, "output": torch.lerp(x, self.decoder(self.encoder(seen)).float(), hole), "truth": x}
