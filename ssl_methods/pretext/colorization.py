"""Colorization: which colour has each place of a grey picture? To tell, one must know what it shows.

Zhang, Isola, Efros. Colorful Image Colorization. ECCV 2016. https://arxiv.org/abs/1603.08511

    Z = a pixel's colour (a, b) over Q bins of side 10: Gaussian weights (deviation 5) of the 5 nearest     section 2.1
    L = - mean of v(Z) sum_q Z_q log Z^_q                                                                   Eq. (2)
    v(Z) = w_q*,  q* = argmax_q Z_q                                                                         Eq. (3)
    w = ((1 - lambda) p + lambda / Q)^-1, scaled to sum_q p_q w_q = 1                                       Eq. (4)

Departs from the paper: p, the mean of Z (which is smooth already), is gathered while training; a linear map of all the
encoder's feature maps (a hypercolumn) tells the colours, instead of a decoder; the lightness fills three channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Fraction, Method, NonNegative
from ..modalities import image
from ..parts.heads import shapes_of_maps
from ..parts.losses import in_float32
from ..parts.processes import gather

ANNEALING = 0.38  # T of Eq. (5), which turns a distribution of colours into the one that is drawn


def colour_bins(levels: int = 52) -> Tensor:
    """The colours (a, b), in steps of 10, that are nearest to some colour of sRGB: (Q, 2)."""
    values = torch.linspace(0, 1, levels)
    x = torch.cartesian_prod(values, values, values)[:, :, None, None]  # (levels^3, 3, 1, 1)
    return (image.lab(x)[:, 1:, 0, 0] / 10).round().unique(dim=0) * 10


def soft_encode(colour: Tensor, bins: Tensor, neighbours: int = 5, deviation: float = 5.0) -> Tensor:
    """Z: colours (M, 2) as weights of their nearest bins, (M, Q)."""
    (a, b), (bin_a, bin_b) = colour.mT, bins.mT
    distance = (a[:, None] - bin_a).square() + (b[:, None] - bin_b).square()  # (M, Q)
    nearest = distance.topk(neighbours, largest=False)
    weights = (-nearest.values / (2 * deviation**2)).softmax(1)
    return torch.zeros_like(distance).scatter(1, nearest.indices, weights)


def rarity(p: Tensor, even: float) -> Tensor:
    """Eq. (4): w of the bins' probabilities p, both (Q,); `even` is lambda."""
    w = 1 / ((1 - even) * p + even / len(p))
    return w / (p * w).sum()


@in_float32
def rebalanced(logits: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Eqs. (2) and (3), averaged over pixels. logits, z: (M, Q), w: (Q,)."""
    return (w[likeliest(z)] * F.cross_entropy(logits, z, reduction="none")).mean()


def likeliest(scores: Tensor) -> Tensor:
    """The bin of the highest score: (M, Q) -> (M,). An argmax, which takes four times as long on a CPU."""
    return scores.max(1).indices


class Colorization(Method):
    """Section 2; needs an encoder with `maps`, such as the ResNet. It draws at a quarter of the size."""

    columns = ("image",)

    def __init__(self, encoder: nn.Module, *, size: int, even: Fraction = 0.5, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder, self.side = encoder, size // 4
        self.register_buffer("bins", colour_bins(), persistent=False)  # (Q, 2)
        self.register_buffer("seen", torch.ones(len(self.bins), dtype=torch.float64))  # pixels of each, first one each
        self.head = nn.Conv2d(sum(width for width, _ in shapes_of_maps(encoder, size)), len(self.bins), 1)
        self.even, self.strength = even, strength

    def forward(self, batch):
        x = image.lab(image.light_view(image.unit(batch["image"]), self.strength))  # (N, 3, H, W)
        colour = F.adaptive_avg_pool2d(x[:, 1:], self.side).movedim(1, 3).flatten(0, 2)  # (M, 2)
        z = soft_encode(colour, self.bins)  # (M, Q)
        self.seen += gather(z).double().sum(0)

        logits = self.predict(x[:, :1]).movedim(1, 3).flatten(0, 2)  # (M, Q)
        w = rarity((self.seen / self.seen.sum()).float(), self.even)
        return rebalanced(logits, z, w), {"accuracy": (likeliest(logits) == likeliest(z)).float().mean()}

    def predict(self, lightness: Tensor) -> Tensor:
        """The logits of each place's colour, before its softmax to Z^: (N, 1, H, W) -> (N, Q, side, side)."""
        maps = self.encoder.maps(lightness.expand(-1, 3, -1, -1) / 100)
        column = torch.cat([F.interpolate(m, size=(self.side, self.side), mode="bilinear") for m in maps], dim=1)
        return self.head(column)

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        lightness = image.lab(x)[:, :1]
        share = (self.predict(lightness).float() / ANNEALING).softmax(1)  # (N, Q, side, side)
        colour = F.interpolate(torch.einsum("nqhw,qc->nchw", share, self.bins), size=x.shape[2:], mode="bilinear")
        grey = torch.cat([lightness, torch.zeros_like(colour)], dim=1)
        return {"input": image.rgb(grey), "output": image.rgb(torch.cat([lightness, colour], dim=1)), "truth": x}
