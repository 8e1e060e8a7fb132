"""K-means: a dictionary of small patches, learned by clustering; a picture is how near its patches are to each entry.

Coates, Lee, Ng. An Analysis of Single-Layer Networks in Unsupervised Feature Learning. AISTATS 2011.
https://proceedings.mlr.press/v15/coates11a.html

    x = random patches, each of zero mean and unit deviation, then whitened: V (E + 0.1)^(-1/2) V^T (x - m)
    minimise over c    mean of min_k |x - c_k|^2                                       K-means, here by Lloyd's steps
    f_k(x) = max(0, mean_j |x - c_j| - |x - c_k|), summed over each quadrant           "triangle", in `Dictionary`

Departs from the paper: every pass over the data draws its patches anew, where the paper keeps one sample; a centroid
that no patch is nearest to becomes one of the latest patches.
"""

import torch
from torch import Tensor

from .. import Count, Method
from ..encoders.shallow import Dictionary
from ..modalities import image
from ..parts.losses import in_float32
from ..parts.processes import gather
from ..parts.statistics import Moments
from ..parts.teachers import enqueue


def random_patches(x: Tensor, count: int, side: int) -> Tensor:
    """`count` patches of each picture: (N, count, P)."""
    height, width = x.shape[2:]
    top = torch.randint(height - side + 1, (len(x), count), device=x.device)
    left = torch.randint(width - side + 1, (len(x), count), device=x.device)
    return image.cut(x, top, left, side).flatten(2)


def zca(covariance: Tensor, floor: float = 0.1) -> Tensor:
    """V (E + floor)^(-1/2) V^T of the covariance V E V^T, (P, P)."""
    values, axes = torch.linalg.eigh(covariance)
    return axes * (values + floor).rsqrt() @ axes.T


@in_float32
def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance of each patch (M, P) to its nearest centroid, (M,); and a one at that centroid, (M, K)."""
    distance, index = torch.cdist(x, centroids).min(1)
    return distance.square(), (index[:, None] == torch.arange(len(centroids), device=x.device)).float()


class KMeans(Method):
    """Needs the `Dictionary` encoder. The first pass fills its whitening; each further one is a step of Lloyd's."""

    columns = ("image",)
    passes = 11

    def __init__(self, encoder: Dictionary, *, patches: Count = 8):
        super().__init__()
        self.encoder, self.patches = encoder.requires_grad_(False), patches
        entries, width = encoder.centroids.shape  # K, P
        self.drawn = Moments(width)
        self.register_buffer("latest", torch.zeros(entries, width))
        self.register_buffer("members", torch.zeros(entries, 1, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(entries, width, dtype=torch.float64))

    def forward(self, batch):
        self.turn = self.passes_done()
        drawn = random_patches(image.unit(batch["image"]), self.patches, self.encoder.patch)
        drawn = gather(self.encoder.normalise(drawn))  # (N, count, P)
        drawn = drawn.transpose(0, 1).flatten(0, 1)  # (M, P): neighbours are of different pictures
        enqueue(self.latest, drawn)
        if self.turn == 0:
            self.drawn.add(drawn)
            return drawn.var(0).sum(), {}  # as far as patches are from a single centroid
        x = in_float32(self.encoder.whiten)(drawn)
        distance, member = nearest(x, self.encoder.centroids)
        self.members += member.sum(0)[:, None]
        self.sums += member.double().T @ x.double()
        return distance.mean(), {}

    def after_step(self):
        if self.passes_done() == self.turn:
            return
        if self.turn == 0:
            self.encoder.mean.copy_(self.drawn.mean())
            self.encoder.whitening.copy_(zca(self.drawn.covariance()))
        means, fresh = self.sums / self.members, self.encoder.whiten(self.latest)
        self.encoder.centroids.copy_(torch.where(self.members > 0, means, fresh))
        self.members.zero_()
        self.sums.zero_()
