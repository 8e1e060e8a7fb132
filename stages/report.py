"""Results -> reports/: the comparison, to read (a page, Markdown) and to compute with (CSV, JSON).

    python -m stages.report

It reads files that are in git, so it also runs on a clone that has neither data nor weights. Equal files give equal
bytes.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

from .common.command import command
from .common.files import replacing
from .reporting import page, speed_report
from .reporting.board import HEALTH, MEASURES, PREDICTORS, Board, Cell, Row, board
from .reporting.markdown import readme_table, report
from .reporting.paper import paper
from .reporting.results import Entry, Modality, Results, read
from .reporting.schedule import schedule
from .reporting.speed_report import Speed
from .reporting.statistics import Correlation

LEADERBOARD = (
    *("modality", "method", "measure", "mean", "low", "high", "n", "standing", "difference", "p_holm"),
    *("place", "place_mean", "place_low", "place_high", "gain", "gain_low", "gain_high", "gain_p_holm"),
)
AGREEMENT = (
    *("modality", "measure", "better", "methods"),
    *("spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high"),
)
MARKERS = "<!-- results {} -->", "<!-- /results {} -->"  # around a modality's table in the repository's README.md


def main(root: Path = Path()) -> None:
    """Writes reports/ under `root`, and the tables in its README.md. Raises InputError as `results.read` does."""
    results = read(root)
    boards = [board(modality, results.seeds) for modality in results.modalities]
    for name, text in outputs(results, boards, speed_report.read(root)).items():
        write(root / "reports" / name, text)
    readme = root / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        for b in boards:
            text = replace_block(text, b.modality.name, readme_table(b))
        write(readme, text)


def outputs(results: Results, boards: list[Board], speed: Speed) -> dict[str, str]:
    """The text of each file of reports/, by name."""
    return {
        "index.html": page.render(boards, speed, schedule(results)),
        "README.md": report(boards, speed),
        "paper.tex": paper(boards),
        "results.csv": to_csv(("modality", "method", "seed", "measure", "value", "status"), run_rows(results)),
        "curves.csv": to_csv(("modality", "method", "seed", "samples", "loss"), curve_rows(results)),
        "leaderboard.csv": to_csv(LEADERBOARD, leaderboard_rows(boards)),
        "agreement.csv": to_csv(AGREEMENT, agreement_rows(boards)),
        "summary.json": json.dumps(means(boards), indent=2) + "\n",
    }


def run_rows(results: Results) -> Iterable[tuple]:
    """A row for each number of each run, empty where the run lacks it, beside the run's status."""
    for modality in results.modalities:
        for entry in modality.entries:
            for run in entry.runs:
                for measure in recorded(modality, entry):
                    yield modality.name, entry.name, run.seed, measure, run.value(measure), run.status


def recorded(modality: Modality, entry: Entry) -> list[str]:
    """The accuracies that any run of the modality has, then the other numbers that any of the entry's runs has."""
    every = {key for other in modality.entries for run in other.runs for key in run.numbers}
    own = [key for run in entry.runs for key in run.numbers]
    return [key for key in dict.fromkeys((*MEASURES, *own)) if key in every]


def curve_rows(results: Results) -> Iterable[tuple]:
    for modality in results.modalities:
        for entry in modality.entries:
            for run in entry.runs:
                for samples, loss in run.curve.items():
                    yield modality.name, entry.name, run.seed, samples, loss


def leaderboard_rows(boards: list[Board]) -> Iterable[tuple]:
    for b in boards:
        for row in b.rows:
            for measure, cell in row.cells.items():
                yield b.modality.name, row.entry.name, measure, *map(rounded, standing(cell))


def standing(cell: Cell) -> Iterable[float | str | None]:
    """From `mean` on. Where there is no interval, low and high are the mean: a plot of the file then shows a point."""
    estimate, comparison, place, gain = cell.estimate, cell.comparison, cell.place, cell.gain
    yield from (estimate.mean, *((estimate.mean,) * 2 if estimate.low is None else (estimate.low, estimate.high)))
    yield from (estimate.n, cell.standing)
    yield from (comparison.difference.mean, comparison.p) if comparison else (None,) * 2
    yield from (place.rank, place.mean, place.low, place.high) if place else (None,) * 4
    yield from (gain.mean, gain.low, gain.high, gain.p) if gain else (None,) * 4


def agreement_rows(boards: list[Board]) -> Iterable[tuple]:
    for b in boards:
        for key, found in b.agreement.items():
            better = "higher" if PREDICTORS[key].sign > 0 else "lower"
            numbers = (*bounds(found.spearman), *bounds(found.kendall))
            yield b.modality.name, key, better, found.n, *map(rounded, numbers)


def bounds(found: Correlation | None) -> tuple[float | None, float | None, float | None]:
    return (found.value, found.low, found.high) if found else (None, None, None)


def rounded(value: float | str | None) -> float | str | None:
    return round(value, 4) if isinstance(value, float) else value


def means(boards: list[Board]) -> dict[str, dict[str, dict[str, float]]]:
    """{modality: {entry: {measure: mean over seeds}}}: accuracies in percent, and the features' health.

    What `dvc metrics diff` can compare, so without seconds, which differ from run to run.
    """
    return {b.modality.name: {row.entry.name: entry_means(row) for row in b.rows} for b in boards}


def entry_means(row: Row) -> dict[str, float]:
    found = {measure: cell.estimate.mean for measure, cell in row.cells.items()}
    found |= {key: mean for key in HEALTH if (mean := row.mean(key)) is not None}
    return {key: round(mean, 2) for key, mean in found.items()}


def to_csv(header: Iterable[str], rows: Iterable[tuple]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with `block` between the markers of that name; unchanged where it has none."""
    start, end = (re.escape(marker.format(name)) for marker in MARKERS)
    return re.sub(f"({start}).*?({end})", lambda m: f"{m[1]}\n{block}\n{m[2]}", text, count=1, flags=re.DOTALL)


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    command(main)
