"""A modality's table in sentences."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import statistics
from .quantities import FINETUNED, FIRST, MEASURES, PREDICTORS, SECOND
from .statistics import Correlation
from .table import FAILURES, TIED, Board
from .text import counted, listed, number, percent

NAMED = 6  # so many entries a sentence names; more it counts


def summary(board: Board) -> list[str]:
    """Who leads and what else is to be said of the table, the first sentence standing for all."""
    parts = (lead, others, reference, gains, finetuning, predictors, surprises, words, retrieval, zero_shot)
    return [sentence for part in (*parts, failures, budget) for sentence in part(board)]


def lead(board: Board) -> list[str]:
    """Who leads by FIRST, and who cannot be told apart from it."""
    if FIRST not in board.leaders:
        if board.unlabelled:
            return ["The data have no labels, so there is no accuracy to rank by."]
        if not board.methods:
            return ["No entry is self-supervised, so nothing is ranked."]
        return ["No self-supervised entry has finished under every seed, so nothing is ranked."]
    best = board.row(board.leaders[FIRST])
    estimate = best.cells[FIRST].estimate
    led = f"By {MEASURES[FIRST]}, {best.name} leads with {percent(estimate)}"
    if estimate.low is None:
        return [f"{led}; with fewer than {statistics.FEWEST} seeds, differences are not tested."]
    rivals, tied = compared(board, FIRST)
    if not rivals:
        return [f"{led}: no other is ranked."]
    if not tied:
        behind = f"all {len(rivals)} others that are" if rivals[1:] else f"{rivals[0]}, the only other that is"
        return [f"{led}, ahead of {behind} ranked."]
    if len(tied) <= NAMED:
        return [f"{led}; {listed(tied)} cannot be told apart from it."]
    some = f"{len(tied)} of the" if len(tied) < len(rivals) else "all"
    return [f"{led}; {some} {len(rivals)} others that are ranked cannot be told apart from it."]


def compared(board: Board, measure: str) -> tuple[list[str], list[str]]:
    """The names of those that are tested against the leader, and of those among them that tie with it."""
    rivals = {row.name: cell.standing for row, cell in board.found(measure) if cell.comparison}
    return list(rivals), [name for name, standing in rivals.items() if standing == TIED]


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
    said = [f"{row.name} reaches {percent(row.cells[FIRST].estimate)}" for row in reversed(marks)]
    return [f"For reference, by {MEASURES[FIRST]}: {'; '.join(said)}."] if said else []


def gains(board: Board) -> list[str]:
    """Who rose from the floor, by FIRST."""
    tested = [row for row in board.methods if row.gain and row.gain.p is not None]
    if not tested:
        return []
    better, worse = better_and_worse(board, FIRST)
    gain = f"{number(np.median([row.gain.mean for row in tested]), 1)} points"
    if len(tested) == 1:
        shown = f"{'' if better + worse else 'not '}shown to be {'worse' if worse else 'better'}"
        return [f"{tested[0].name} is {shown} than its untrained encoder; the gain is {gain}."]
    some = {0: "none", 1: "one", len(tested): "both" if len(tested) == 2 else "all"}.get(len(better), f"{len(better)}")
    names = f" ({listed(better)})" if 0 < len(better) <= NAMED and some != "all" else ""
    are = "are" if better[1:] else "is"
    shown = f"Of {len(tested)} methods beside their untrained encoder, {some}{names} {are} shown to be better than it"
    below = f", {listed(worse)} to be worse" if worse else ""
    return [f"{shown}{below}; the median gain is {gain}."]


def better_and_worse(board: Board, measure: str) -> tuple[list[str], list[str]]:
    """The names of the methods that are shown to be better than their untrained encoder, and of those to be worse."""
    shown = {row.name: cell.gain.mean for row, cell in board.found(measure) if cell.gain and cell.gain.shown}
    return [name for name, mean in shown.items() if mean > 0], [name for name, mean in shown.items() if mean < 0]


def finetuning(board: Board) -> list[str]:
    """What pretraining is worth where all labels train the whole network."""
    if FINETUNED not in board.leaders:
        return []
    best = board.leaders[FINETUNED]
    cell = board.row(best).cells[FINETUNED]
    sentence = f"Fine-tuned with all labels, {best} is first with {percent(cell.estimate)}"
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
    some, like = f"the {board.agreement[best].n} methods", f"as the {MEASURES[FIRST]} does"
    if found[best].sign < 1:
        return [f"No cheaper measure is shown to order {some} {like}; nearest is {label} ({rho})."]
    unclear = [PREDICTORS[key].label for key, other in found.items() if other.sign == 0]
    rest = f"; {listed(unclear)} {'are' if unclear[1:] else 'is'} not shown to" if unclear else ""
    return [f"Of the cheaper measures, {label} orders {some} most {like} ({rho}){rest}."]


def correlations(board: Board) -> dict[str, Correlation]:
    """Spearman's, of the cheap measures with FIRST."""
    return {key: found.spearman for key, found in board.agreement.items() if PREDICTORS[key].cheap and found.spearman}


