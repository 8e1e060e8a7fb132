"""Results -> a modality's table: who leads, who ties, what each gained and cost."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from . import statistics
from .quantities import DEPTH, FIRST, MEASURES, PREDICTORS, Quantity
from .results import COLLAPSED, CONTROLS, DIVERGED, MISSING, OK, UNEVALUATED, UNLABELLED, Entry, Modality, Run
from .statistics import Agreement, Comparison, Estimate, Gain, Place
from .text import listed, plus_minus

BEST, TIED = "best", "tied"
FAILURES = (DIVERGED, COLLAPSED, UNEVALUATED, MISSING)


@dataclass(frozen=True)
class Cell:
    """One entry by one measure. `error` is the test set's binomial standard error, which more seeds do not shrink."""

    estimate: Estimate
    error: float | None
    comparison: Comparison | None  # to the leader; only of an entry that is ranked beside it
    standing: str  # BEST, TIED or ""
    gain: Gain | None  # over the untrained entry with the same encoder
    place: Place | None  # among the ranked; only of an entry that is
    note: str = ""  # what else is to be said of the number

    @property
    def spread(self) -> str:
        """What stands behind the mean: half the 95 % interval over seeds, or else the standard error, named as such."""
        return plus_minus(self.estimate).strip() or ("" if self.error is None else f"s.e. {self.error:.1f}")

    def __str__(self) -> str:
        return f"{self.estimate.mean:.1f} {self.spread}".rstrip()


@dataclass(frozen=True)
class Row:
    entry: Entry
    cells: dict[str, Cell]  # by measure; without those that no run measured

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def gain(self) -> Gain | None:
        """By FIRST."""
        return self.cells[FIRST].gain if FIRST in self.cells else None

    @property
    def place(self) -> Place | None:
        """By FIRST."""
        return self.cells[FIRST].place if FIRST in self.cells else None

    def estimate(self, key: str) -> Estimate | None:
        """The mean and interval over seeds of what the runs recorded under `key`."""
        values = list(self.entry.values(key).values())
        return statistics.estimate(values) if values else None

    def mean(self, key: str) -> float | None:
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
        """One word when all seeds agree, as in "ok"; else a count of each, as in "2 ok, 1 diverged (step 9: ...)"."""
        words = []
        for status, count in self.statuses.items():
            details = f" ({self.details(status)})" if self.details(status) else ""
            words.append((status if len(self.statuses) == 1 else f"{count} {status}") + details)
        return ", ".join(words)

    def details(self, status: str) -> str:
        """Where and why runs diverged, and by which symptoms they are called collapsed; or nothing."""
        why = {DIVERGED: divergence, COLLAPSED: lambda run: run.evaluate.get("symptom")}
        reasons = [why[status](run) for run in self.entry.runs if run.status == status and status in why]
        return listed(dict.fromkeys(filter(None, reasons)))


def divergence(run: Run) -> str:
    """Where and why a run diverged: in pretraining, or else in what the encoder made of the data."""
    if run.pretrain["step"] is None:
        return "features are not finite"
    return f"step {run.pretrain['step']:,}: {run.pretrain['cause']}"


@dataclass(frozen=True)
class Board:
    """One modality's table, in three parts, each with the highest first."""

    modality: Modality
    seeds: list[int]
    methods: list[Row]  # self-supervised
    labelled: list[Row]  # they read labels: the ceiling
    controls: list[Row]  # neither: the floor
    leaders: dict[str, str]  # {measure: entry}; without the measures for which nothing can be ranked
    agreement: dict[str, Agreement]  # {predictor: with FIRST}; without those that no ranked entry has

    @property
    def rows(self) -> list[Row]:
        return self.methods + self.labelled + self.controls

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    @property
    def columns(self) -> dict[str, str]:
        """{measure: heading} of MEASURES, without those that no run measured."""
        return {measure: label for measure, label in MEASURES.items() if any(measure in row.cells for row in self.rows)}

    def measured(self, quantities: dict[str, Quantity]) -> dict[str, Quantity]:
        """Those of HEALTH or COST that some run has measured, by the names that they have on its kind of device."""
        found = {key: quantity for key, quantity in quantities.items() if self.shared(key) is not None}
        return {key: replace(q, label=q.on_cpu) if self.on_cpu and q.on_cpu else q for key, q in found.items()}

    def shared(self, key: str) -> float | None:
        """What is the same for all entries, from the first that recorded it."""
        return next((value for row in self.rows if (value := row.mean(key)) is not None), None)

    def found(self, measure: str) -> list[tuple[Row, Cell]]:
        """The self-supervised entries in which it was measured."""
        return [(row, row.cells[measure]) for row in self.methods if measure in row.cells]

    @property
    def unlabelled(self) -> bool:
        """Whether there is no accuracy because the data have no labels."""
        return not self.columns and any(row.statuses[status] for row in self.rows for status in (OK, UNLABELLED))

    @property
    def failed(self) -> bool:
        return any(row.failed for row in self.rows)

    @cached_property
    def on_cpu(self) -> bool:
        """Whether every run was pretrained on a CPU, so that its seconds are those of all threads together."""
        devices = self.devices(run for _, run in self.modality.runs)
        return bool(devices) and all(device.startswith("cpu") for device in devices)

    @property
    def seconds(self) -> str:
        """What the cost of pretraining is counted in."""
        return "CPU-seconds" if self.on_cpu else "seconds"

    @staticmethod
    def devices(runs: Iterable[Run]) -> set[str]:
        """The devices that runs were pretrained on."""
        return {str(run.pretrain["provenance"].get("device")) for run in runs if run.pretrain}

    @cached_property
    def pareto(self) -> list[str]:
        """The ranked entries which no other beats in both seconds and FIRST, the quickest first."""
        points = {
            row.name: (seconds, -cell.estimate.mean)
            for row, cell in self.found(FIRST)
            if sound(row.entry, FIRST) and (seconds := row.mean("seconds")) is not None
        }
        beaten = {
            name
            for name, point in points.items()
            if any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points.values())
        }
        return sorted(points.keys() - beaten, key=lambda name: (points[name], name))


