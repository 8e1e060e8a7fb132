"""How widely features spread over the unit sphere: the collapse check of SimSiam. It needs no label.

Chen, He. Exploring Simple Siamese Representation Learning. CVPR 2021, section 4.1. https://arxiv.org/abs/2011.10566

    spread = sqrt(D) * the mean over channels of the standard deviation of  h / |h|

1 when features point evenly in all directions, 0 when all inputs share one. Features that are never negative, as after
a ReLU, lie well below 1 when they are healthy.
"""

import torch.nn.functional as F
from torch import Tensor


def spread(features: Tensor) -> float:
    """Features (N, D) to a number from 0 to 1."""
    unit = F.normalize(features.double(), dim=1)
    return (unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5).item()
