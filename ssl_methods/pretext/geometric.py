"""Geometric: which of a list of transformations was applied to the picture? To tell, one must know how it should look.

Golan, El-Yaniv. Deep Anomaly Detection Using Geometric Transformations. NeurIPS 2018.
https://arxiv.org/abs/1805.10917

    L = - log p(y | f(T_y(x)))                                             section 4.1, T: the transformations below

Departs from the paper: transformations are applied singly, with shear and scale among them, instead of all 72
compositions of flips, shifts and turns, and each picture is shown once a step, under a random y. Where the paper
reflects what lies beyond the border, here every T looks at a part of the picture, so that no seam tells them apart.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .. import Method
from ..modalities import image

WINDOW = 0.65  # of the side: 1.5 windows, as far as any transformation below looks, end within the picture
TRANSFORMATIONS = (  # where in the window to look for what is drawn at (x, y), both from -1 to 1
    ((1, 0, 0), (0, 1, 0)),  # identity
    ((-1, 0, 0), (0, 1, 0)),  # left and right are swapped
    ((1, 0, 0), (0, -1, 0)),  # above and below are swapped
    ((0, -1, 0), (1, 0, 0)),  # a quarter turn
    ((-1, 0, 0), (0, -1, 0)),  # half a turn
    ((0, 1, 0), (-1, 0, 0)),  # three quarter turns
    ((1, 0, -0.5), (0, 1, 0)),  # shifts by a quarter of the window, as in the paper
    ((1, 0, 0.5), (0, 1, 0)),
    ((1, 0, 0), (0, 1, -0.5)),
    ((1, 0, 0), (0, 1, 0.5)),
    ((1, 0.5, 0), (0, 1, 0)),  # shear along x
    ((1, 0, 0), (0.5, 1, 0)),  # shear along y
    ((1.5, 0, 0), (0, 1.5, 0)),  # from farther away
    ((2 / 3, 0, 0), (0, 2 / 3, 0)),  # from nearer
)


class Geometric(Method):
    """Section 4.1."""

    columns = ("image",)

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder  # f
        self.head = nn.Linear(encoder.dim, len(TRANSFORMATIONS))
        self.register_buffer("matrices", WINDOW * torch.tensor(TRANSFORMATIONS), persistent=False)  # (K, 2, 3)

    def forward(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        y = torch.randint(len(self.matrices), (len(x),), device=x.device)  # (N,)
        logits = self.head(self.encoder(image.affine(x, self.matrices[y]))).float()  # (N, K)
        return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}
