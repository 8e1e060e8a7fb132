"""SigLIP: of every picture and every caption of the batch, do these two belong together? Each pair is asked alone.

Zhai, Mustafa, Kolesnikov, Beyer. Sigmoid Loss for Language Image Pre-Training. ICCV 2023.
https://arxiv.org/abs/2303.15343

    v, t = f_v(picture), f_t(caption)                                      each in the shared space, of unit length
    L = - 1/N sum_ij log sigmoid(z_ij (a v_i . t_j + b))                   section 3.2; z_ij: 1 where i = j, else -1
    a = exp(s) and b are learned, from 10 and -10 on                       for most pairs do not belong together

Departs from the paper: the text tower's features are the mean of its tokens. As in the
paper, pictures that share a caption are each other's negatives where they meet in a batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Method, NonNegative, Positive
from ..encoders.pairs import ImageText
from ..modalities import image_text
from ..parts.losses import in_float32
from ..parts.processes import gather


@in_float32
def sigmoid_loss(v: Tensor, t: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Algorithm 1. v, t (N, S), not yet normalised; slope a and offset b."""
    v, t = F.normalize(gather(v), dim=1), F.normalize(gather(t), dim=1)
    logits = slope * v @ t.T + offset  # (N, N)
    z = 2 * torch.eye(len(v), device=v.device) - 1
    return -F.logsigmoid(z * logits).sum() / len(v)


class SigLIP(Method):
    """Section 3.2."""

    columns = ("image", "token")

    def __init__(
        self, encoder: ImageText, *, slope: Positive = 10.0, offset: float = -10.0, strength: NonNegative = 1.0
    ):
        super().__init__()
        self.encoder = encoder  # f_v, f_t
        self.slope = nn.Parameter(torch.tensor(math.log(slope)))  # s
        self.offset = nn.Parameter(torch.tensor(offset))  # b
        self.strength = strength

    def forward(self, batch):
        x = image_text.view(image_text.unit(batch["image"]), self.strength)
        v, t = self.encoder(x, batch["token"])  # (N, S) each
        slope = self.slope.exp()
        return sigmoid_loss(v, t, slope, self.offset), {"slope": slope.detach(), "offset": self.offset.detach()}