def correlated(found: Correlation) -> str:
    order = "the same order" if found.value > 0 else "the reverse order"
    bounds = order if found.low is None else f"95 % interval {number(found.low, 2)} to {number(found.high, 2)}"
    return f"Spearman {number(found.value, 2)}, {bounds}"


def surprises(board: Board) -> list[str]:
    """What one would not expect of a benchmark of self-supervised learning, by three rules.

    A control that reads no labels is above the leader by FIRST or SECOND; an entry's places by these two differ by more
    than their intervals; a cheap measure is shown to order methods the other way round than FIRST.
    """
    above, moved, sentences = [], [], []
    for measure in (FIRST, SECOND):
        if measure in board.leaders:
            best = board.row(board.leaders[measure]).cells[measure].estimate.mean
            means = {row.name: row.cells[measure].estimate.mean for row in board.controls if measure in row.cells}
            higher = [f"{name} ({mean:.1f} %)" for name, mean in means.items() if mean > best]
            above += [f"by {MEASURES[measure]}: {listed(higher)}"] if higher else []
    for row, cell in board.found(SECOND):
        first, second = row.place, cell.place
        if first and second and (first.high < second.low or second.high < first.low):
            moved.append(f"{row.name} ({second.rank} instead of {first.rank})")
    reverse = {PREDICTORS[key].label: found for key, found in correlations(board).items() if found.sign < 0}
    if above:
        sentences.append(f"Controls above the leader {'; '.join(above)}.")
    if moved:
        what = f"Places by {MEASURES[SECOND]} and by {MEASURES[FIRST]} differ by more than their intervals"
        sentences.append(f"{what}: {listed(moved)}.")
    if reverse:
        found = listed(f"{label} ({correlated(rho)})" for label, rho in reverse.items())
        sentences.append(f"Methods are ordered the wrong way round by {found}.")
    return sentences


def words(board: Board) -> list[str]:
    """How well methods of text do their own tasks on held-out sentences, beside what needs no learning."""
    perplexities = [
        f"{row.name} {math.exp(nats):,.0f} ({math.exp(row.mean('held_out_unigram')):,.0f})"
        for row in board.methods
        if (nats := row.mean("held_out_nats")) is not None
    ]
    ordered = [
        f"{row.name} {100 * right:.1f} %" for row in board.methods if (right := row.mean("held_out_next")) is not None
    ]
    sentences = []
    if perplexities:
        sentences += [f"Perplexity of a held-out word (and from the words' frequencies alone): {listed(perplexities)}."]
    if ordered:
        sentences += [f"Told whether a held-out sentence follows another (chance: 50 %): {listed(ordered)}."]
    return sentences


def retrieval(board: Board) -> list[str]:
    """For each thing that was looked for, how often it was found first by whose features."""
    return [
        f"{what.capitalize()}, found first (chance: {board.shared(f'{what}_chance_r1'):.1f} %): "
        f"{best_first(board, f'{what}_r1')}."
        for what in dict.fromkeys(what for _, run in board.modality.runs for what in run.evaluate.get("retrieval", {}))
    ]


def zero_shot(board: Board) -> list[str]:
    """Who tells pictures by the names of their classes alone."""
    majority = board.shared("zero_shot_majority")
    if majority is None:
        return []
    told = best_first(board, "zero_shot_accuracy")
    return [f"Told by the classes' names alone, without labels (the largest class: {majority:.1f} %): {told}."]


def best_first(board: Board, key: str) -> str:
    """The entries in which a percentage was measured, the highest first, as in "clip 6.3 % and siglip 5.9 %"."""
    found = {row.name: value for row in board.rows if (value := row.mean(key)) is not None}
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
                names.append(f"{row.name} ({count} of {counted(len(board.seeds), 'seed')}{details})")
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
    kinds = len(board.devices(runs))
    apart = f"; on {kinds} kinds of device, so that their seconds do not compare" if kinds > 1 else ""
    numbers = f"seed{'s' * (len(board.seeds) > 1)} {listed(map(str, board.seeds))}"
    minute = "CPU-minute" if board.on_cpu else "minute"
    trained = minutes((run.pretrain for _, run in board.modality.runs), minute)
    evaluated = minutes((run.evaluate for _, run in board.modality.runs), minute)
    took = f"{trained} of pretraining and {evaluated} of evaluation"
    return [f"{f'{saw} samples of' if seen else 'Data:'} {described}, under {numbers}{apart}; in all, {took}."]


def minutes(results: Iterable[dict[str, Any]], noun: str = "minute") -> str:
    """What a stage took in all runs, from what they recorded of it."""
    return counted(sum(found.get("seconds", 0) for found in results) / 60, noun)
