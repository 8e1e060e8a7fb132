"""The nearest neighbours of queries, by the cosine: to look at, where `knn` counts votes."""

import torch.nn.functional as F
from torch import Tensor


def nearest(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """The rows of the bank (M, D) nearest to each query (N, D), nearest first: (N, min(k, M)) int64."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    return similarity.topk(min(k, len(bank)), dim=1).indices
