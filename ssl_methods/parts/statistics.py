"""What is counted and measured while a method trains."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import masked_mean
from .processes import gather


def spread(z: Tensor) -> Tensor:
    """The mean deviation of normalised features, times sqrt(D): 1 when they fill the sphere, 0 when they collapse.

    Chen and He 2021, section 4.1.
    """
    z = F.normalize(z.detach().float(), dim=1)  # (N, D)
    return z.std(0).mean() * z.shape[1] ** 0.5


def covariance(z: Tensor) -> Tensor:
    """Of the features z (N, D), over N - 1: (D, D). Unlike `torch.cov`, it never waits for the device."""
    z = z - z.mean(0)
    return z.T @ z / (len(z) - 1)


class Moments(nn.Module):
    """The mean and the covariance of rows that come in batches, kept in float64."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(width, width, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Rows (N, D)."""
        x = x.double()
        self.count += len(x)
        self.total += x.sum(0)
        self.products += x.T @ x

    def mean(self) -> Tensor:
        return self.total / self.count  # (D,)

    def covariance(self) -> Tensor:
        """Over the number of rows: (D, D)."""
        mean = self.mean()
        return self.products / self.count - mean.outer(mean)


class Unigram(nn.Module):
    """How often each token has been seen in training: what there is to know without looking at its neighbours."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.register_buffer("counts", torch.ones(vocabulary))

    @torch.no_grad()
    def add(self, ids: Tensor) -> None:
        """The tokens (N, L) of all processes, but for the padding."""
        ids = gather(ids).flatten().long()
        self.counts.index_add_(0, ids, (ids > 0).to(self.counts.dtype))

    @torch.no_grad()
    def loss(self, target: Tensor) -> Tensor:
        """The mean cross-entropy of the tokens (T,), none of them padding, were each told from its frequency alone."""
        nats = (self.counts.sum() / self.counts).log()[target.long()]
        return masked_mean(nats, target > 0)
