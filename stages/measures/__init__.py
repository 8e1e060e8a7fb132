"""What is measured on frozen features: arrays in, numbers out, one idea a file. `finetune` is given a network to train.

`protocol` says in which order, with `diagnostics` for what is told beside accuracies; `frozen` reads weights and data.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

Labelled = tuple[Tensor, Tensor]  # features (N, D) float32, labels (N,) int64 in [0, classes)
Setting = TypeVar("Setting", int, float)

CONSTANT = 1e-6  # a column that varies by less, relative to its largest value, varies by rounding alone


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The share of predictions (N,) that equal the labels (N,), in percent."""
    return 100 * (predictions == labels).sum().item() / len(labels)


def standard_error(percent: float, rows: int) -> float:
    """The binomial standard error of an accuracy that was counted on so many rows, in points."""
    return (percent * (100 - percent) / rows) ** 0.5


def best(scores: Mapping[Setting, float]) -> Setting:
    """The setting that scores highest; the first of equals."""
    return max(scores, key=scores.__getitem__)


def joined(first: Labelled, second: Labelled) -> Labelled:
    """The rows of both."""
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def varying(features: Tensor) -> Tensor:
    """Which columns of features (N, D) vary by more than rounding: (D,) bool."""
    return features.std(0, correction=0) > CONSTANT * features.abs().amax(0)
