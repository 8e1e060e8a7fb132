"""Results -> the table: who leads, who ties, what each gained and cost, and the summary of it in words."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import statistics
from .results import COLLAPSED, CONTROLS, DIVERGED, MISSING, UNEVALUATED, Entry, Modality, Run
from .statistics import Agreement, Comparison, Correlation, Estimate, Gain, Place

DEPTH, FINETUNED = "linear_depth", "finetune"
FIRST, SECOND = "linear", "knn"  # the measure that orders the table, and the one that asks least of the features
MEASURES = {  # accuracy on test, percent
    FIRST: "linear probe",
    DEPTH: "linear probe, chosen depth",
    SECOND: "k-NN",
    FINETUNED: "fine-tuned",
    "low_label": "1 % of labels",
    "transfer": "transfer",
}
BEST, TIED = "best", "tied"
NAMED = 6  # so many entries a sentence names; more it counts
FAILURES = (DIVERGED, COLLAPSED, UNEVALUATED, MISSING)


@dataclass(frozen=True)
class Quantity:
    """A number other than accuracy: its heading, the digits to show after multiplying by `scale`."""

    label: str
    digits: int
    scale: float = 1.0


HEALTH = {
    "effective_rank": Quantity("effective rank", 1),
    "lidar": Quantity("LiDAR", 1),
    "alignment": Quantity("alignment", 2),
    "uniformity": Quantity("uniformity", 2),
    "dead": Quantity("dead, %", 1),
    "clustering_nmi": Quantity("clusters, NMI", 1),
}
COST = {
    "seconds": Quantity("seconds", 0),
    "samples_per_second": Quantity("samples/s", 0),
    "encoder_parameters": Quantity("parameters, M", 2, 1e-6),
    "discarded_parameters": Quantity("thrown away, M", 2, 1e-6),
    "multiply_adds": Quantity("multiply-adds a sample, M", 1, 1e-6),
    "peak_memory_mb": Quantity("memory, MB", 0),
}


@dataclass(frozen=True)
class Predictor:
    """What may order methods as FIRST does, at less cost or without labels; `sign` is -1 where less is better."""

    label: str
    sign: int
    cheap: bool = True  # cheaper than FIRST itself


# Losses are not here: those of different objectives do not compare. The bound is what contrastive ones have in common.
PREDICTORS = {
    SECOND: Predictor("k-NN", 1),
    "effective_rank": Predictor("effective rank", 1),
    "lidar": Predictor("LiDAR", 1),
    "alignment": Predictor("alignment", -1),
    "uniformity": Predictor("uniformity", -1),
    "spread": Predictor("spread", 1),
    "dead": Predictor("share of dead features", -1),
    "held_out_information": Predictor("bound on mutual information", 1),
    "clustering_nmi": Predictor("NMI of clusters", 1),
    "low_label": Predictor("probe with 1 % of labels", 1, cheap=False),
    FINETUNED: Predictor("fine-tuned", 1, cheap=False),
    "transfer": Predictor("transfer", 1, cheap=False),
}


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
        if self.estimate.half_width is not None:
            return f"± {self.estimate.half_width:.1f}"
        return "" if self.error is None else f"s.e. {self.error:.1f}"

    def __str__(self) -> str:
        return f"{self.estimate.mean:.1f} {self.spread}".rstrip()


@dataclass(frozen=True)
class Row:
    entry: Entry
    cells: dict[str, Cell]  # by measure; without those that no run measured

    @property
    def gain(self) -> Gain | None:
        """By FIRST."""
        return self.cells[FIRST].gain if FIRST in self.cells else None

    def estimate(self, key: str) -> Estimate | None:
        """The mean and interval over seeds of what the runs recorded under `key`."""
        values = list(self.entry.values(key).values())
        return statistics.estimate(values) if values else None

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
        """One word when all seeds agree, as in "ok"; else a count of each, as in "2 ok, 1 diverged (step 9: ...)"."""
        alike = len(self.statuses) == 1
        words = {status: status if alike else f"{count} {status}" for status, count in self.statuses.items()}
        details = {status: self.details(status) for status in words}
        return ", ".join(word + (f" ({details[status]})" if details[status] else "") for status, word in words.items())

    def details(self, status: str) -> str:
        """Where and why runs diverged, and by which symptoms they are called collapsed; or nothing."""
        why = {DIVERGED: divergence, COLLAPSED: lambda run: run.evaluate.get("symptom")}
        if status not in why:
            return ""
        reasons = [why[status](run) for run in self.entry.runs if run.status == status]
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
    def columns(self) -> dict[str, str]:
        """{measure: heading} of MEASURES, without those that no run measured."""
        return {measure: label for measure, label in MEASURES.items() if any(measure in row.cells for row in self.rows)}

    def measured(self, quantities: dict[str, Quantity]) -> dict[str, Quantity]:
        """Those of HEALTH or COST that some run has measured."""
        return {key: quantity for key, quantity in quantities.items() if shared(self, key) is not None}

    @cached_property
    def pareto(self) -> list[str]:
        """The ranked entries which no other beats in both seconds and FIRST, the quickest first."""
        points = {
            row.entry.name: (seconds, -row.cells[FIRST].estimate.mean)
            for row in self.methods
            if sound(row.entry, FIRST) and (seconds := row.mean("seconds")) is not None
        }
        beaten = {
            name
            for name, point in points.items()
            if any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points.values())
        }
        return sorted(points.keys() - beaten, key=lambda name: (points[name], name))

    @property
    def rows(self) -> list[Row]:
        return self.methods + self.labelled + self.controls

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.entry.name == name)


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
    return all(run.status == "ok" and run.value(measure) is not None for run in entry.runs)


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
    return (-cell.estimate.mean if cell else 1.0, row.entry.name)


def summary(board: Board) -> list[str]:
    """The table in sentences."""
    parts = (lead, others, reference, gains, finetuning, predictors, surprises, words, failures, budget)
    return [sentence for part in parts for sentence in part(board)]


def lead(board: Board) -> list[str]:
    """Who leads by FIRST, and who cannot be told apart from it."""
    if FIRST not in board.leaders:
        if not board.columns and any(row.statuses["ok"] for row in board.rows):
            return ["The data have no labels, so there is no accuracy to rank by."]
        return ["No self-supervised entry has finished under every seed, so nothing is ranked."]
    best = board.row(board.leaders[FIRST])
    estimate = best.cells[FIRST].estimate
    led = f"By {MEASURES[FIRST]}, {best.entry.name} leads with {percent(estimate)}"
    if estimate.low is None:
        return [f"{led}; with fewer than {statistics.FEWEST} seeds, differences are not tested."]
    rivals, tied = compared(board, FIRST)
    if not rivals:
        return [f"{led}: no other is ranked."]
    if not tied:
        behind = f"all {len(rivals)} others that" if rivals[1:] else f"{rivals[0]}, the only other that"
        return [f"{led}, ahead of {behind} {'are' if rivals[1:] else 'is'} ranked."]
    if len(tied) <= NAMED:
        return [f"{led}; {listed(tied)} cannot be told apart from it."]
    some = f"{len(tied)} of the" if len(tied) < len(rivals) else "all"
    return [f"{led}; {some} {len(rivals)} others that are ranked cannot be told apart from it."]


def compared(board: Board, measure: str) -> tuple[list[str], list[str]]:
    """The names of those that are tested against the leader, and of those among them that tie with it."""
    rivals = [row for row in board.methods if measure in row.cells and row.cells[measure].comparison]
    tied = [row.entry.name for row in rivals if row.cells[measure].standing == TIED]
    return [row.entry.name for row in rivals], tied


def others(board: Board) -> list[str]:
    """Who leads by the other measures."""
    said = []
    for measure, leader in board.leaders.items():
        if measure not in (FIRST, FINETUNED):
            rivals, tied = compared(board, measure)
            some = f"{len(tied)} of {len(rivals)} others" if tied[2:] else listed(tied) or "none"
            ties = f", {some} tied" if rivals else ""
            mean = board.row(leader).cells[measure].estimate.mean
            said.append(f"by {MEASURES[measure]}: {leader} ({mean:.1f} %{ties})")
    return [f"First {'; '.join(said)}."] if said else []


def reference(board: Board) -> list[str]:
    """The floor and the ceiling that the leader stands between."""
    marks = [row for row in board.rows if row.entry.mark and FIRST in row.cells]
    said = [f"{row.entry.name} reaches {percent(row.cells[FIRST].estimate)}" for row in reversed(marks)]
    return [f"For reference, by {MEASURES[FIRST]}: {'; '.join(said)}."] if said else []


def gains(board: Board) -> list[str]:
    """Who rose from the floor, by FIRST."""
    tested = [row for row in board.methods if row.gain and row.gain.p is not None]
    if not tested:
        return []
    better, worse = better_and_worse(board, FIRST)
    gain = f"{np.median([row.gain.mean for row in tested]):.1f} points".replace("-", "\N{MINUS SIGN}")
    if len(tested) == 1:
        shown = f"{'' if better + worse else 'not '}shown to be {'worse' if worse else 'better'}"
        return [f"{tested[0].entry.name} is {shown} than its untrained encoder; the gain is {gain}."]
    some = {0: "none", 1: "one", len(tested): "both" if len(tested) == 2 else "all"}.get(len(better), f"{len(better)}")
    names = f" ({listed(better)})" if 0 < len(better) <= NAMED and some != "all" else ""
    are = "are" if better[1:] else "is"
    shown = f"Of {len(tested)} methods beside their untrained encoder, {some}{names} {are} shown to be better than it"
    below = f", {listed(worse)} to be worse" if worse else ""
    return [f"{shown}{below}; the median gain is {gain}."]


def better_and_worse(board: Board, measure: str) -> tuple[list[str], list[str]]:
    """The names of the methods that are shown to be better than their untrained encoder, and of those to be worse."""
    gains = {row.entry.name: row.cells[measure].gain for row in board.methods if measure in row.cells}
    shown = {name: gain.mean for name, gain in gains.items() if gain and gain.shown}
    return [name for name, mean in shown.items() if mean > 0], [name for name, mean in shown.items() if mean < 0]


def finetuning(board: Board) -> list[str]:
    """What pretraining is worth where all labels train the whole network."""
    if FINETUNED not in board.leaders:
        return []
    best = board.row(board.leaders[FINETUNED])
    cell = best.cells[FINETUNED]
    sentence = f"Fine-tuned with all labels, {best.entry.name} is first with {percent(cell.estimate)}"
    if not cell.gain:
        return [f"{sentence}."]
    above = "above" if cell.gain.mean >= 0 else "below"
    chance = "" if cell.gain.p is None or cell.gain.shown else ", which may be chance"
    _, lost = better_and_worse(board, FINETUNED)
    worse = f"; shown to lose by their pretraining: {listed(lost)}" if lost else ""
    return [f"{sentence}, {abs(cell.gain.mean):.1f} points {above} the same network from scratch{chance}{worse}."]


def predictors(board: Board) -> list[str]:
    """Which cheap measure orders methods most as FIRST does, and which are not shown to."""
    found = correlations(board)
    if not found:
        return []
    best = max(found, key=lambda key: found[key].value)
    label, rho = PREDICTORS[best].label, correlated(found[best])
    some = f"the {board.agreement[best].n} methods"
    unclear = [PREDICTORS[key].label for key, other in found.items() if other.sign == 0]
    if found[best].sign < 1:
        return [
            f"No cheaper measure is shown to order {some} as the {MEASURES[FIRST]} does; nearest is {label} ({rho})."
        ]
    rest = f"; {listed(unclear)} {'are' if unclear[1:] else 'is'} not shown to" if unclear else ""
    return [f"Of the cheaper measures, {label} orders {some} most as the {MEASURES[FIRST]} does ({rho}){rest}."]


def correlations(board: Board) -> dict[str, Correlation]:
    """Spearman's, of the cheap measures with FIRST."""
    return {key: found.spearman for key, found in board.agreement.items() if PREDICTORS[key].cheap and found.spearman}


