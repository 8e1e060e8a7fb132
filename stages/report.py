"""Results -> reports/: the comparison, to read (a page, Markdown) and to compute with (CSV, JSON).

    python -m stages.report

It reads files that are in git, so it also runs on a clone that has neither data nor weights. Equal files give equal
bytes.
"""

import json
import re
from pathlib import Path

from .common.command import command
from .common.files import replacing
from .reporting import frames, page, speed_report
from .reporting.markdown import readme_table, report
from .reporting.paper import paper
from .reporting.results import Results, read
from .reporting.schedule import schedule
from .reporting.speed_report import Speed
from .reporting.table import Board, board

BLOCK = re.compile(r"(<!-- results (\w+) -->).*?(<!-- /results \2 -->)", re.DOTALL)  # a modality's, in README.md


def main(root: Path = Path()) -> None:
    """Writes reports/ under `root`, and the tables in its README.md. Raises InputError as `results.read` does."""
    results = read(root)
    boards = [board(modality, results.seeds) for modality in results.modalities]
    for name, text in outputs(results, boards, speed_report.read(root)).items():
        write(root / "reports" / name, text)
    readme = root / "README.md"
    if readme.exists():
        tables = {b.modality.name: readme_table(b) for b in boards}
        write(readme, fill_blocks(readme.read_text(encoding="utf-8"), tables))


def outputs(results: Results, boards: list[Board], speed: Speed) -> dict[str, str]:
    """The text of each file of reports/, by name."""
    return {
        "index.html": page.render(boards, speed, schedule(results)),
        "README.md": report(boards, speed),
        "paper.tex": paper(boards),
        "results.csv": frames.csv(frames.runs(results)),
        "curves.csv": frames.csv(frames.curves(results)),
        "leaderboard.csv": frames.csv(frames.leaderboard(boards)),
        "agreement.csv": frames.csv(frames.agreement(boards)),
        "summary.json": json.dumps(frames.means(boards), indent=2) + "\n",
    }


def fill_blocks(text: str, tables: dict[str, str]) -> str:
    """`text` with each modality's table between its markers, and nothing between those of one that has none."""
    return BLOCK.sub(lambda m: "\n".join(filter(None, (m[1], tables.get(m[2]), m[3]))), text)


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    command(main)
