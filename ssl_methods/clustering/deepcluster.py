"""DeepCluster: sort all pictures into groups by their features, learn to tell the groups, and sort again.

Caron, Bojanowski, Joulin, Douze. Deep Clustering for Unsupervised Learning of Visual Features. ECCV 2018.
https://arxiv.org/abs/1807.05520, in its second version: Caron et al. 2020, https://arxiv.org/abs/2006.09882, Appendix D

    max_C  sum_n  max_k  c_k . z_n,  |c_k| = 1                             spherical k-means of z_n: the feature of
    y_n = argmax_k c_k . z_n                                               picture n as it was when last seen
    L = - log  exp(c_y . z / T) / sum_k exp(c_k . z / T)                   the mean over views and several groupings

Pictures are sorted `rounds` times in a run, which is once an epoch in the paper. In the first round they are only
remembered: there is nothing yet to learn.

Departs from the paper: no blur; a picture that is seen for the first time is grouped by its feature of now.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative, Positive
from ..modalities import image
from ..parts.heads import mlp
from ..parts.losses import in_float32
from ..parts.processes import agreed, gather
from ..parts.statistics import spread


@torch.no_grad()
def spherical_kmeans(z: Tensor, count: int, iterations: int) -> Tensor:
    """Centroids (K, D) of unit length for the rows of z (R, D); those that are zero have no say."""
    unseen = ~z.any(1)
    centroids = z[(unseen + agreed(torch.rand(len(z), device=z.device))).argsort()[:count]]  # (K, D)
    names = torch.arange(count, device=z.device)
    for _ in range(iterations):
        members = (z @ centroids.T).argmax(1, keepdim=True) == names  # (R, K)
        means = F.normalize(members.to(z.dtype).T @ z, dim=1)
        centroids = torch.where(means.any(1, keepdim=True), means, centroids)  # an empty group stays as it is
    return centroids


@in_float32
def group_loss(z: Tensor, prototypes: Tensor, known: Tensor, temperature: float) -> Tensor:
    """L. z: (V, N, D), prototypes: (G, K, D), known: (G, N, D), z_n for each grouping; all of unit length."""
    groups = (known @ prototypes.mT).argmax(-1)  # (G, N)
    logits = torch.einsum("vnd,gkd->vgnk", z, prototypes) / temperature
    return F.cross_entropy(logits.flatten(0, 2), groups.expand(len(z), -1, -1).flatten())


class DeepCluster(Method):
    """DeepCluster-v2, without multi-crop. Grouping i is of the features of view i mod 2."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        rows: int,
        hidden: Count = 2048,
        width: Count = 128,
        groupings: Count = 3,
        prototypes: Count = 3000,
        iterations: Count = 10,
        rounds: Count = 400,
        strength: NonNegative = 1.0,
        temperature: Positive = 0.1,
    ):
        super().__init__()
        if prototypes > rows:
            raise ValueError(f"`prototypes` {prototypes} are more than the {rows} pictures")
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden, width)
        self.register_buffer("memory", torch.zeros(2, rows, width))  # z_n of both views, zero where not yet seen
        self.register_buffer("prototypes", torch.zeros(groupings, prototypes, width))  # c_k
        self.iterations, self.rounds = iterations, rounds
        self.strength, self.temperature = strength, temperature

    def forward(self, batch):
        x = image.simclr_view(image.unit(batch["image"]).repeat(2, 1, 1, 1), self.strength)  # (2N, 3, H, W)
        z = F.normalize(self.projector(self.encoder(x)).float(), dim=1).unflatten(0, (2, -1))  # (2, N, D)
        self.index, self.latest, self.round = batch["index"], z.detach(), self.round_at(self.progress)

        known = self.memory[:, self.index]  # (2, N, D)
        known = torch.where(known.any(2, keepdim=True), known, self.latest)
        known = torch.stack([known[i % 2] for i in range(len(self.prototypes))])  # (G, N, D)
        loss = group_loss(z if self.round else self.latest, self.prototypes, known, self.temperature)
        return loss, {"spread": spread(self.latest.flatten(0, 1))}

    def round_at(self, progress: float) -> int:
        return int(progress * self.rounds)

    def after_step(self):
        self.memory[:, gather(self.index)] = torch.stack([gather(view) for view in self.latest])
        if self.round_at(self.progress) > self.round:
            for i, prototypes in enumerate(self.prototypes):
                prototypes.copy_(spherical_kmeans(self.memory[i % 2], len(prototypes), self.iterations))
