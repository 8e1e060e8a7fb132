r"""The comparison in LaTeX: reports/paper.tex, a table per modality to copy into a paper.

It asks for \usepackage{booktabs} and nothing else, and is plain ASCII, so that it compiles in any document.
"""

import re
import unicodedata

from .statistics import FEWEST
from .table import BEST, TIED, Board, Row

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
HEAD = "% Written by python -m stages.report. In the preamble: \\usepackage{booktabs}\n"
TABLE = r"""
\begin{table}
\centering
\small
\caption{%(caption)s}
\label{tab:ssl-%(label)s}
\begin{tabular}{@{}l%(alignment)s@{}}
\toprule
%(header)s \\
%(parts)s
\bottomrule
\end{tabular}
\end{table}
"""
SPREAD = r"mean and half its 95\,\%% interval (Student's~t) over %d seeds"
ERROR = "in brackets the standard error of the test set alone"
STANDINGS = (
    r"Bold: the best self-supervised; $^=$: not told apart from it (moderated $t$-test over seeds, Holm's correction)"
)


def paper(boards: list[Board]) -> str:
    """reports/paper.tex: a table for each modality in which there is an accuracy."""
    return HEAD + "".join(table(b) for b in boards if b.columns)


def table(b: Board) -> str:
    seeds = len(b.seeds)
    alone = any(cell.estimate.half_width is None for row in b.rows for cell in row.cells.values())
    said = [rf"Frozen encoders on {escape(b.modality.data['name'])}: accuracy on test in \%"]
    said += [SPREAD % seeds] * (seeds >= FEWEST) + [ERROR] * alone
    parts = ["".join(line(row, b) for row in rows) for rows in (b.methods, b.labelled, b.controls) if rows]
    return TABLE % {
        "caption": "; ".join(said) + "." + f" {STANDINGS}." * (seeds >= FEWEST),
        "label": re.sub("[^A-Za-z0-9]", "-", b.modality.name),
        "alignment": "r" * len(b.columns),
        "header": " & ".join(["Method", *(escape(label[0].upper() + label[1:]) for label in b.columns.values())]),
        "parts": "".join(f"\\midrule\n{part}" for part in parts).rstrip("\n"),
    }


def line(row: Row, b: Board) -> str:
    return " & ".join([escape(row.name), *(shown(row, measure) for measure in b.columns)]) + " \\\\\n"


def shown(row: Row, measure: str) -> str:
    """A cell; where there is none because of a failed run, what became of it."""
    if measure not in row.cells:
        return escape(row.status) if row.failed else "--"
    cell = row.cells[measure]
    mean = f"{cell.estimate.mean:.1f}"
    mean = rf"\textbf{{{mean}}}" if cell.standing == BEST else f"{mean}$^=$" if cell.standing == TIED else mean
    if cell.estimate.half_width is not None:
        return rf"{mean} $\pm$ {cell.estimate.half_width:.1f}"
    return mean if cell.error is None else f"{mean} ({cell.error:.1f})"


def escape(text: str) -> str:
    """Any text as plain text in LaTeX: letters lose their accents, and what is not ASCII then is a question mark."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    ascii_only = "".join(c if c.isascii() and c.isprintable() else " " if c.isspace() else "?" for c in letters)
    return "".join(SPECIAL.get(c, c) for c in ascii_only)
