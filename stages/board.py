"""Results -> the table: who leads, who ties, what each gained and cost, and the summary of it in words."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import statistics
from .results import COLLAPSED, CONTROLS, DIVERGED, MISSING, UNEVALUATED, Entry, Modality
from .statistics import Comparison, Estimate

DEPTH = "linear_depth"
MEASURES = {"linear": "linear probe", DEPTH: "linear probe, chosen depth", "knn": "k-NN"}  # accuracy on test, percent
FIRST = "linear"  # the measure that orders the table
BEST, TIED = "best", "tied"
NAMED = 6  # so many entries a sentence names; more it counts
FAILURES = (DIVERGED, COLLAPSED, UNEVALUATED, MISSING)


@dataclass(frozen=True)
class Cell:
    """One entry by one measure. `error` is the test set's binomial standard error, which more seeds do not shrink."""

    estimate: Estimate
    error: float | None
    comparison: Comparison | None  # to the leader; only of an entry that is ranked beside it
    standing: str  # BEST, TIED or ""
    note: str = ""  # what else is to be said of the number

    @property
    def spread(self) -> str:
        """What stands behind the mean: half the 95 % interval over seeds, or else the standard error, named as such."""
        if self.estimate.half_width is not None:
            return f"± {self.estimate.half_width:.1f}"
        return "" if self.error is None else f"s.e. {self.error:.1f}"

    def __str__(self) -> str:
        return f"{self.estimate.mean:.1f} {self.spread}".rstrip()


@dataclass(frozen=True)
class Row:
    entry: Entry
    cells: dict[str, Cell]  # by measure; without those that no run measured
    gain: Estimate | None  # over the untrained entry with the same encoder, by FIRST

    def mean(self, key: str) -> float | None:
        """The mean over seeds of what the runs recorded under `key`."""
        values = list(self.entry.values(key).values())
        return float(np.mean(values)) if values else None

    @cached_property
    def statuses(self) -> Counter[str]:
        return Counter(run.status for run in self.entry.runs)

    @property
    def failed(self) -> bool:
        return any(self.statuses[status] for status in FAILURES)

    @property
    def status(self) -> str:
        """One word when all seeds agree, as in "ok"; else a count of each, as in "2 ok, 1 diverged (step 120)"."""
        alike = len(self.statuses) == 1
        return ", ".join(
            (status if alike else f"{count} {status}") + self.steps(status) for status, count in self.statuses.items()
        )

    def steps(self, status: str) -> str:
        """At which steps the runs diverged that did so in pretraining."""
        runs = [run for run in self.entry.runs if status == run.status == DIVERGED]
        steps = [f"{run.pretrain['step']:,}" for run in runs if run.pretrain["step"] is not None]
        return f" (step {listed(steps)})" if steps else ""


@dataclass(frozen=True)
class Board:
    """One modality's table, in three parts, each with the highest first."""

    modality: Modality
    seeds: list[int]
    methods: list[Row]  # self-supervised
    labelled: list[Row]  # they read labels: the ceiling
    controls: list[Row]  # neither: the floor
    leaders: dict[str, str]  # {measure: entry}; without the measures for which nothing can be ranked

    @property
    def rows(self) -> list[Row]:
        return self.methods + self.labelled + self.controls

    @cached_property
    def seconds(self) -> float:
        """Of pretraining, in all."""
        return sum(value for row in self.rows for value in row.entry.values("seconds").values())

    def share(self, row: Row) -> float | None:
        """Of those seconds, in percent."""
        return 100 * sum(row.entry.values("seconds").values()) / self.seconds if self.seconds else None

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.entry.name == name)


def board(modality: Modality, seeds: list[int]) -> Board:
    compared = {measure: rank(modality.entries, measure) for measure in MEASURES}
    rows = sorted((make_row(entry, modality.entries, compared) for entry in modality.entries), key=order)
    return Board(
        modality,
        seeds,
        [row for row in rows if row.entry.self_supervised],
        [row for row in rows if row.entry.source.labelled],
        [row for row in rows if row.entry.family == CONTROLS and not row.entry.source.labelled],
        {measure: leader for measure, (leader, _) in compared.items() if leader},
    )


