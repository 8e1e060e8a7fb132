"""What is measured on frozen features: arrays in, numbers out. One idea a file; no model and no file is opened here."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

Labelled = tuple[Tensor, Tensor]  # features (N, D) float32, labels (N,) int64 in [0, classes)
Setting = TypeVar("Setting", int, float)


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
