"""Results -> reports/: the comparison, to read (a page, Markdown) and to compute with (CSV, JSON).

    python -m stages.report

It reads files that are in git, so it also runs on a clone that has neither data nor weights. Equal files give equal
bytes.
"""

import csv
import html
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

from . import page
from .board import BEST, MEASURES, TIED, Board, Cell, board, summary
from .files import replacing
from .results import Results, read
from .settings import command

RECORDED = (  # what results.csv holds of a run, by its key in the run's files
    *MEASURES,
    *(f"{measure}_validation" for measure in MEASURES),
    "effective_rank",
    "spread",
    "loss",
    "samples",
    "seconds",
    "samples_per_second",
    "peak_memory_mb",
    "encoder_parameters",
    "method_parameters",
)
MARKERS = "<!-- results {} -->", "<!-- /results {} -->"  # around a modality's table in the repository's README.md


def main(root: Path = Path()) -> None:
    """Writes reports/ under `root`, and the tables in its README.md. Raises InputError as `results.read` does."""
    results = read(root)
    boards = [board(modality, results.seeds) for modality in results.modalities]
    for name, text in outputs(results, boards).items():
        write(root / "reports" / name, text)
    readme = root / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        for b in boards:
            text = replace_block(text, b.modality.name, readme_table(b))
        write(readme, text)


def outputs(results: Results, boards: list[Board]) -> dict[str, str]:
    """The text of each file of reports/, by name."""
    return {
        "index.html": page.render(boards),
        "README.md": markdown_report(boards),
        "results.csv": to_csv(("modality", "method", "seed", "measure", "value", "status"), run_rows(results)),
        "curves.csv": to_csv(("modality", "method", "seed", "samples", "loss"), curve_rows(results)),
        "leaderboard.csv": to_csv(("modality", "method", "measure", "mean", "low", "high"), leaderboard_rows(boards)),
        "summary.json": json.dumps(means(boards), indent=2) + "\n",
    }


def run_rows(results: Results) -> Iterable[tuple]:
    for modality in results.modalities:
        for entry in modality.entries:
            for run in entry.runs:
                for measure in RECORDED:
                    yield modality.name, entry.name, run.seed, measure, run.value(measure), run.status


def curve_rows(results: Results) -> Iterable[tuple]:
    for modality in results.modalities:
        for entry in modality.entries:
            for run in entry.runs:
                for samples, loss in run.curve.items():
                    yield modality.name, entry.name, run.seed, samples, loss


def leaderboard_rows(boards: list[Board]) -> Iterable[tuple]:
    """Where there is no interval, low and high are the mean: a plot of the file then shows a point."""
    for b in boards:
        for row in b.rows:
            for measure, cell in row.cells.items():
                mean, low, high = cell.estimate.mean, cell.estimate.low, cell.estimate.high
                bounds = (mean, mean) if low is None else (low, high)
                yield b.modality.name, row.entry.name, measure, *(round(x, 3) for x in (mean, *bounds))


def means(boards: list[Board]) -> dict[str, dict[str, dict[str, float]]]:
    """{modality: {entry: {measure: mean over seeds}}}, in percent: what `dvc metrics diff` can compare."""
    return {
        b.modality.name: {
            row.entry.name: {measure: round(cell.estimate.mean, 2) for measure, cell in row.cells.items()}
            for row in b.rows
        }
        for b in boards
    }


def to_csv(header: Iterable[str], rows: Iterable[tuple]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def markdown_report(boards: list[Board]) -> str:
    """reports/README.md."""
    parts = [
        "# Results",
        "Written by `python -m stages.report`. [index.html](index.html) has the figures and the details.",
    ]
    for b in boards:
        parts += [f"## {markdown(b.modality.name)}", *map(markdown, summary(b)), table(b, "../"), NOTE]
    return "\n\n".join([*parts, POINTERS]) + "\n"


NOTE = """\
Accuracy on test, in percent: mean and 95 % Student-t interval over seeds (below three measured seeds: the test set's
standard error, s.e.). Bold: the best self-supervised entry whose every seed finished well, and those that a paired test
over seeds, with Holm's correction, cannot tell apart from it. Chosen depth: of the features after each of the encoder's
stages (a denoiser's also in noise), those that the probe prefers on validation data. Rank: the features' effective
rank."""

POINTERS = """\
* [results.csv](results.csv): every run and measure
* [leaderboard.csv](leaderboard.csv): means and intervals
* [curves.csv](curves.csv): the losses
* [summary.json](summary.json): the means, for `dvc metrics diff --targets reports/summary.json`"""


def readme_table(b: Board) -> str:
    """The table as it stands in the repository's README.md."""
    return table(b, "")


def table(b: Board, root: str) -> str:
    """A Markdown table; `root` leads from its file's folder to the repository's."""
    names = ["method", "family", *(f"{name}, %" for name in MEASURES.values()), "rank", "seconds", "status"]
    lines = [" | ".join(names), " | ".join([":--", ":--", *["--:"] * (len(MEASURES) + 2), ":--"])]
    for row in b.rows:
        cells = [
            f"[{markdown(row.entry.name)}]({root}{row.entry.source.path})",
            row.entry.family,
            *(marked(row.cells.get(measure)) for measure in MEASURES),
            page.number(row.mean("effective_rank"), 1),
            page.number(row.mean("seconds")),
            row.status,
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def marked(cell: Cell | None) -> str:
    if cell is None:
        return page.NONE
    shown = f"**{cell}**" if cell.standing in (BEST, TIED) else str(cell)
    return f"{shown}<br>{cell.note}" if cell.note else shown


def markdown(text: str) -> str:
    """Any text as plain text in Markdown, also inside a table."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False).replace("\n", " "))


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with `block` between the markers of that name; unchanged where it has none."""
    start, end = (re.escape(marker.format(name)) for marker in MARKERS)
    return re.sub(f"({start}).*?({end})", lambda m: f"{m[1]}\n{block}\n{m[2]}", text, count=1, flags=re.DOTALL)


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    command(main)