def rank(entries: list[Entry], measure: str) -> tuple[str, dict[str, Comparison]]:
    """The leader by a measure and how the others stand to it; "" when there is none to rank.

    Ranked are the self-supervised entries whose every seed finished well: a mean over the seeds that survived flatters.
    """
    ranked = {
        entry.name: entry.values(measure)
        for entry in entries
        if entry.self_supervised and all(run.status == "ok" and run.value(measure) is not None for run in entry.runs)
    }
    return statistics.compare(ranked) if ranked else ("", {})


def make_row(entry: Entry, entries: list[Entry], compared: dict[str, tuple[str, dict[str, Comparison]]]) -> Row:
    cells = {}
    for measure, (leader, comparisons) in compared.items():
        if values := entry.values(measure):
            errors = list(entry.values(f"{measure}_error").values())
            comparison = comparisons.get(entry.name)
            standing = BEST if entry.name == leader else TIED if comparison and comparison.tied else ""
            error = float(np.mean(errors)) if errors else None
            note = depths(entry) if measure == DEPTH else ""
            cells[measure] = Cell(statistics.estimate(list(values.values())), error, comparison, standing, note)
    return Row(entry, cells, gain(entry, entries))


def depths(entry: Entry) -> str:
    """Which depths validation chose, as in "stage 3", or "stage 3, stage 2 and stage 3" where seeds do not agree.

    Nothing where there is nothing to choose.
    """
    measured = [run.evaluate for run in entry.runs if run.value(DEPTH) is not None]
    chosen = [found["choices"]["depth"] for found in measured if len(found["depths"]) > 1]
    return listed(chosen) if len(set(chosen)) > 1 else "".join(chosen[:1])


def gain(entry: Entry, entries: list[Entry]) -> Estimate | None:
    """What pretraining added to the first measure, paired by seed, in points; None for the untrained itself."""
    floor = next((e for e in entries if e.method == "untrained" and network(e) == network(entry)), entry)
    values, untrained = entry.values(FIRST), floor.values(FIRST)
    if floor is entry or not values.keys() & untrained.keys():
        return None
    return statistics.difference(values, untrained)


def network(entry: Entry) -> dict[str, Any]:
    """The encoder's settings that make the frozen network: not its name, its dropout, or the noise it is read in."""
    return {key: value for key, value in entry.encoder.items() if key not in ("name", "noise", "dropout")}


def order(row: Row) -> tuple[float, str]:
    """The highest first by FIRST, then those without a value; by name among equals."""
    cell = row.cells.get(FIRST)
    return (-cell.estimate.mean if cell else 1.0, row.entry.name)


def summary(board: Board) -> list[str]:
    """The table in sentences."""
    leading = [sentence for measure in MEASURES for sentence in lead(board, measure)]
    nothing = ["No self-supervised entry has finished under every seed, so nothing is ranked."]
    return (leading or nothing) + reference(board) + words(board) + failures(board) + budget(board)


def lead(board: Board, measure: str) -> list[str]:
    if measure not in board.leaders:
        return []
    best = board.row(board.leaders[measure])
    cell = best.cells[measure]
    words = f"By {MEASURES[measure]}, {best.entry.name} leads with {percent(cell.estimate)}"
    rivals = [row for row in board.methods if measure in row.cells and row.cells[measure].comparison]
    tied = [row.entry.name for row in rivals if row.cells[measure].standing == TIED]
    if cell.estimate.low is None:
        return [f"{words}; with fewer than {statistics.FEWEST} seeds, differences are not tested."]
    if tied:
        some = listed(tied) if len(tied) <= NAMED else f"{len(tied)} of the {len(rivals)} others that are ranked"
        words += f"; {some} cannot be told apart from it."
    else:
        words += f", ahead of all {len(rivals)} others that are ranked." if rivals else "."
    controls = {row.entry.name: row.cells[measure].estimate.mean for row in board.controls if measure in row.cells}
    higher = [f"{name} ({mean:.1f} %)" for name, mean in controls.items() if mean > cell.estimate.mean]
    return [f"{words} Controls above it: {listed(higher)}." if higher else words]


def reference(board: Board) -> list[str]:
    """The floor and the ceiling that the leader stands between, and who did not rise from the floor."""
    marks = [row for row in board.rows if row.entry.mark and FIRST in row.cells]
    said = [f"{row.entry.name} reaches {percent(row.cells[FIRST].estimate)}" for row in reversed(marks)]
    low = [row.entry.name for row in board.methods if row.gain and row.gain.low is not None and row.gain.low <= 0]
    sentences = [f"For reference, by {MEASURES[FIRST]}: {'; '.join(said)}."] if said else []
    return sentences + ([f"Not shown to be better than their untrained encoder: {listed(low)}."] if low else [])


