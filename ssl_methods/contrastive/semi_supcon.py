"""SemiSupCon: SimCLR on all pictures, and SupCon on the few whose labels may be seen.

Assran, Ballas, Castrejon, Rabbat. Supervision Accelerates Pre-training in Contrastive Semi-Supervised Learning of
Visual Representations. 2020. https://arxiv.org/abs/2006.10803, with the loss of Khosla et al. 2020,
https://arxiv.org/abs/2004.11362

    x1, x2 = t(x), t'(x)                                                   two augmentations of one picture
    z = g(f(x))                                                            encoder f, projection head g
    l(i) = - mean_{p in P(i)} log  exp(s_ip / T) / sum_{k != i} exp(s_ik / T)          Eq. (2) of SupCon
    L = lambda_1 L_supervised + lambda_2 L_self

In L_supervised, P(i) are the other views of the class of i, and k runs over labelled pictures only. In L_self every
picture is a class of its own, which makes it SimCLR's loss.

Departs from the paper: SupCon's loss instead of its own on the labelled pictures, which are those in the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import gather


def labelled_rows(rows: int, fraction: float) -> Tensor:
    """The rows of the training data whose labels may be seen, ascending: the same in every run.

    A larger fraction has all rows of a smaller one.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return order[: round(rows * fraction)].sort().values


@in_float32
def contrast(z1: Tensor, z2: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Eq. (2) among pictures with a class, y (N,) >= 0, averaged over their views; 0 where there are none.

    z1, z2: (N, D), not yet normalised.
    """
    z, y = F.normalize(torch.cat([gather(z1), gather(z2)]), dim=1), gather(y).repeat(2)  # (2N, D), (2N,)
    known = y >= 0  # (2N,)
    s = (z @ z.T / temperature).masked_fill(~known, -1e9).fill_diagonal_(-1e9)  # (2N, 2N)
    positive = ((y[:, None] == y) & known).float().fill_diagonal_(0)  # (2N, 2N); no row of an unknown has any
    loss = F.cross_entropy(s, positive / positive.sum(1, keepdim=True).clamp(min=1), reduction="sum")
    return loss / known.sum().clamp(min=1)


class SemiSupCon(Method):
    """A fixed share of the training rows is `labelled`; of the others no label reaches a loss."""

    columns = ("image", "label")

    def __init__(
        self,
        encoder: nn.Module,
        *,
        rows: int,
        labelled: Fraction = 0.1,
        lambda_1: NonNegative = 1.0,
        lambda_2: NonNegative = 1.0,
        width: Count = 128,
        temperature: Positive = 0.1,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.projector = mlp(encoder.dim, encoder.dim, width)  # g
        known = torch.zeros(rows, dtype=torch.bool).index_fill(0, labelled_rows(rows, labelled), True)
        self.register_buffer("known", known, persistent=False)
        self.lambda_1, self.lambda_2 = lambda_1, lambda_2
        self.temperature, self.strength = temperature, strength

    def forward(self, batch):
        x = image.unit(batch["image"]).repeat(2, 1, 1, 1)  # (2N, 3, H, W)
        y = torch.where(self.known[batch["index"]], batch["label"], -1)  # (N,), all that is used of the labels
        z = self.projector(self.encoder(image.simclr_view(x, self.strength)))
        z1, z2 = z.chunk(2)  # (N, D) each
        supervised = contrast(z1, z2, y, self.temperature)
        own = contrast(z1, z2, batch["index"], self.temperature)
        extras = {"supervised": supervised.detach(), "own": own.detach()}
        return self.lambda_1 * supervised + self.lambda_2 * own, extras
