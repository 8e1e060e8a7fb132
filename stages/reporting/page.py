"""The report's page: one HTML file that loads nothing."""

import base64
import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape

from . import figures
from .quantities import COST, FIRST, HEALTH, MEASURES, PREDICTORS
from .results import CONTROLS
from .schedule import Schedule
from .speed_report import Speed
from .statistics import Correlation
from .summary import summary
from .table import Board, Row
from .text import NONE, correlation, counted, number, plus_minus, probable, signed

TEMPLATES = Path(__file__).parents[2] / "reports/templates"
AXES = {"step", "samples", "lr"}  # of a learning curve: not what a method plots
SHOWN_CLASSES = 20  # a table of confusions with more cannot be read


@dataclass(frozen=True)
class Scale:
    """The axis that one column's graphics share, from `low` to `high`; `marks` are the values to compare with."""

    low: float
    high: float
    marks: dict[str, float]  # {entry: value}

    def x(self, value: float) -> float:
        """The place of a value, from 0 to 100; what lies outside is put at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 1)


def render(boards: list[Board], speed: Speed, schedule: Schedule) -> str:
    """The page's HTML. Names are escaped; a name that a template misspells is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (number, counted, signed, plus_minus, probable, correlation, image, webp, title, code)
    templates.filters |= {filter.__name__: filter for filter in filters}
    templates.globals |= {"FIRST": FIRST, "MEASURES": MEASURES, "CORRELATIONS": Scale(-1, 1, {"none": 0.0})}
    templates.globals |= {"NONE": NONE, "colour": figures.colour, "anchor": anchor, "quote": quote}
    page = templates.get_template("index.html.j2")
    gantt = Markup(figures.gantt(schedule.bars, schedule.cuts)) if schedule.bars else None
    return page.render(sections=[section(board) for board in boards], speed=speed, schedule=schedule, gantt=gantt)


def section(board: Board) -> dict[str, Any]:
    """What the template shows of one modality."""
    scales = {measure: scale(board, measure) for measure in board.columns}
    marks = scales[FIRST].marks if FIRST in scales else {}
    quantities = {"health": board.measured(HEALTH), "cost": board.measured(COST)}
    found = {"accuracy": board.columns} | quantities
    compared = [measure for measure in board.columns if any(cell.comparison for _, cell in board.found(measure))]
    families = {row.entry.family for row in board.rows}
    return {
        "board": board,
        "summary": summary(board),
        "width": len(found["accuracy"] | found["health"] | found["cost"]) + 4,
        "groups": [group for group, shown in found.items() if shown] or ["accuracy"],
        "families": [family for family in figures.COLOURS if family in families],
        "scales": scales,
        "quantities": quantities,
        "gains": any(row.gain for row in board.rows),
        "places": any(row.place for row in board.rows),
        "compared": {measure: board.columns[measure] for measure in compared},
        "scatters": scatters(board, marks),
        "marks": ", ".join(marks),
        "agreement": agreement(board),
        "fewer": fewer_labels(board),
        "methods": [method(row, board.modality.data["classes"]) for row in board.rows],
    }


def scale(board: Board, measure: str) -> Scale:
    """From a little below the lowest mean to a little above the highest, of the entries without a failed run."""
    rows = {row.name: row for row in board.rows if measure in row.cells and not row.failed}
    means = {name: row.cells[measure].estimate.mean for name, row in rows.items()}
    low, high = min(means.values(), default=0.0), max(means.values(), default=100.0)
    margin = max(1.0, 0.08 * (high - low))
    return Scale(low - margin, high + margin, {name: mean for name, mean in means.items() if rows[name].entry.mark})


def scatters(board: Board, levels: dict[str, float]) -> dict[str, Markup]:
    """Accuracy against cost, of the entries without a failed run, for two widths; the controls are levels."""
    points = [
        figures.Point(row.name, row.entry.family, seconds, estimate.mean, estimate.low, estimate.high)
        for row in board.rows
        if row.entry.family != CONTROLS and FIRST in row.cells and not row.failed
        if (estimate := row.cells[FIRST].estimate) and (seconds := row.mean("seconds"))
    ]
    if not points:
        return {}
    sizes = {"wide": figures.WIDE, "narrow": figures.NARROW}
    return {
        name: Markup(figures.scatter(points, board.pareto, levels, MEASURES[FIRST], board.seconds, size))
        for name, size in sizes.items()
    }


def agreement(board: Board) -> list[tuple[str, int, Correlation, Correlation | None]]:
    """How far each other measure orders the entries as FIRST does: its label, of how many, Spearman's, Kendall's.

    The closest first; without those of which nothing can be said.
    """
    found = [(PREDICTORS[key].label, a.n, a.spearman, a.kendall) for key, a in board.agreement.items() if a.spearman]
    return sorted(found, key=lambda row: -row[2].value)


