"""Means, intervals and ties over seeds: what may be said of a handful of runs.

Runs are paired by seed: the same seed means the same initial encoder and the same order of the data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST = 3  # seeds; below that a spread says nothing, and no interval is given


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and its 95 % Student-t interval; `low` and `high` are None below three seeds."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Comparison:
    """How an entry stands to the leader: the paired difference (theirs minus the leader's) and its Holm-adjusted p."""

    difference: Estimate
    p: float

    @property
    def tied(self) -> bool:
        return self.p >= 1 - LEVEL


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of (n,) finite values with its interval. Raises ValueError when there are none."""
    n = len(values)
    if n == 0:
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    if n < FEWEST:
        return Estimate(mean, None, None, n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * standard_error(values))
    return Estimate(mean, mean - half, mean + half, n)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """`values` minus `reference`, paired by seed; both {seed: value}. Raises ValueError when they share no seed."""
    return estimate([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())])


def paired_p(values: Mapping[int, float], reference: Mapping[int, float]) -> float:
    """The two-sided p of a paired t-test over the seeds of `reference`, all of which `values` must have."""
    differences = [values[seed] - reference[seed] for seed in sorted(reference)]
    mean, error = float(np.mean(differences)), standard_error(differences)
    if error == 0:  # equal in every seed, or apart by the same amount in every seed: the limits of the test
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of m p-values, in the order given."""
    adjusted, floor = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        floor = max(floor, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = floor
    return adjusted


def compare(entries: Mapping[str, Mapping[int, float]]) -> tuple[str, dict[str, Comparison]]:
    """The entry of highest mean, and how each other stands to it.

    `entries` is {name: {seed: value}}, every entry over the same seeds. Below three seeds nothing is tested, and the
    comparisons are empty. Raises ValueError when there are no entries.
    """
    if not entries:
        raise ValueError("no entries to compare")
    leader = max(entries, key=lambda name: float(np.mean(list(entries[name].values()))))
    best = entries[leader]
    others = [name for name in entries if name != leader]
    if len(best) < FEWEST:
        return leader, {}
    ps = holm([paired_p(entries[name], best) for name in others])
    return leader, {name: Comparison(difference(entries[name], best), p) for name, p in zip(others, ps, strict=True)}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of (n,) values, n > 1."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
