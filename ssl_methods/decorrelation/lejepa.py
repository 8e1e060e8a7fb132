"""LeJEPA: views must predict their mean, while along every direction the features are spread like a Gaussian.

Balestriero, LeCun. LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics. 2025.
https://arxiv.org/abs/2511.08544

    z_v = g(f(x_v))                                                        encoder f, projector g, views v = 1..V
    L = lambda mean_v SIGReg(Z_v)  +  (1 - lambda) mean_v |mean_u z_u - z_v|^2
    SIGReg(Z) = mean over random unit vectors a of  T(Z a)
    T(s) = N integral |mean_n exp(i t s_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt         the statistic of Epps and Pulley

Departs from the paper: two global views and no small local ones, drawn like SimCLR's; as in its Algorithm 2, the
squared distance is a mean over features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import agreed, gather


@in_float32
def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """How far from a standard Gaussian z (N, D) is along the unit vectors `directions` (D, M)."""
    s = gather(z) @ directions  # (N, M)
    t = torch.linspace(0, 5, 9, device=z.device)  # (T,); the others of the paper's 17 points in [-5, 5] mirror these
    gaussian = (-t.square() / 2).exp()  # characteristic function, and weight
    angle = s[:, :, None] * t  # (N, M, T)
    error = (angle.cos().mean(0) - gaussian).square() + angle.sin().mean(0).square()  # (M, T)
    return 2 * len(s) * torch.trapezoid(error * gaussian, t).mean()


@in_float32
def prediction_error(z1: Tensor, z2: Tensor) -> Tensor:
    """The mean squared distance of the views from their mean. z1, z2: (N, D)."""
    mean = (z1 + z2) / 2
    return (F.mse_loss(z1, mean) + F.mse_loss(z2, mean)) / 2


class LeJEPA(Method):
    """Section 5."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden: Count = 2048,
        width: Count = 128,
        directions: Count = 1024,
        trade_off: Fraction = 0.05,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, hidden, width, layers=3)  # g
        self.directions, self.trade_off = directions, trade_off  # how many; lambda
        self.strength = strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        z1, z2 = z.chunk(2)  # (N, D) each
        directions = F.normalize(agreed(torch.randn(z.shape[1], self.directions, device=z.device)), dim=0)  # (D, M)
        normality = (sigreg(z1, directions) + sigreg(z2, directions)) / 2
        prediction = prediction_error(z1, z2)
        extras = {"sigreg": normality.detach(), "prediction": prediction.detach()}
        return self.trade_off * normality + (1 - self.trade_off) * prediction, extras