def words(board: Board) -> list[str]:
    """How well methods of text do their own tasks on held-out sentences, beside what needs no learning."""
    told = [
        f"{row.entry.name} {math.exp(nats):,.0f} ({math.exp(row.mean('held_out_unigram')):,.0f})"
        for row in board.methods
        if (nats := row.mean("held_out_nats")) is not None
    ]
    ordered = [
        f"{row.entry.name} {100 * right:.1f} %"
        for row in board.methods
        if (right := row.mean("held_out_next")) is not None
    ]
    sentences = []
    if told:
        sentences += [f"Perplexity of a held-out word (and from the words' frequencies alone): {listed(told)}."]
    if ordered:
        sentences += [f"Told whether a held-out sentence follows another (chance: 50 %): {listed(ordered)}."]
    return sentences + retrieval(board) + zero_shot(board)


def retrieval(board: Board) -> list[str]:
    """For each thing that was looked for, how often it was found first by whose features."""
    runs = [run for row in board.rows for run in row.entry.runs]
    return [
        f"{what.capitalize()}, found first (chance: {shared(board, f'{what}_chance_r1'):.1f} %): "
        f"{best_first(board, f'{what}_r1')}."
        for what in dict.fromkeys(what for run in runs for what in run.evaluate.get("retrieval", {}))
    ]


def zero_shot(board: Board) -> list[str]:
    """Who tells pictures by the names of their classes alone."""
    majority = shared(board, "zero_shot_majority")
    if majority is None:
        return []
    told = best_first(board, "zero_shot_accuracy")
    return [f"Told by the classes' names alone, without labels (the largest class: {majority:.1f} %): {told}."]


def shared(board: Board, key: str) -> float | None:
    """What is the same for all entries, from the first that recorded it."""
    return next((value for row in board.rows if (value := row.mean(key)) is not None), None)


def best_first(board: Board, key: str) -> str:
    """The entries in which a percentage was measured, the highest first, as in "clip 6.3 % and siglip 5.9 %"."""
    found = {row.entry.name: value for row in board.rows if (value := row.mean(key)) is not None}
    return listed(f"{name} {found[name]:.1f} %" for name in sorted(found, key=found.__getitem__, reverse=True))


def failures(board: Board) -> list[str]:
    """Which entries lost how many runs, and to what."""
    sentences = []
    for status in FAILURES:
        rows = [row for row in board.rows if row.statuses[status]]
        names = [f"{row.entry.name} ({row.statuses[status]} of {len(board.seeds)} seeds)" for row in rows]
        if names:
            sentences.append(f"{status.capitalize()}: {listed(names)}.")
    return sentences or ["Every run finished."]


def budget(board: Board) -> list[str]:
    data = board.modality.data
    runs = [run for row in board.methods for run in row.entry.runs if run.status not in FAILURES]
    seen = sorted({run.value("samples") for run in runs})
    spent = [f"{n:,}" for n in seen[:1] + seen[1:][-1:]]
    sentences = []
    if len(spent) == 1:
        sentences.append(f"Every self-supervised run saw {spent[0]} samples.")
    if len(spent) == 2:
        sentences.append(f"Budgets differ: self-supervised runs saw between {spent[0]} and {spent[1]} samples.")
    devices = {run.pretrain["provenance"]["device"] for run in runs}
    if len(devices) > 1:
        sentences.append(f"The runs are from {len(devices)} kinds of device, so their seconds do not compare.")
    facts = [f"{len(data['classes'])} classes"] if data["classes"] else []
    facts += [f"{rows:,} rows in {split}" for split, rows in data["rows"].items()]
    described = f" ({listed(facts)})" if facts else ""
    seeds = f"seed{'s' * (len(board.seeds) > 1)} {listed(map(str, board.seeds))}"
    return [*sentences, f"Data: {data['name']}{described}; {seeds}."]


def percent(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.mean:.1f} %"
    return f"{estimate.mean:.1f} % (95 % interval {estimate.low:.1f} to {estimate.high:.1f})"


def listed(words: Iterable[str]) -> str:
    """As in "a, b and c"."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
