"""Clustering: how well groups that k-means finds in features, without a label, are the classes.

Features are brought to unit length, so that k-means (whose distances are Euclidean) compares by the cosine, as k-NN and
retrieval do, and no direction weighs more for being wide. As many clusters as classes; the best of ten starts.

    NMI       normalised mutual information, 0 to 100                        Strehl, Ghosh, JMLR 2002
    ARI       adjusted Rand index: 0 by chance, 100 for the same groups      Hubert, Arabie, J. Classification 1985
    accuracy  with each cluster called by one class, as well as it can be (Hungarian algorithm)
"""

import warnings

import numpy as np
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score
from threadpoolctl import threadpool_limits
from torch import Tensor

STARTS = 10


def clustering(features: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Features (N, D) and labels (N,) to `nmi`, `ari` and `accuracy`, in percent; {} for fewer rows than classes."""
    if len(labels) < classes:
        return {}
    unit = F.normalize(features.float(), dim=1).cpu().numpy()
    with threadpool_limits(1), warnings.catch_warnings():  # with several threads, sums differ from run to run
        warnings.simplefilter("ignore", ConvergenceWarning)  # collapsed features have fewer groups than classes
        groups = KMeans(classes, n_init=STARTS, random_state=0).fit_predict(unit)
    return agreement(groups, labels.cpu().numpy(), classes)


def agreement(groups: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """How well groups (N,), numbered from 0 to `classes` - 1 in any order, are the labels (N,): as `clustering`."""
    table = confusion_matrix(labels, groups, labels=range(classes))
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return {
        "nmi": 100 * float(normalized_mutual_info_score(labels, groups)),
        "ari": 100 * float(adjusted_rand_score(labels, groups)),
        "accuracy": 100 * float(matched) / len(labels),
    }