def board(modality: Modality, seeds: list[int]) -> Board:
    entries = modality.entries
    rankings = {measure: ranking(entries, measure) for measure in MEASURES}
    rows = sorted((make_row(entry, entries, rankings) for entry in entries), key=order)
    return Board(
        modality,
        seeds,
        [row for row in rows if row.entry.self_supervised],
        [row for row in rows if row.entry.source.labelled],
        [row for row in rows if row.entry.family == CONTROLS and not row.entry.source.labelled],
        {measure: ranking.leader for measure, ranking in rankings.items() if ranking.leader},
        {key: found for key, predictor in PREDICTORS.items() if (found := agreement(rows, key, predictor.sign)).n},
    )


@dataclass(frozen=True)
class Ranking:
    """By one measure: the leader ("" when there is none to rank) and how the ranked entries stand, by name."""

    leader: str
    comparisons: dict[str, Comparison]  # to the leader
    gains: dict[str, Comparison]  # over the untrained entry with the same encoder, where that one is sound
    places: dict[str, Place]


def sound(entry: Entry, measure: str) -> bool:
    """Whether every seed finished well: a mean over the seeds that survived flatters."""
    return all(run.status == OK and run.value(measure) is not None for run in entry.runs)


def ranking(entries: list[Entry], measure: str) -> Ranking:
    """Ranked are the self-supervised entries that are sound."""
    ranked = {entry.name: entry for entry in entries if entry.self_supervised and sound(entry, measure)}
    if not ranked:
        return Ranking("", {}, {}, {})
    values = {name: entry.values(measure) for name, entry in ranked.items()}
    floors = {name: floor for name, entry in ranked.items() if (floor := untrained(entry, entries))}
    floors = {name: floor.values(measure) for name, floor in floors.items() if sound(floor, measure)}
    gains = statistics.against({name: values[name] for name in floors}, floors)
    return Ranking(*statistics.compare(values), gains, statistics.places(values))


def agreement(rows: list[Row], key: str, sign: int) -> Agreement:
    """How alike FIRST and what the runs recorded under `key` order the self-supervised entries that are sound."""
    found = [row for row in rows if row.entry.self_supervised and sound(row.entry, FIRST) and sound(row.entry, key)]
    return statistics.agreement([sign * row.mean(key) for row in found], [row.mean(FIRST) for row in found])


def make_row(entry: Entry, entries: list[Entry], rankings: dict[str, Ranking]) -> Row:
    cells = {}
    for measure, ranking in rankings.items():
        if values := entry.values(measure):
            errors = list(entry.values(f"{measure}_error").values())
            comparison = ranking.comparisons.get(entry.name)
            cells[measure] = Cell(
                estimate=statistics.estimate(list(values.values())),
                error=float(np.mean(errors)) if errors else None,
                comparison=comparison,
                standing=BEST if entry.name == ranking.leader else TIED if comparison and comparison.tied else "",
                gain=gain(entry, entries, measure, ranking.gains.get(entry.name)),
                place=ranking.places.get(entry.name),
                note=depths(entry) if measure == DEPTH else "",
            )
    return Row(entry, cells)


def depths(entry: Entry) -> str:
    """Which depths validation chose, as in "stage 3", or "stage 3, stage 2 and stage 3" where seeds do not agree.

    Nothing where there is nothing to choose.
    """
    measured = [run.evaluate for run in entry.runs if run.value(DEPTH) is not None]
    chosen = [found["choices"]["depth"] for found in measured if len(found["depths"]) > 1]
    return listed(chosen) if len(set(chosen)) > 1 else "".join(chosen[:1])


def gain(entry: Entry, entries: list[Entry], measure: str, tested: Comparison | None) -> Gain | None:
    """What pretraining added, paired by seed, in points; None where no seed is shared with the untrained.

    By "finetune" that is what it added over training from scratch, with the same labels and steps.
    """
    floor = untrained(entry, entries)
    if floor is None or not entry.values(measure).keys() & floor.values(measure).keys():
        return None
    found = tested.difference if tested else statistics.difference(entry.values(measure), floor.values(measure))
    return Gain(found.mean, found.low, found.high, found.n, tested.p if tested else None)


def untrained(entry: Entry, entries: list[Entry]) -> Entry | None:
    """The untrained entry with the same encoder; None for that one itself."""
    floor = next((e for e in entries if e.method == "untrained" and network(e) == network(entry)), entry)
    return None if floor is entry else floor


def network(entry: Entry) -> dict[str, Any]:
    """The encoder's settings that make the frozen network: not its name, its dropout, or the noise it is read in."""
    return {key: value for key, value in entry.encoder.items() if key not in ("name", "noise", "dropout")}


def order(row: Row) -> tuple[float, str]:
    """The highest first by FIRST, then those without a value; by name among equals."""
    cell = row.cells.get(FIRST)
    return (-cell.estimate.mean if cell else 1.0, row.name)
