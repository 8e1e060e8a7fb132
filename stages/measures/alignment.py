"""Alignment and uniformity of features on the unit sphere. They need no label; of both, less is better.

Wang, Isola. Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere. ICML
2020, section 4.1. https://arxiv.org/abs/2005.10242

    alignment  = mean over pairs of views of one object of |x - y|^2                                     (alpha = 2)
    uniformity = log of the mean over pairs of different rows of exp(-2 |x - y|^2)                           (t = 2)

where x and y are of unit length: from 0 to 4, and from -8 to 0.
"""

import torch.nn.functional as F
from torch import Tensor, pdist


def alignment(x: Tensor, y: Tensor) -> float:
    """Features (N, D) of one view of N objects, and of another."""
    first, second = (F.normalize(views.double(), dim=1) for views in (x, y))
    return (first - second).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """Features (N, D), N at least 2. All pairs are compared: N * N / 2 numbers are held at once."""
    return pdist(F.normalize(features.double(), dim=1)).square().mul(-2).exp().mean().log().item()
