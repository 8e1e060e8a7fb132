"""The comparison in Markdown: reports/README.md, and the tables of the repository's README.md."""

import html
import re
from collections.abc import Collection, Iterable

from .quantities import COST, DEPTH, FINETUNED, FIRST, HEALTH, MEASURES, PREDICTORS, SECOND
from .results import OK
from .speed_report import Speed
from .statistics import Gain
from .summary import summary
from .table import BEST, TIED, Board, Row
from .text import NONE, correlation, difference, number, placed, plus_minus, probable, signed

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
* **Place** is that among the ranked entries: its mean and 95 % interval over 10,000 draws of all means from
  Student's t distributions around them, at the noise that the entries do not share.
* **Health**: the effective rank of the features, and of their discriminant analysis between samples in views (LiDAR),
  more is better; alignment of two views of a sample, and uniformity of all on the sphere, less is better; the share of
  features that do not vary; the mutual information of clusters with the classes, normalised, in percent.
* **Cost** is that of pretraining, means over seeds. CPU-seconds are those of all threads together, so that what runs
  beside does not count. Parameters are the encoder's; thrown away is what evaluation does not see. On the Pareto front
  is what no other entry beats in both cost and linear probe.
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
WORDS = ("method", "family", "status", "Pareto front", "measure", "better")  # columns of words, not of numbers
SILENT = ("", NONE, OK)  # a column of nothing else says nothing


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
    for table in speed.tables:
        rows = [dict(zip(table.header, map(coded, row), strict=True)) for row in table.rows]
        parts.append(f"### {table.title}\n\n{coded(table.note)}\n\n{grid(rows, words=table.header[:1])}")
    return "\n\n".join([*parts, NOTE])


def readme_table(b: Board) -> str:
    """The table as it stands in the repository's README.md."""
    measures = [measure for measure in (FIRST, DEPTH, SECOND, FINETUNED) if measure in b.columns]
    return grid(
        {
            **named(row, ""),
            **{f"{MEASURES[measure]}, %": accurate(row, measure) for measure in measures},
            "effective rank": number(row.mean("effective_rank"), 1),
            b.seconds: number(row.mean("seconds")),
            "status": markdown(row.status),
        }
        for row in b.rows
    )


def accuracy(b: Board) -> str:
    return grid(
        {
            **named(row, "../"),
            **{f"{label}, %": accurate(row, measure) for measure, label in b.columns.items()},
            "gain": gained(row.gain),
            "status": markdown(row.status),
        }
        for row in b.rows
    )


def standing(b: Board) -> str:
    """Of the entries that are ranked by FIRST: their places, and how that test went. Nothing below three seeds."""
    rows = []
    for row in b.methods:
        if row.place:
            places = {m: row.cells[m].place if m in row.cells else None for m in b.columns}
            behind, gain = row.cells[FIRST].comparison, row.gain
            rows.append(
                {"method": markdown(row.name)}
                | {f"place, {b.columns[measure]}": placed(place) for measure, place in places.items()}
                | {"from the best": difference(behind.difference) if behind else NONE}
                | {"p from the best": probable(behind.p) if behind else NONE}
                | {"gain": difference(gain) if gain else NONE}
                | {"p of gain": probable(gain.p) if gain and gain.p is not None else NONE}
            )
    return grid(rows)


def health(b: Board) -> str:
    shown = b.measured(HEALTH)
    return grid(
        {"method": markdown(row.name)}
        | {
            quantity.label: number(row.mean(key), quantity.digits) + plus_minus(row.estimate(key), quantity.digits)
            for key, quantity in shown.items()
        }
        for row in b.rows
    )


def cost(b: Board) -> str:
    shown = b.measured(COST)
    return grid(
        {"method": markdown(row.name)}
        | {quantity.label: quantity.shown(row.mean(key)) for key, quantity in shown.items()}
        | {"Pareto front": "on it" if row.name in b.pareto else ""}
        for row in b.rows
    )


def agreement(b: Board) -> str:
    return grid(
        {
            "measure": PREDICTORS[key].label,
            "better": PREDICTORS[key].better,
            "methods": str(found.n),
            "Spearman": correlation(found.spearman),
            "Kendall, tau-b": correlation(found.kendall),
        }
        for key, found in b.agreement.items()
        if found.spearman
    )


def grid(rows: Iterable[dict[str, str]], words: Collection[str] = WORDS) -> str:
    """A Markdown table of rows {heading: cell}, without columns that say nothing; "" where only names remain."""
    rows = list(rows)
    shown = [heading for heading in rows[0] if any(row[heading] not in SILENT for row in rows)] if rows else []
    if not set(shown) - {"method", "family"}:
        return ""
    lines = [shown, [":--" if heading in words else "--:" for heading in shown]]
    lines += [[row[heading] for heading in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(row: Row, root: str) -> dict[str, str]:
    """An entry's name as a link to its method's file; `root` leads from the table's folder to the repository's."""
    return {"method": f"[{markdown(row.name)}]({root}{row.entry.source.path})", "family": row.entry.family}


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
    shown = signed(gain.mean) + plus_minus(gain)
    return f"**{shown}**" if gain.shown else shown


def coded(text: str) -> str:
    """A text in Markdown, with what stands in backticks as code."""
    return "`".join(part if place % 2 else markdown(part) for place, part in enumerate(text.split("`")))


def markdown(text: str) -> str:
    """Any text as plain text in Markdown, also inside a table."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False).replace("\n", " "))
