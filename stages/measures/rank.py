"""RankMe, the effective rank of features: in how many directions they vary. It needs no label.

Garrido, Balestriero, Najman, LeCun. RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank. ICML 2023. https://arxiv.org/abs/2210.02885

    p_k = s_k / (s_1 + s_2 + ...) + eps                       s: the singular values of the features            (1)
    RankMe = exp(- sum of p_k log p_k)                        D when all directions count equally, 1 when there is one
"""

import torch
from torch import Tensor

EPSILON = 1e-7  # the paper's, for features in single precision


def effective_rank(features: Tensor) -> float:
    """Features (N, D), not centred, to a number from 1 to min(N, D); 1 where they are all zero."""
    values = torch.linalg.svdvals(features.double())
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + EPSILON
    return (-(p * p.log()).sum()).exp().item()