def fewer_labels(board: Board) -> Markup | None:
    """Accuracy against the number of labels, up to all; the leader, the floor and the ceiling, and who needs fewest."""
    every = sum(board.modality.data["rows"].get(split, 0) for split in ("train", "validation"))
    curves = {row.name: few for row in board.rows if (few := means_by_labels(row))}
    if not curves:
        return None
    fewest = min(min(few) for few in curves.values())
    methods = [row.name for row in board.methods if fewest in curves.get(row.name, {})]
    frugal = max(methods, key=lambda name: curves[name][fewest], default=None)
    lines = []
    for row in board.rows:
        if row.name in curves:
            with_all = {every: row.cells[FIRST].estimate.mean} if every and FIRST in row.cells else {}
            counts, values = zip(*sorted((curves[row.name] | with_all).items()), strict=True)
            named = row.entry.mark or row.name in (frugal, board.leaders.get(FIRST))
            lines.append(figures.Line(row.name, row.entry.family, counts, values, named))
    return Markup(figures.fewer_labels(lines, MEASURES[FIRST]))


def means_by_labels(row: Row) -> dict[int, float]:
    """{number of labels: accuracy, the mean over seeds}"""
    found: dict[int, list[float]] = {}
    for run in row.entry.runs:
        for few in run.evaluate.get("low_label_details", {}).values():
            found.setdefault(few["rows"], []).append(few["accuracy"])
    return {rows: float(np.mean(values)) for rows, values in found.items()}


def method(row: Row, classes: list[str]) -> dict[str, Any]:
    """What the template shows of one entry: its idea, settings, and what its runs recorded to look at."""
    entry = row.entry
    chosen = {"method": entry.hyper, "encoder": entry.encoder, "training": entry.training}
    return {
        "row": row,
        "about": about(entry.source.docstring),
        "settings": {kind: settings(values) for kind, values in chosen.items() if values},
        "plots": plots(row),
        "views": first(row, "views"),
        "panel": first(row, "panel"),
        "said": first(row, "said"),
        "map": embedding(first(row, "map"), classes),
        "neighbours": first(row, "neighbours"),
        "confusion": confusion(row, classes),
    }


def about(docstring: str) -> list[tuple[bool, str]]:
    """A docstring in blocks: (whether it is indented, as equations are, its text)."""
    blocks = [block.strip("\n") for block in docstring.split("\n\n")]
    return [(block.startswith(" "), textwrap.dedent(block)) for block in blocks if block.strip()]


def settings(values: dict[str, Any]) -> str:
    """As in "width 128, temperature 0.5"."""
    return ", ".join(f"{name} {plain(value)}" for name, value in values.items())


def plain(value: Any) -> str:
    """A setting as in params.yaml, numbers without needless digits."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def plots(row: Row) -> list[tuple[str, Markup]]:
    """What the runs plotted against samples seen, the loss first: its name, and the curve of all seeds."""
    points = [run.pretrain.get("curve", []) for run in row.entry.runs]
    names = dict.fromkeys(name for curve in points for point in curve for name in point if name not in AXES)
    return [(name, plot) for name in names if (plot := plot_of(points, name, row.entry.family))]


def plot_of(points: list[list[dict[str, float]]], name: str, family: str) -> Markup | None:
    """One number of all seeds, where it is finite more than once."""
    curves = [{p["samples"]: p[name] for p in curve if math.isfinite(p.get(name, math.nan))} for curve in points]
    curves = [curve for curve in curves if curve]
    samples = sorted({x for curve in curves for x in curve})
    if len(samples) < 2:
        return None
    values = np.array([[curve.get(x, np.nan) for x in samples] for curve in curves])
    return Markup(figures.curve(samples, values, family))


def embedding(found: dict[str, list] | None, classes: list[str]) -> list[tuple[str, str, str]]:
    """A map's points for each class: (name, colour, SVG path of dots in a square of side 100)."""
    if not found:
        return []
    x, y, label = (np.array(found[key]) for key in ("x", "y", "label"))
    side = max(np.ptp(x), np.ptp(y)) or 1.0
    x, y = (2 + 96 * ((v - (v.max() + v.min()) / 2) / side + 0.5) for v in (x, -y))
    palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    groups = []
    for index, name in enumerate(classes):
        path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x[label == index], y[label == index], strict=True))
        groups.append((name, matplotlib.colors.to_hex(palette[index % len(palette)]), path))
    return groups


def confusion(row: Row, classes: list[str]) -> list[tuple[str, int, list[int]]]:
    """For each true class its name, rows of test over all seeds, and how many percent were predicted as each class."""
    found = [run.evaluate["confusion"] for run in row.entry.runs if run.evaluate.get("confusion")]
    if not found or len(classes) > SHOWN_CLASSES:
        return []
    counts = np.sum(found, axis=0)
    totals = counts.sum(1)
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    return list(zip(classes, totals.tolist(), shares.round().astype(int).tolist(), strict=True))


def first(row: Row, key: str) -> Any:
    """What the first run that has it recorded in pretraining or evaluation; None where none has."""
    found = (results.get(key) for run in row.entry.runs for results in (run.pretrain, run.evaluate))
    return next((value for value in found if value), None)


def anchor(modality: str, entry: str) -> str:
    """The id of an entry's section; ids have no spaces."""
    return "-".join(f"{modality}-{entry}".split())


def title(name: str) -> str:
    """A modality's name as a heading, as in "Image and text"."""
    return name.replace("_", " and ").capitalize()


def code(text: str) -> Markup:
    """A text, with what stands in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def image(svg: str) -> str:
    """An SVG made elsewhere as the address of an image: its ids and styles cannot touch the page's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def webp(base64_text: str) -> str:
    """A WebP picture as the address of an image."""
    return f"data:image/webp;base64,{base64_text}"