def correlated(found: Correlation) -> str:
    order = "the same order" if found.value > 0 else "the reverse order"
    bounds = order if found.low is None else f"95 % interval {found.low:.2f} to {found.high:.2f}"
    return f"Spearman {found.value:.2f}, {bounds}".replace("-", "\N{MINUS SIGN}")


def surprises(board: Board) -> list[str]:
    """What one would not expect of a benchmark of self-supervised learning, by three rules.

    A control that reads no labels is above the leader by FIRST or SECOND; an entry's ranks by these two differ by more
    than their intervals; a cheap measure is shown to order methods the other way round than FIRST.
    """
    above = []
    for measure in (FIRST, SECOND):
        if measure in board.leaders:
            best = board.row(board.leaders[measure]).cells[measure].estimate.mean
            means = {row.entry.name: row.cells[measure].estimate.mean for row in board.controls if measure in row.cells}
            higher = [f"{name} ({mean:.1f} %)" for name, mean in means.items() if mean > best]
            above += [f"by {MEASURES[measure]}: {listed(higher)}"] if higher else []
    moved = [
        f"{row.entry.name} ({ranks[1].rank} instead of {ranks[0].rank})"
        for row in board.methods
        if (ranks := [row.cells[key].place for key in (FIRST, SECOND) if key in row.cells and row.cells[key].place])[1:]
        and (ranks[0].high < ranks[1].low or ranks[1].high < ranks[0].low)
    ]
    reverse = [
        f"{PREDICTORS[key].label} ({correlated(found)})" for key, found in correlations(board).items() if found.sign < 0
    ]
    sentences = [f"Controls above the leader {'; '.join(above)}."] if above else []
    if moved:
        what = f"Rank by {MEASURES[SECOND]} and by {MEASURES[FIRST]} differ by more than their intervals"
        sentences.append(f"{what}: {listed(moved)}.")
    return sentences + ([f"Methods are ordered the wrong way round by {listed(reverse)}."] if reverse else [])


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
    told = [f"{name} {found[name]:.1f} %" for name in sorted(found, key=found.__getitem__, reverse=True)]
    return listed(told[:NAMED] + [f"less in {len(told) - NAMED} more"] * (len(told) > NAMED))


