"""Encoders of a single stage, which the baselines fill: raw pixels, PCA, k-means and LSA."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count
from .convolutional import centre


class Shallow(nn.Module):
    """An encoder of a single stage."""

    def depths(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self(x)}


class Pixels(Shallow):
    """The pixels themselves, with nothing to train: pictures are first reduced to side x side."""

    def __init__(self, *, side: Count = 32):
        super().__init__()
        self.side, self.dim = side, 3 * side * side

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(centre(x), self.side).flatten(1)  # (N, 3 * side * side)


class Projection(Shallow):
    """One linear map of the pixels, which PCA fills: pictures are first reduced to side x side."""

    def __init__(self, *, side: Count = 16, width: Count = 128):
        super().__init__()
        self.pixels, self.dim = Pixels(side=side), width
        self.linear = nn.Linear(self.pixels.dim, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pixels(x))  # (N, D)


class BagOfWords(Shallow):
    """How often each token occurs in a sentence, tf-idf weighted and of unit length, through one linear map.

    Which LSA fills. The weights are scikit-learn's `TfidfVectorizer`'s.
    """

    def __init__(self, *, vocabulary: int, width: Count = 100):
        super().__init__()
        self.dim = width
        self.idf = nn.Parameter(torch.ones(vocabulary))
        self.linear = nn.Linear(vocabulary, width, bias=False)

    def counts(self, ids: Tensor) -> Tensor:
        """How often each token occurs; the special ones ([PAD], [CLS], [SEP], [MASK]) do not count. (N, L) -> (N, V)"""
        return torch.zeros(len(ids), len(self.idf), device=ids.device).scatter_add(1, ids.long(), (ids > 3).float())

    def weighted(self, ids: Tensor) -> Tensor:
        """(N, L) -> (N, V), of unit length"""
        return F.normalize(self.counts(ids) * self.idf, dim=1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.weighted(ids))  # (N, D)


class Dictionary(Shallow):
    """How near each patch of a picture is to each of `width` centroids, summed over the picture's four quadrants.

    K-means fills it. Coates, Lee, Ng. An Analysis of Single-Layer Networks in Unsupervised Feature Learning. AISTATS
    2011. https://proceedings.mlr.press/v15/coates11a.html
    """

    def __init__(self, *, patch: Count = 6, width: Count = 1600):
        super().__init__()
        self.patch, self.dim = patch, 4 * width
        values = 3 * patch * patch  # P
        self.mean = nn.Parameter(torch.zeros(values))
        self.whitening = nn.Parameter(torch.eye(values))
        self.centroids = nn.Parameter(torch.randn(width, values))  # (K, P)

    def normalise(self, patches: Tensor) -> Tensor:
        """Each patch (..., P) to zero mean and unit variance, where it has any: 10 is little on the scale of 0..255."""
        return F.layer_norm(patches, patches.shape[-1:], eps=10 / 255**2)

    def whiten(self, patches: Tensor) -> Tensor:
        """(..., P) -> (..., P)"""
        return F.linear(patches, self.whitening.T, -self.mean @ self.whitening)

    def activation(self, x: Tensor) -> Tensor:
        """The triangle: by how much each centroid is nearer than the mean one. (N, 3, H, W) -> (N, places, K)"""
        patches = self.whiten(self.normalise(F.unfold(x, self.patch).mT))  # (N, places, P)
        distance = torch.cdist(patches.flatten(0, 1), self.centroids).unflatten(0, patches.shape[:2])
        return F.relu(distance.mean(2, keepdim=True) - distance)

    def forward(self, x: Tensor) -> Tensor:
        half = (x.shape[2] - self.patch + 2) // 2  # of the places where a patch may begin
        near, far = slice(half + self.patch - 1), slice(half, None)
        quadrants = [x[:, :, rows, cols] for rows in (near, far) for cols in (near, far)]
        return torch.cat([self.activation(quadrant).sum(1) for quadrant in quadrants], dim=1)  # (N, 4 * K)
