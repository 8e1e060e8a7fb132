"""Zero-shot classification: a picture is of the class whose name lies nearest, and no labelled picture is needed.

Radford et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021, section 3.1.
https://arxiv.org/abs/2103.00020

A class that has several names is the mean of their directions (section 3.1.4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import accuracy


def zero_shot(features: Tensor, labels: Tensor, prompts: Tensor, classes: Tensor) -> dict[str, float]:
    """Accuracy in percent on features (N, D) with labels (N,), by prompts (P, D), each of one of the `classes` (P,).

    Rows without a label (-1) do not count. Beside it, the share of the most frequent class: what naming it would reach.
    """
    known = labels >= 0
    names = torch.zeros(int(classes.max()) + 1, prompts.shape[1], device=prompts.device)
    names = F.normalize(names.index_add(0, classes, F.normalize(prompts, dim=1)), dim=1)  # (C, D)
    predicted = (F.normalize(features[known], dim=1) @ names.T).argmax(1)
    most = labels[known].bincount().max().item()
    return {"accuracy": accuracy(predicted, labels[known]), "majority": 100 * most / int(known.sum())}
