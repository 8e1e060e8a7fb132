"""Searches the settings that matter for one entry of the table.   python -m stages.sweep image simclr --workers 2

data/<modality> -> reports/sweeps/<modality>/<entry>/{trials.csv, best.yaml, study.json, and three figures}

The block `sweeps.<entry>` of params.yaml names the space and the budget. Every trial sees as many samples, whatever its
batch size, and the learning rate grows with the batch. A trial's score is the linear probe's accuracy on validation
data: never on test, and never the method's own loss, which cannot be compared between two temperatures. Trial 0 is the
entry as it stands.

A killed sweep goes on where it was, to the trials that it would have had undisturbed. Any number of processes, on any
number of machines, may work on one study: each trial is done once. Studies lie in .scratch/sweeps, or at `storage`, any
Optuna URL; beyond the first few, which trials several workers draw depends on who finishes first.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from . import plan
from .common.command import command
from .common.fingerprint import fingerprint
from .common.settings import Entry, Evaluation, InputError, Sweep, read
from .measures.protocol import validation_score
from .sweeping.outcome import write
from .sweeping.space import Search, check_data, check_space, variant
from .sweeping.study import best_of, work_together
from .training.columns import manifest
from .training.devices import key_of
from .training.loop import train


def score(entry: Entry, *, folder: Path, seed: int, protocol: Evaluation) -> float | None:
    """Pretrains on the train split of `folder`, and scores the encoder on validation, in percent; None: it diverged."""
    trained = train(entry, folder, seed)
    if trained.status != "ok":
        return None
    return validation_score(trained.method.encoder, entry.modality, folder, protocol)


def search_of(modality: str, name: str, planned: dict[str, Any], data: dict[str, Any]) -> Search:
    """The sweep as planned in plan.json, on the data with that manifest. Raises InputError for what cannot be swept."""
    entry = Entry(modality=modality, name=name, **planned["entry"])
    sweep = Sweep(**planned["sweep"])
    check_space(entry, sweep)
    # The code that scores depend on, which is less than the stage's: a new figure is drawn from the trials as they are.
    roots = ["stages.sweep:score", "stages.sweeping.space:variant"]
    roots += ["stages.sweeping.study:DrawSampler", "stages.sweeping.study:draw"]
    roots += [plan.method(planned["entry"]), *plan.embedding(modality), plan.network(planned["entry"])]
    code = fingerprint(roots, Path(__file__).parent.parent)
    settings = {key: value for key, value in planned.items() if key != "code"}
    settings["sweep"] = sweep.model_dump(exclude={"trials", "storage"})
    search = Search(entry, sweep, f"{modality}-{name}-{key_of([settings, code, data['hash']])}")
    check_data(search, data)
    return search


def adoption(search: Search, profile: str, best: FrozenTrial | None) -> dict[str, Any]:
    """The blocks of params.yaml that would make the best trial's settings the entry's own."""
    if best is None:
        return {}
    name, tried = search.entry.name, variant(search, best.params)
    block: dict[str, Any] = {}
    if hyper := {axis: tried.hyper[axis] for axis in search.sweep.space if axis in tried.hyper}:
        block["methods"] = {name: hyper}
    own = {axis: getattr(tried.training, axis) for axis in (*search.sweep.space, "lr") if axis not in tried.hyper}
    if own != {axis: getattr(search.entry.training, axis) for axis in own}:
        block["training"] = {profile: {"override": {name: own}}}
    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine (default: %(default)s)")
    given = parser.parse_args()
    if given.workers < 1:
        raise InputError(f"--workers: expected 1 or more, but it is {given.workers}")

    planned = plan.lookup("sweep", given.modality, given.entry)
    folder = Path("data", given.modality)
    search = search_of(given.modality, given.entry, planned, manifest(folder))
    protocol = Evaluation(**planned["protocol"])
    objective = functools.partial(score, folder=folder, seed=search.sweep.seed, protocol=protocol)
    results = work_together(search, objective, given.workers)
    block = adoption(search, read().benchmark[given.modality].training, best_of(results))
    write(Path("reports/sweeps", given.modality, given.entry), search, results, block)

    from .tracking.runs import write_sweep  # here, because workers import this file and have no use for MLflow

    write_sweep(given.modality, given.entry)


if __name__ == "__main__":
    command(main)
