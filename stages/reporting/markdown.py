"""The comparison in Markdown: reports/README.md, and the tables of the repository's README.md."""

import html
import re
from collections.abc import Iterable

from .board import (
    BEST,
    COST,
    DEPTH,
    FINETUNED,
    FIRST,
    HEALTH,
    MEASURES,
    PREDICTORS,
    SECOND,
    TIED,
    Board,
    Quantity,
    Row,
    summary,
)
from .page import NONE, number, signed
from .results import Entry
from .speed_report import Speed, Table
from .statistics import Correlation, Estimate, Gain, Place

NOTE = """\
## How to read the tables

* **Accuracy** is on test, in percent: the mean over seeds and half its 95 % Student-t interval; below three measured
  seeds there is no interval, and s.e. is the standard error of the test set alone. "2 of 3 seeds": only so many count.
  Bold: the best self-supervised entry whose every seed finished well, and those that a moderated t-test over seeds
  (which estimates noise over all methods together), with Holm's correction over methods, cannot tell apart from it at
  the 5 % level: a tie is no proof that two are equal.
* **Chosen depth**: of the features after each of the encoder's stages (a denoiser's also in noise), those that the
  probe prefers on validation data.
* **Gain** is over the untrained encoder of the same architecture, by linear probe, in points, paired by seed. Bold
  where the same test shows it to be more, or less, than none. All intervals are of one number by itself: only p is
  corrected for the number of methods.
* **Place** is the rank among the ranked entries: its mean and 95 % interval over 10,000 draws of all means from
  Student's t distributions around them, at the noise that the entries do not share.
* **Health**: the effective rank of the features, and of their discriminant analysis between samples in views (LiDAR),
  more is better; alignment of two views of a sample, and uniformity of all on the sphere, less is better; the share of
  features that do not vary; the mutual information of clusters with the classes, normalised, in percent.
* **Cost** is that of pretraining, means over seeds. Parameters are the encoder's; thrown away is what evaluation does
  not see. On the Pareto front is what no other entry beats in both seconds and linear probe.
* **Agreement**: do the entries' means by a measure order the methods as the linear probe's do? 1 is the same order, 0
  none, -1 the reverse, each turned so that better goes with higher. The 95 % intervals are over resampled methods;
  below five methods there is no number, and for a perfect order no interval. Losses are left out: those of different
  objectives do not compare.

## Files

* [results.csv](results.csv): every run and number
* [leaderboard.csv](leaderboard.csv): means, intervals, places, differences from the best and from the untrained
* [agreement.csv](agreement.csv): how other measures order the methods
* [curves.csv](curves.csv): the losses
* [paper.tex](paper.tex): the accuracies as LaTeX tables
* [summary.json](summary.json): the means, for `dvc metrics diff --targets reports/summary.json`
"""
LEFT, RIGHT = ":--", "--:"


def report(boards: list[Board], speed: Speed) -> str:
    """reports/README.md."""
    parts = [
        "# Results",
        "Written by `python -m stages.report`. [index.html](index.html) has the figures and the details.",
    ]
    for b in boards:
        parts += [f"## {markdown(b.modality.name)}", "\n".join(f"* {markdown(sentence)}" for sentence in summary(b))]
        tables = {
            "Accuracy": accuracy(b),
            "Standing": standing(b),
            "Health": health(b),
            "Cost": cost(b),
            "Agreement with the linear probe": agreement(b),
        }
        parts += [f"### {title}\n\n{table}" for title, table in tables.items() if table]
    if speed.tables:
        parts += ["## Speed", markdown(speed.heading)]
        parts += [f"### {table.title}\n\n{coded(table.note)}\n\n{measured(table)}" for table in speed.tables]
    return "\n\n".join([*parts, NOTE])


def readme_table(b: Board) -> str:
    """The table as it stands in the repository's README.md."""
    measures = [FIRST, DEPTH, SECOND] + [FINETUNED] * (FINETUNED in b.columns)
    header = {"method": LEFT, "family": LEFT} | {f"{MEASURES[measure]}, %": RIGHT for measure in measures}
    rows = [
        [
            linked(row.entry, ""),
            row.entry.family,
            *(accurate(row, measure) for measure in measures),
            number(row.mean("effective_rank"), 1),
            number(row.mean("seconds")),
            markdown(row.status),
        ]
        for row in b.rows
    ]
    return grid(header | {"rank": RIGHT, "seconds": RIGHT, "status": LEFT}, rows)


def accuracy(b: Board) -> str:
    header = {"method": LEFT, "family": LEFT} | {f"{label}, %": RIGHT for label in b.columns.values()}
    rows = [
        [
            linked(row.entry, "../"),
            row.entry.family,
            *(accurate(row, measure) for measure in b.columns),
            gained(row.gain),
            markdown(row.status),
        ]
        for row in b.rows
    ]
    return grid(header | {"gain": RIGHT, "status": LEFT}, rows)


