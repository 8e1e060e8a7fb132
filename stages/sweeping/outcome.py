"""What a sweep leaves: its trials as a table, the best settings ready to paste, and three figures.

Only trials.csv holds times; all else is the same bytes whenever the trials are the same.
"""

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from ..common.files import replacing, write_json
from ..common.settings import Sweep
from .space import Search
from .study import best_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

MEASURE = "linear probe on validation data, %"
STYLE = {"svg.hashsalt": "sweep", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
Space = dict[str, BaseDistribution]


def write(folder: Path, search: Search, results: list[FrozenTrial], block: dict[str, Any]) -> None:
    """Writes all files of a finished sweep. `block` is what to paste into params.yaml to adopt the best result.

    Trial 0 is the entry as it stands; a trial without a value diverged.
    """
    space = {axis: results[0].distributions[axis] for axis in search.sweep.space}
    weights, best = importances(results, space), best_of(results)
    with replacing(folder / "trials.csv") as file:
        write_table(file, space, results)
    with replacing(folder / "best.yaml") as file:
        file.write_text(best_yaml(search.sweep, results, block), encoding="utf-8")
    save(draw_importances(weights, space), folder / "importance.svg")
    save(draw_slices(results, space), folder / "slice.svg")
    save(draw_parallel(results, space), folder / "parallel.svg")
    summary = {
        "trials": len(results),
        "diverged": sum(r.value is None for r in results),
        "epochs": search.sweep.epochs,
        "seed": search.sweep.seed,
        "default_value": results[0].value,
        "best_value": best and best.value,
        "best_trial": best and best.number,
        "best_params": best and {axis: best.params[axis] for axis in space},
        "importance": weights,
    }
    write_json(folder / "study.json", summary)


def write_table(path: Path, space: Space, results: list[FrozenTrial]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["number", "state", "value", *space, "seconds"])
        for r in results:
            state = "diverged" if r.value is None else "complete"
            values = (r.params[axis] for axis in space)
            table.writerow([r.number, state, r.value, *values, f"{r.user_attrs['seconds']:.1f}"])


def best_yaml(sweep: Sweep, results: list[FrozenTrial], block: dict[str, Any]) -> str:
    """The block to paste, below a comment that says what it is worth."""
    best, default = best_of(results), results[0]
    if best is None:
        return f"# All {len(results)} trials diverged: there is nothing to adopt.\n"
    before = "diverged" if default.value is None else f"scored {default.value:.2f}"
    trials = f"{len(results)} trials of {sweep.epochs:g} epochs and one seed"
    return (
        f"# {best.value:.2f} ({MEASURE}) in trial {best.number}; the settings in use {before} in trial 0.\n"
        f"# {trials}: try a small gain with more seeds before adopting it.\n"
        f"{yaml.safe_dump(block, sort_keys=False)}"
    )


def importances(results: list[FrozenTrial], space: Space) -> dict[str, dict[str, float]]:
    """{evaluator: {axis: share of the score's variation}}; empty where the scores do not differ.

    Two evaluators, because they may well disagree on so few trials.
    """
    scored = [r for r in results if r.value is not None]
    if len({r.value for r in scored}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(scored)
    weights = {}
    for name, evaluator in {
        "PED-ANOVA": PedAnovaImportanceEvaluator(),
        "fANOVA": FanovaImportanceEvaluator(seed=0),
    }.items():
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Target and region quantiles", UserWarning
            )  # few trials: all axes come out equal
            shares = get_param_importances(study, evaluator=evaluator)
        weights[name] = {axis: round(float(shares[axis]), 4) for axis in space}
    return weights


def draw_importances(weights: dict[str, dict[str, float]], space: Space) -> Figure:
    """A pair of bars for each axis, one for each evaluator."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5, 0.8 + 0.5 * len(space)), layout="constrained")
        for offset, (evaluator, shares) in zip((-0.2, 0.2), weights.items(), strict=False):
            axes.barh([y + offset for y in range(len(space))], list(shares.values()), height=0.36, label=evaluator)
        axes.set_yticks(range(len(space)), list(space))
        axes.set_ylim(len(space) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("importance: share of the score's variation" if weights else "the trials' scores do not differ")
        if weights:
            figure.legend(loc="outside upper right", ncols=len(weights), frameon=False)
        return figure


def draw_slices(results: list[FrozenTrial], space: Space) -> Figure:
    """The score against each axis alone; diverged trials are crosses at the foot."""
    with plt.rc_context(STYLE):
        size = (2.4 * len(space) + 0.6, 2.6)
        figure, panels = plt.subplots(1, len(space), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axes, (axis, distribution) in zip(panels[0], space.items(), strict=True):
            choices = distribution.choices if isinstance(distribution, CategoricalDistribution) else None
            places = [choices.index(r.params[axis]) if choices else r.params[axis] for r in results]
            for place, r in zip(places, results, strict=True):
                if r.value is None:
                    axes.plot(place, 0.02, "x", color="tab:red", transform=axes.get_xaxis_transform(), clip_on=False)
                else:
                    axes.plot(place, r.value, "o", color="tab:blue", markersize=5)
            if results[0].value is not None:
                axes.plot(places[0], results[0].value, "o", markersize=10, fillstyle="none", color="black")
            axes.set_xlabel(axis)
            if choices:
                axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
                axes.set_xlim(-0.5, len(choices) - 0.5)
            elif distribution.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")
        panels[0][0].set_ylabel(MEASURE)
        figure.suptitle("ring: the settings in use; cross: diverged", fontsize=8, x=1, ha="right")
        return figure


def draw_parallel(results: list[FrozenTrial], space: Space) -> Figure:
    """Each trial as a line through its settings to its score, the best drawn last.

    Diverged trials are dotted, to the foot; the settings in use are black.
    """
    scores = [r.value for r in results if r.value is not None] or [0.0]
    low, high = min(scores), max(scores)
    order = sorted(results, key=lambda r: -1.0 if r.value is None else r.value)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(1.6 * (len(space) + 1) + 0.6, 2.8), layout="constrained")
        for r in order:
            height = 0.0 if r.value is None else (r.value - low) / (high - low or 1)
            places = [*(share(r.params[axis], distribution) for axis, distribution in space.items()), height]
            colour = "black" if r is results[0] else plt.get_cmap("viridis_r")(0.15 + 0.7 * height)
            axes.plot(places, color=colour, linestyle=":" if r.value is None else "-", linewidth=1.8, alpha=0.9)
        for place, (bottom, top) in enumerate([*(ends(d) for d in space.values()), (f"{low:.1f}", f"{high:.1f}")]):
            axes.axvline(place, color="0.6", linewidth=0.8, zorder=0)
            axes.text(place, -0.04, bottom, ha="center", va="top", fontsize=8)
            axes.text(place, 1.04, top, ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(space) + 1), [*space, "score"])
        axes.tick_params(bottom=False, pad=14)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        figure.suptitle("black: the settings in use; dotted: diverged", fontsize=8, x=1, ha="right")
        return figure


def share(value: Any, distribution: BaseDistribution) -> float:
    """How far up its axis a setting lies, 0 to 1."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(1, len(distribution.choices) - 1)
    bounds = [distribution.low, value, distribution.high]
    low, place, high = map(math.log, bounds) if distribution.log else bounds
    return (place - low) / (high - low or 1)


def ends(distribution: BaseDistribution) -> tuple[str, str]:
    """What stands at the foot and at the head of its axis."""
    if isinstance(distribution, CategoricalDistribution):
        return str(distribution.choices[0]), str(distribution.choices[-1])
    return f"{distribution.low:g}", f"{distribution.high:g}"


def save(figure: Figure, path: Path) -> None:
    with plt.rc_context(STYLE), replacing(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
    plt.close(figure)
