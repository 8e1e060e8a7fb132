"""The confusion matrix: which classes are taken for which."""

import torch
from torch import Tensor


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Counts (classes, classes): rows are the true class, columns the predicted one. Both inputs are (N,) int64."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).tolist()