def failures(board: Board) -> list[str]:
    """Which entries lost how many runs, and to what."""
    sentences = []
    for status in FAILURES:
        names = []
        for row in board.rows:
            if count := row.statuses[status]:
                details = f"; {row.details(status)}" if row.details(status) else ""
                names.append(f"{row.entry.name} ({count} of {counted(len(board.seeds), 'seed')}{details})")
        if names:
            sentences.append(f"{status.capitalize()}: {listed(names)}.")
    return sentences or ["Every run finished."]


def budget(board: Board) -> list[str]:
    """How much of which data the self-supervised runs saw."""
    runs = [run for row in board.methods for run in row.entry.runs if run.status not in FAILURES]
    seen = sorted({run.value("samples") for run in runs})
    spent = " and ".join(f"{samples:,}" for samples in dict.fromkeys(seen[:1] + seen[-1:]))
    saw = f"Self-supervised runs saw between {spent}" if seen[1:] else f"Every self-supervised run saw {spent}"
    data = board.modality.data
    facts = [f"{len(data['classes'])} classes"] if data["classes"] else []
    facts += [f"{rows:,} rows in {split}" for split, rows in data["rows"].items()]
    described = data["name"] + (f" ({listed(facts)})" if facts else "")
    devices = {run.pretrain["provenance"]["device"] for run in runs}
    apart = f"; on {len(devices)} kinds of device, so that their seconds do not compare" if len(devices) > 1 else ""
    numbers = f"seed{'s' * (len(board.seeds) > 1)} {listed(map(str, board.seeds))}"
    every = [run for row in board.rows for run in row.entry.runs]
    trained, evaluated = minutes(run.pretrain for run in every), minutes(run.evaluate for run in every)
    took = f"{trained} of pretraining and {evaluated} of evaluation"
    return [f"{f'{saw} samples of' if seen else 'Data:'} {described}, under {numbers}{apart}; in all, {took}."]


def minutes(results: Iterable[dict[str, Any]]) -> str:
    """What a stage took in all runs, from what they recorded of it."""
    return counted(sum(found.get("seconds", 0) for found in results) / 60, "minute")


def counted(amount: float, noun: str) -> str:
    """To a whole number, as in `1 minute` and `3 seeds`."""
    count = round(amount)
    return f"{count:,} {noun}{'s' * (count != 1)}"


def percent(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.mean:.1f} %"
    return f"{estimate.mean:.1f} % (95 % interval {estimate.low:.1f} to {estimate.high:.1f})"


def listed(words: Iterable[str]) -> str:
    """As in "a, b and c"; "" for none."""
    *head, last = [*words] or [""]
    return f"{', '.join(head)} and {last}" if head else last
