"""The linear probe with few labels: with a share of train's, or with so many of each class.

The sets are a pure function of train's labels and the number of the draw, so that anybody can have the same. All rows
that have a label, in the order of the data, are shuffled by `numpy.random.RandomState(draw).permutation(rows)`, a
stream that NumPy has frozen; of each class, the first rows in that order are taken. So small sets are parts of large
ones. A share is that of each class (rounded, and at least one row): sets are stratified.

The strength of each fit's penalty is chosen on all of validation; validation's labels are not trained on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import Labelled, accuracy, linear


@dataclass(frozen=True)
class Drawn:
    """The probes of a few labels, one for each draw."""

    rows: int  # how many
    probes: list[linear.Classifier]


def rows_of(labels: Tensor, draw: int, wanted: Tensor) -> Tensor:
    """The rows of draw number `draw`, ascending: of each class, so many of labels (N,) as `wanted` (C,) says."""
    order = torch.from_numpy(np.random.RandomState(draw).permutation(len(labels)))
    return torch.cat([
        order[labels.cpu()[order] == label][:count] for label, count in enumerate(wanted.tolist())
    ]).sort().values  # fmt: skip


def budgets(labels: Tensor, shares: Collection[float], per_class: Collection[int]) -> dict[str, Tensor]:
    """How many rows of each class, (C,), by name: {"1 %": ..., "5 per class": ...}."""
    counts = labels.cpu().bincount()
    wanted = {f"{100 * share:g} %": (share * counts).round().long().clamp(min=1) for share in shares}
    return wanted | {f"{each} per class": torch.full_like(counts, each) for each in per_class}


def choose(
    train: Labelled,
    validation: Labelled,
    *,
    shares: Collection[float],
    per_class: Collection[int],
    draws: int,
    strengths: Collection[float],
    classes: int,
) -> dict[str, Drawn]:
    """For each budget and draw, the probe that does best on validation; of equals, the one with most penalty."""
    chosen = {}
    for name, wanted in budgets(train[1], shares, per_class).items():
        probes = []
        for draw in range(draws):
            rows = rows_of(train[1], draw, wanted).to(train[1].device)
            few = train[0][rows], train[1][rows]
            path = [probe for _, probe in linear.fit(few, strengths=strengths, classes=classes, change=linear.COARSE)]
            probes.append(max(path, key=lambda probe: accuracy(probe.predict(validation[0]), validation[1])))
        chosen[name] = Drawn(len(rows), probes)
    return chosen


def read(chosen: Mapping[str, Drawn], test: Labelled) -> dict[str, dict[str, float | int | list[float]]]:
    """Reads test: {name: {"accuracy": the mean over draws, in percent, "draws": each, "rows": how many labels}}."""
    found = {}
    for name, drawn in chosen.items():
        scores = [accuracy(probe.predict(test[0]), test[1]) for probe in drawn.probes]
        found[name] = {"accuracy": sum(scores) / len(scores), "draws": scores, "rows": drawn.rows}
    return found
