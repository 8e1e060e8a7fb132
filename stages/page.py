"""The report's page: one HTML file that loads nothing."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from . import figures
from .board import FIRST, MEASURES, Board, Row, summary
from .results import CONTROLS

TEMPLATES = Path(__file__).parent.parent / "reports/templates"
NONE = "\N{EN DASH}"


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


def render(boards: list[Board]) -> str:
    """The page's HTML. Names are escaped; a name that a template misspells is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"number": number, "signed": signed, "image": image}
    templates.globals |= {"MEASURES": MEASURES, "FIRST": FIRST, "colour": figures.colour, "summary": summary}
    return templates.get_template("index.html.j2").render(sections=[section(board) for board in boards])


def section(board: Board) -> dict[str, Any]:
    """What the template shows of one modality."""
    scales = {measure: scale(board, measure) for measure in MEASURES}
    return {
        "board": board,
        "scales": scales,
        "scatter": scatter(board, scales[FIRST].marks),
        "marks": ", ".join(scales[FIRST].marks),
        "curves": [(row.entry, plot) for row in board.methods + board.labelled if (plot := curve(row))],
        "panels": [(row.entry, drawn) for row in board.methods if (drawn := panel(row))],
        "said": [(row.entry, said) for row in board.methods if (said := first(row, "said"))],
    }


def scale(board: Board, measure: str) -> Scale:
    """From a little below the lowest mean to a little above the highest, of the entries without a failed run."""
    means = {
        row.entry.name: row.cells[measure].estimate.mean
        for row in board.rows
        if measure in row.cells and not row.failed
    }
    low, high = min(means.values(), default=0.0), max(means.values(), default=100.0)
    margin = max(1.0, 0.08 * (high - low))
    marks = {row.entry.name for row in board.rows if row.entry.mark}
    return Scale(low - margin, high + margin, {name: mean for name, mean in means.items() if name in marks})


def scatter(board: Board, levels: dict[str, float]) -> Markup | None:
    """Accuracy against cost, of the entries without a failed run; the controls are levels."""
    points = [
        figures.Point(row.entry.name, row.entry.family, row.mean("seconds"), estimate.mean, estimate.low, estimate.high)
        for row in board.rows
        if row.entry.family != CONTROLS
        and FIRST in row.cells
        and not row.failed
        and (estimate := row.cells[FIRST].estimate)
    ]
    return Markup(figures.scatter(points, levels, MEASURES[FIRST])) if points else None


def curve(row: Row) -> Markup | None:
    """The loss of all seeds, where there is one to plot."""
    curves = [run.curve for run in row.entry.runs if run.curve]
    samples = sorted({x for curve in curves for x in curve})
    if len(samples) < 2:
        return None
    losses = np.array([[curve.get(x, np.nan) for x in samples] for curve in curves])
    return Markup(figures.curve(samples, losses, row.entry.family))


def panel(row: Row) -> dict[str, str] | None:
    """What the method drew in its first run that did: the address of an image, and what its rows show, from the top."""
    drawn = first(row, "panel")
    return drawn and {"image": f"data:image/webp;base64,{drawn['webp']}", "shows": ", ".join(drawn["shows"])}


def first(row: Row, key: str) -> Any:
    """What the first run that has it recorded in pretraining; None where none has."""
    return next((run.pretrain[key] for run in row.entry.runs if run.pretrain.get(key)), None)


def number(value: float | None, digits: int = 0) -> str:
    """As in 1,234.5; a dash for what was not measured."""
    return NONE if value is None else f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """As in +1.2 or −1.2."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def image(svg: str) -> str:
    """An SVG made elsewhere as the address of an image: its ids and styles cannot touch the page's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
