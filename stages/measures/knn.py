"""Weighted k-nearest-neighbour classification of features.

Wu, Xiong, Yu, Lin. Unsupervised Feature Learning via Non-Parametric Instance Discrimination. CVPR 2018.
https://arxiv.org/abs/1805.01978; the protocol of DINO, and of most tables since.

    votes for class c = sum of exp(similarity / temperature), over the k nearest rows of the bank that are of class c

Similarity is the cosine.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Labelled, accuracy, best, joined


@dataclass(frozen=True)
class Voted:
    """What k-NN says of features. Accuracies are in percent."""

    k: int  # chosen on validation data
    validation: float  # accuracy, with train as the bank
    test: float  # accuracy, with train and validation as the bank


def predict(
    bank: Labelled, queries: Tensor, *, ks: Collection[int], temperature: float, classes: int, block: int = 1024
) -> dict[int, Tensor]:
    """The classes of queries (N, D), for each k in `ks`, all from one search of the bank: {k: (N,) int64}.

    A k larger than the bank stands for the whole bank. `block` queries are compared at a time, so that memory is block
    times the size of the bank.
    """
    features, labels = F.normalize(bank[0], dim=1), bank[1]
    predictions = {k: [] for k in ks}
    for rows in queries.split(block):
        similarity = F.normalize(rows, dim=1) @ features.T  # (n, M)
        nearest, index = similarity.topk(min(max(ks), len(features)))  # (n, K), the nearest first
        # A common factor changes no vote. With the nearest at 1, no temperature makes all weights 0 or infinite.
        weights, voters = ((nearest - nearest[:, :1]) / temperature).exp(), labels[index]
        for k in ks:
            votes = weights.new_zeros(len(rows), classes).scatter_add_(1, voters[:, :k], weights[:, :k])
            predictions[k].append(votes.argmax(1))
    return {k: torch.cat(blocks) for k, blocks in predictions.items()}


def scores(
    bank: Labelled, queries: Labelled, *, ks: Collection[int], temperature: float, classes: int
) -> dict[int, float]:
    """The accuracy on the queries for each k, in percent."""
    predictions = predict(bank, queries[0], ks=ks, temperature=temperature, classes=classes)
    return {k: accuracy(predicted, queries[1]) for k, predicted in predictions.items()}


def read(
    curve: Mapping[int, float],
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    temperature: float,
    classes: int,
) -> Voted:
    """Takes train and validation together as the bank, at the best k of a curve on validation, and reads test, once."""
    k = best(curve)
    tested = scores(joined(train, validation), test, ks=[k], temperature=temperature, classes=classes)
    return Voted(k=k, validation=curve[k], test=tested[k])
