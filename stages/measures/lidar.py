"""LiDAR: in how many directions features tell objects apart, against how they differ among views of one object.

Thilak et al. LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures. ICLR 2024, section 4.
https://arxiv.org/abs/2312.04000

    S_b = covariance of the means of the n objects                                                               (2)
    S_w = mean over objects of the covariance of their q views, + delta I                                        (3)
    LiDAR = exp(- sum of p_k log p_k),   p_k = l_k / (l_1 + l_2 + ...) + eps,   l: eigenvalues of S_w^-1/2 S_b S_w^-1/2

It needs no label. Departs from the paper: delta is relative to the mean variance among views, so that the scale of the
features, which no probe sees, does not matter.
"""

import torch
from torch import Tensor

from .rank import EPSILON

DELTA = 1e-4


def lidar(views: Tensor) -> float:
    """Features (n objects, q views, D), n and q at least 2, to a number from 1 to min(n - 1, D).

    1 where all views of all objects are alike.
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
    spectrum = torch.linalg.eigvalsh(whitened @ between @ whitened).clamp(min=0)
    p = spectrum / spectrum.sum().clamp(min=tiny) + EPSILON
    return (-(p * p.log()).sum()).exp().item()
