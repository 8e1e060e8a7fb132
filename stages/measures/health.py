"""The health of features: whether they vary, in how many directions, and how views of one object lie. No label is read.

Features are (N, D), one row per object, unless it says otherwise. All is reckoned in doubles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import varying

EPSILON = 1e-7  # RankMe's and LiDAR's, for features in single precision
DELTA = 1e-4  # LiDAR's, relative


def effective_rank(features: Tensor) -> float:
    """RankMe: in how many directions features vary, from 1 to min(N, D); 1 where they are all zero.

        p_k = s_k / (s_1 + s_2 + ...) + eps,    RankMe = exp(- sum of p_k log p_k)

    where s are the singular values of the features, not centred: D when all directions count equally, 1 when there is
    one. Garrido, Balestriero, Najman, LeCun. RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank. ICML 2023, equation (1). https://arxiv.org/abs/2210.02885
    """
    return exp_entropy(torch.linalg.svdvals(features.double()))


def exp_entropy(values: Tensor) -> float:
    """The exponential of the entropy of values that are not negative, brought to a sum of 1."""
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + EPSILON
    return (-(p * p.log()).sum()).exp().item()


def lidar(views: Tensor) -> float:
    """LiDAR: in how many directions features tell objects apart, against how they differ among views of one object.

        S_b = covariance of the means of the n objects                                                           (2)
        S_w = mean over objects of the covariance of their q views, + delta I                                    (3)
        LiDAR = RankMe's exponential of the entropy, of the eigenvalues of S_w^-1/2 S_b S_w^-1/2

    Features (n objects, q views, D), n and q at least 2, to a number from 1 to min(n - 1, D); 1 where all views of all
    objects are alike. Thilak et al. LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures.
    ICLR 2024, section 4. https://arxiv.org/abs/2312.04000

    Departs from the paper: delta is relative to the mean variance among views, so that the scale of the features, which
    no probe sees, does not matter.
    """
    n, q, width = views.shape
    wide = views.double()
    means = wide.mean(1)  # (n, D)
    inner = (wide - means[:, None]).flatten(0, 1)  # (n * q, D)
    outer = means - means.mean(0)
    within, between = inner.T @ inner / (n * (q - 1)), outer.T @ outer / (n - 1)  # (D, D) each
    tiny = torch.finfo(wide.dtype).tiny ** 0.5  # its inverse square root is still a number
    variance = within.diagonal().mean().clamp(min=tiny)
    values, axes = torch.linalg.eigh(within + DELTA * variance * torch.eye(width, dtype=wide.dtype, device=wide.device))
    whitened = axes / values.sqrt() @ axes.T
    return exp_entropy(torch.linalg.eigvalsh(whitened @ between @ whitened).clamp(min=0))


def spread(features: Tensor) -> float:
    """How widely features spread over the unit sphere, from 0 to 1: the collapse check of SimSiam.

        spread = sqrt(D) * the mean over channels of the standard deviation of  h / |h|

    1 when features point evenly in all directions, 0 when all inputs share one. Features that are never negative, as
    after a ReLU, lie well below 1 when they are healthy. Chen, He. Exploring Simple Siamese Representation Learning.
    CVPR 2021, section 4.1. https://arxiv.org/abs/2011.10566
    """
    unit = F.normalize(features.double(), dim=1)
    return (unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5).item()


def dead(features: Tensor) -> float:
    """The share of columns that do not vary by more than rounding, in percent, as after a ReLU that never opens."""
    return 100 * (~varying(features)).double().mean().item()


def alignment(x: Tensor, y: Tensor) -> float:
    """The mean squared distance of two views of one object on the unit sphere, from 0 to 4; less is better.

    Features (N, D) of one view of N objects, and of another. Wang, Isola. Understanding Contrastive Representation
    Learning through Alignment and Uniformity on the Hypersphere. ICML 2020, section 4.1, with alpha = 2.
    https://arxiv.org/abs/2005.10242
    """
    first, second = (F.normalize(views.double(), dim=1) for views in (x, y))
    return (first - second).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """The log of the mean of exp(-2 |x - y|^2) over pairs of rows on the unit sphere, from -8 to 0; less is better.

    The same paper's, with t = 2. N is at least 2. All pairs are compared: N * N / 2 numbers are held at once.
    """
    return torch.pdist(F.normalize(features.double(), dim=1)).square().mul(-2).exp().mean().log().item()
