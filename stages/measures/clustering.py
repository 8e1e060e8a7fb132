"""Clustering: how well groups that k-means finds in features, without a label, are the classes.

Features are brought to unit length, so that k-means (whose distances are Euclidean) compares by the cosine, as k-NN and
retrieval do, and no direction weighs more for being wide. As many clusters as classes; the best of ten starts.

    NMI       normalised mutual information, 0 to 100                        Strehl, Ghosh, JMLR 2002
    ARI       adjusted Rand index: 0 by chance, 100 for the same groups      Hubert, Arabie, J. Classification 1985
    accuracy  with each cluster called by one class, as well as it can be (Hungarian algorithm)

All is written out here, and tested against scikit-learn, which takes ten times as long to import as this takes to run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import entr

STARTS = 10
ITERATIONS = 300  # of Lloyd's algorithm at most; it ends where no row changes its group
FAINT = 1e-12  # to draw from rows that are all alike


def clustering(features: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Features (N, D) and labels (N,) to `nmi`, `ari` and `accuracy`, in percent; {} for fewer rows than classes."""
    if len(labels) < classes:
        return {}
    generator, unit = torch.Generator().manual_seed(0), F.normalize(features.float(), dim=1).cpu()
    found = [kmeans(unit, starts(unit, classes, generator)) for _ in range(STARTS)]
    return agreement(min(found, key=lambda one: one[1])[0], labels.cpu(), classes)


def starts(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows of x (N, D) to start from, (K, D): each far from those before it, by chance.

    Arthur, Vassilvitskii. k-means++: The Advantages of Careful Seeding. SODA 2007, section 2.2.
    """
    chosen = [x[torch.randint(len(x), (1,), generator=generator)]]  # (1, D)
    away = torch.full((len(x),), torch.inf)
    while len(chosen) < count:
        away = away.minimum((x - chosen[-1]).square().sum(1))
        chosen.append(x[torch.multinomial(away + FAINT, 1, generator=generator)])
    return torch.cat(chosen)


def kmeans(x: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Lloyd's algorithm: the groups of x (N, D) that it ends in, (N,), and the mean squared distance to their centres.

    A group that loses its last row keeps its centre.
    """
    groups = None
    for _ in range(ITERATIONS):
        distance, nearest = torch.cdist(x, centroids).min(1)
        if groups is not None and nearest.equal(groups):
            break
        groups, members = nearest, F.one_hot(nearest, len(centroids)).float()  # (N,), (N, K)
        counts = members.sum(0)[:, None]
        centroids = torch.where(counts > 0, members.T @ x / counts.clamp(min=1), centroids)
    return nearest, distance.square().mean().item()


def agreement(groups: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """How well groups (N,), numbered from 0 to `classes` - 1 in any order, are the labels (N,): as `clustering`."""
    from scipy.optimize import linear_sum_assignment  # here, because to import it takes half a second

    table = torch.bincount(groups * classes + labels, minlength=classes**2).view(classes, classes).double()
    matched = table.numpy()[linear_sum_assignment(table, maximize=True)].sum()

    joint = table / len(labels)
    apart = entr(joint.sum(0)).sum() + entr(joint.sum(1)).sum()  # nats
    nmi = 2 * (1 - entr(joint).sum() / apart) if apart > 0 else 1.0

    both, one, other = (n.mul(n - 1).sum() / 2 for n in (table, table.sum(0), table.sum(1)))  # pairs of rows
    chance = one * other / (len(labels) * (len(labels) - 1) / 2)
    ari = (both - chance) / ((one + other) / 2 - chance) if one + other > 2 * chance else 1.0
    return {"nmi": 100 * float(nmi), "ari": 100 * float(ari), "accuracy": 100 * float(matched) / len(labels)}
