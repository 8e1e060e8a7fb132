"""Results and tables as pandas frames: what reports/*.csv and summary.json hold."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from .quantities import HEALTH, MEASURES, PREDICTORS
from .results import Results
from .statistics import Correlation
from .table import Board, Cell

STANDING = (
    *("modality", "method", "measure", "mean", "low", "high", "n", "standing", "difference", "p_holm"),
    *("place", "place_mean", "place_low", "place_high", "gain", "gain_low", "gain_high", "gain_p_holm"),
)
AGREEMENT = (
    *("modality", "measure", "better", "methods"),
    *("spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high"),
)


def csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")


def runs(results: Results) -> pd.DataFrame:
    """One row for each number of each run, empty where the run lacks it, beside the run's status.

    An entry has the accuracies that any run of its modality has, and the other numbers that any of its own runs has.
    """
    rows = []
    for modality in results.modalities:
        accuracies = [key for key in MEASURES if any(key in run.numbers for _, run in modality.runs)]
        for entry in modality.entries:
            keys = dict.fromkeys([*accuracies, *(key for run in entry.runs for key in run.numbers)])
            named = {"modality": modality.name, "method": entry.name}
            rows += [
                named | {"seed": run.seed, "measure": key, "value": run.value(key), "status": run.status}
                for run in entry.runs
                for key in keys
            ]
    columns = ["modality", "method", "seed", "measure", "value", "status"]
    return pd.DataFrame(rows, columns=columns, dtype=object)  # so that whole numbers stay whole


def curves(results: Results) -> pd.DataFrame:
    rows = [
        (modality.name, entry.name, run.seed, samples, loss)
        for modality in results.modalities
        for entry, run in modality.runs
        for samples, loss in run.curve.items()
    ]
    return pd.DataFrame(rows, columns=["modality", "method", "seed", "samples", "loss"], dtype=object)


def leaderboard(boards: list[Board]) -> pd.DataFrame:
    rows = [
        (b.modality.name, row.name, measure, *standing(cell))
        for b in boards
        for row in b.rows
        for measure, cell in row.cells.items()
    ]
    return pd.DataFrame(rows, columns=STANDING, dtype=object)


def standing(cell: Cell) -> Iterable[Any]:
    """From `mean` on. Where there is no interval, low and high are the mean: `dvc plots` then draws a point."""
    estimate, comparison, place, gain = cell.estimate, cell.comparison, cell.place, cell.gain
    low, high = (estimate.mean,) * 2 if estimate.low is None else (estimate.low, estimate.high)
    yield from map(rounded, (estimate.mean, low, high, estimate.n, cell.standing))
    yield from map(rounded, (comparison.difference.mean, comparison.p)) if comparison else (None,) * 2
    yield from map(rounded, (place.rank, place.mean, place.low, place.high)) if place else (None,) * 4
    yield from map(rounded, (gain.mean, gain.low, gain.high, gain.p)) if gain else (None,) * 4


def agreement(boards: list[Board]) -> pd.DataFrame:
    rows = [
        (b.modality.name, key, PREDICTORS[key].better, found.n, *bounds(found.spearman), *bounds(found.kendall))
        for b in boards
        for key, found in b.agreement.items()
    ]
    return pd.DataFrame(rows, columns=AGREEMENT, dtype=object)


def bounds(found: Correlation | None) -> Iterable[float | None]:
    return map(rounded, (found.value, found.low, found.high)) if found else (None,) * 3


def rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def means(boards: list[Board]) -> dict[str, dict[str, dict[str, float]]]:
    """{modality: {entry: {measure: mean over seeds}}}: accuracies in percent, and the features' health.

    What `dvc metrics diff` can compare, so without seconds, which differ from run to run.
    """
    shown = (*MEASURES, *HEALTH)
    return {
        b.modality.name: {
            row.name: {key: round(mean, 2) for key in shown if (mean := row.mean(key)) is not None} for row in b.rows
        }
        for b in boards
    }