def standing(b: Board) -> str:
    """Of the entries that are ranked by FIRST: their places, and how that test went. Nothing below three seeds."""
    ranked = [row for row in b.methods if FIRST in row.cells and row.cells[FIRST].place]
    header = {"method": LEFT} | {f"place, {label}": RIGHT for label in b.columns.values()}
    rows = []
    for row in ranked:
        comparison = row.cells[FIRST].comparison
        places = [placed(row.cells[measure].place) if measure in row.cells else NONE for measure in b.columns]
        behind = [between(comparison.difference), probable(comparison.p)] if comparison else [NONE, NONE]
        gain = [between(row.gain), probable(row.gain.p)] if row.gain else [NONE, NONE]
        rows.append([markdown(row.entry.name), *places, *behind, *gain])
    tests = dict.fromkeys(("from the best", "p from the best", "gain", "p of gain"), RIGHT)
    return grid(header | tests, rows) if rows else ""


def health(b: Board) -> str:
    shown = b.measured(HEALTH)
    header = {"method": LEFT} | {quantity.label: RIGHT for quantity in shown.values()}
    rows = [
        [markdown(row.entry.name), *(ranged(row.estimate(key), quantity.digits) for key, quantity in shown.items())]
        for row in b.rows
    ]
    return grid(header, rows) if shown else ""


def cost(b: Board) -> str:
    shown = b.measured(COST)
    header = {"method": LEFT} | {quantity.label: RIGHT for quantity in shown.values()} | {"Pareto front": LEFT}
    rows = [
        [
            markdown(row.entry.name),
            *(scaled(row.mean(key), quantity) for key, quantity in shown.items()),
            "on it" if row.entry.name in b.pareto else "",
        ]
        for row in b.rows
    ]
    return grid(header, rows) if shown else ""


def agreement(b: Board) -> str:
    header = {"measure": LEFT, "better": LEFT, "methods": RIGHT, "Spearman": RIGHT, "Kendall, tau-b": RIGHT}
    rows = [
        [
            PREDICTORS[key].label,
            "higher" if PREDICTORS[key].sign > 0 else "lower",
            str(found.n),
            correlated(found.spearman),
            correlated(found.kendall),
        ]
        for key, found in b.agreement.items()
    ]
    return grid(header, rows) if rows else ""


def measured(table: Table) -> str:
    """A table of speed: its first column names, the others are numbers."""
    return grid(dict.fromkeys(table.header, RIGHT) | {table.header[0]: LEFT}, [map(coded, row) for row in table.rows])


def grid(header: dict[str, str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; `header` is {heading: alignment}."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, header.values(), *rows))


def linked(entry: Entry, root: str) -> str:
    """An entry's name as a link to its method's file; `root` leads from the table's folder to the repository's."""
    return f"[{markdown(entry.name)}]({root}{entry.source.path})"


def accurate(row: Row, measure: str) -> str:
    """A cell of accuracy; where there is none because of a failed run, what became of it."""
    cell = row.cells.get(measure)
    if cell is None:
        return markdown(row.status) if row.failed else NONE
    seeds = len(row.entry.runs)
    shown = f"**{cell}**" if cell.standing in (BEST, TIED) else str(cell)
    some = f"{cell.estimate.n} of {seeds} seeds" if cell.estimate.n < seeds else ""
    return "<br>".join(part for part in (shown, some, markdown(cell.note)) if part)


def gained(gain: Gain | None) -> str:
    if gain is None:
        return NONE
    shown = signed(gain.mean) + ("" if gain.half_width is None else f" ± {gain.half_width:.1f}")
    return f"**{shown}**" if gain.shown else shown


def placed(place: Place | None) -> str:
    return f"{place.mean:.1f} ({place.low} to {place.high})" if place else NONE


def between(difference: Estimate) -> str:
    """A difference in points, with its interval where it has one."""
    interval = "" if difference.low is None else f" ({signed(difference.low)} to {signed(difference.high)})"
    return signed(difference.mean) + interval


def probable(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ranged(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return NONE
    interval = "" if estimate.half_width is None else f" ± {number(estimate.half_width, digits)}"
    return minus(number(estimate.mean, digits) + interval)


def scaled(value: float | None, quantity: Quantity) -> str:
    return number(None if value is None else value * quantity.scale, quantity.digits)


def correlated(found: Correlation | None) -> str:
    if found is None:
        return NONE
    interval = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return minus(f"{found.value:.2f}{interval}")


def minus(numbers: str) -> str:
    """With the sign that is as wide as a plus."""
    return numbers.replace("-", "\N{MINUS SIGN}")


def coded(text: str) -> str:
    """A text in Markdown, with what stands in backticks as code."""
    return "`".join(part if place % 2 else markdown(part) for place, part in enumerate(text.split("`")))


def markdown(text: str) -> str:
    """Any text as plain text in Markdown, also inside a table."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False).replace("\n", " "))
