"""DeepCluster: group all pictures by their features, learn to tell the groups, and group again.

Caron, Bojanowski, Joulin, Douze. Deep Clustering for Unsupervised Learning of Visual Features. ECCV 2018.
https://arxiv.org/abs/1807.05520, in its second version: Caron et al. 2020, https://arxiv.org/abs/2006.09882, Appendix

    max_C  sum_n  max_k  c_k . z_n,  |c_k| = 1                             spherical k-means of the features z_n of all
                                                                           pictures, kept since each was last seen
    y_n = argmax_k c_k . z_n
    L = - log  exp(c_y . z / T) / sum_k exp(c_k . z / T)                   the mean over views and several groupings

Groups are made anew `rounds` times in a run, which is once an epoch in the paper. Up to the first time pictures are
only remembered: there is nothing yet to learn.

Departs from the paper: no blur; a picture that has not been seen when groups are made belongs to none until the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative, Positive
from ..modalities import image
from ..parts import gather, in_float32, mlp, spread


@torch.no_grad()
def spherical_kmeans(z: Tensor, count: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Centroids (K, D) of unit length, and the nearest one to each row of z (R, D); an empty group stays as it is."""
    centroids = z[torch.rand(len(z), device=z.device).argsort()[:count]]  # (K, D)
    names = torch.arange(count, device=z.device)
    for _ in range(iterations):
        nearest = (z @ centroids.T).argmax(1)  # (R,)
        members = nearest[:, None] == names  # (R, K)
        means = F.normalize(members.to(z.dtype).T @ z, dim=1)
        centroids = torch.where(members.any(0)[:, None], means, centroids)
    return centroids, (z @ centroids.T).argmax(1)


@in_float32
def group_loss(z: Tensor, prototypes: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """L, of what has a group. z: (V, N, D), prototypes: (G, K, D), all of unit length; groups: (G, N), -1 for none."""
    logits = torch.einsum("vnd,gkd->gvnk", z, prototypes) / temperature
    groups = groups[:, None].expand(logits.shape[:3])  # (G, V, N)
    total = F.cross_entropy(logits.flatten(0, 2), groups.flatten(), ignore_index=-1, reduction="sum")
    return total / (groups >= 0).sum().clamp(min=1)


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
        self.register_buffer("memory", torch.zeros(2, rows, width))  # z_n of both views
        self.register_buffer("prototypes", torch.zeros(groupings, prototypes, width))  # c_k
        self.register_buffer("groups", torch.full((groupings, rows), -1))  # y_n
        self.iterations, self.rounds = iterations, rounds
        self.strength, self.temperature = strength, temperature

    def forward(self, batch):
        x = image.simclr_view(image.unit(batch["image"]).repeat(2, 1, 1, 1), self.strength)  # (2N, 3, H, W)
        z = F.normalize(self.projector(self.encoder(x)).float(), dim=1).unflatten(0, (2, -1))  # (2, N, D)
        self.seen, self.latest, self.round = batch["index"], z.detach(), self.round_at(self.progress)
        known = z if self.round else z.detach()
        loss = group_loss(known, self.prototypes, self.groups[:, self.seen], self.temperature)
        return loss, {"spread": spread(z.flatten(0, 1))}

    def round_at(self, progress: float) -> int:
        return int(progress * self.rounds)

    def after_step(self):
        views = [gather(view) for view in self.latest]
        self.memory[:, gather(self.seen)] = torch.stack(views)
        if self.round_at(self.progress) > self.round:
            for i, (prototypes, groups) in enumerate(zip(self.prototypes, self.groups, strict=True)):
                z = self.memory[i % 2]  # (R, D)
                centroids, nearest = spherical_kmeans(z, len(prototypes), self.iterations)
                prototypes.copy_(centroids)
                groups.copy_(torch.where(z.any(1), nearest, -1))
