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
import contextlib
import functools
import hashlib
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

import ssl_methods

from . import plan
from .common.command import command
from .common.fingerprint import fingerprint
from .common.settings import Entry, Evaluation, InputError, Range, Sweep, Training, check, one_line, parse, read
from .measures.protocol import validation_score
from .sweeping.outcome import Result, best_of, write
from .training.checkpoint import SCRATCH
from .training.columns import manifest
from .training.devices import key_of
from .training.loop import train

# What a space may name beside the method's own settings: nothing that changes how many samples are seen.
TRAINING = ("batch_size", "lr", "weight_decay", "warmup", "clip")
STARTUP = 5  # random draws before TPE follows what it has learned
POLL = 1.0  # seconds between two looks at the study, while others hold its last trials
UNSIGNED = timedelta(minutes=2)  # a trial that has no worker's name by then lost its worker as it began
SILENT = 2 * 60 * 60.0  # seconds, after which a trial of another machine, which cannot be asked, is given up

Log = Callable[..., None]  # log(step, **numbers)
Objective = Callable[[Entry, Log], float | None]  # the score of an entry's settings; None where training diverged


@dataclass(frozen=True)
class Search:
    """A sweep, checked: what is varied, how, and the name that all its workers find its study by."""

    entry: Entry  # as it stands: trial 0
    sweep: Sweep
    space: dict[str, BaseDistribution]
    study: str

    @property
    def default(self) -> dict[str, Any]:
        return {axis: current(self.entry, axis) for axis in self.space}


# ---- The space, as params.yaml gives it


def space_of(entry: Entry, sweep: Sweep) -> dict[str, BaseDistribution]:
    """What each axis is drawn from.

    Raises InputError for an unknown axis, for a range that makes no sense, for a value that the setting cannot take.
    """
    where = f"sweeps.{entry.name}.space"
    if not sweep.space:
        raise InputError(
            f"{where}: names no parameter; add one, as in `temperature: {{low: 0.05, high: 1.0, log: true}}`"
        )
    for axis in sweep.space:
        if axis not in (known := [*entry.hyper, *TRAINING]):
            raise InputError(f"{where}: {ssl_methods.unknown('parameter', axis, known)}")
    space = {axis: distribution(given, current(entry, axis), f"{where}.{axis}") for axis, given in sweep.space.items()}
    for axis, given in sweep.space.items():
        for value in given.choices or (space[axis].low, space[axis].high):
            if axis in entry.hyper:
                check(ssl_methods.load(entry.method), {**entry.hyper, axis: value}, where)
            else:
                parse(Training, {**entry.training.model_dump(), axis: value}, where)
    return space


def distribution(given: Range, default: Any, where: str) -> BaseDistribution:
    """An axis as Optuna's distribution, for a setting that is now `default`. Raises InputError where it makes none."""
    ends = (given.low, given.high)
    if given.choices is not None:
        if ends != (None, None) or given.log:
            raise InputError(f"{where}: give either `choices`, or `low` and `high`, but not both")
        if not given.choices or len(set(given.choices)) < len(given.choices):
            raise InputError(f"{where}.choices: expected different values, at least one, but it is {given.choices}")
        if default not in given.choices:
            raise InputError(f"{where}.choices: lacks {default!r}, the value in use, which trial 0 measures; add it")
        return CategoricalDistribution(given.choices)
    if None in ends:
        raise InputError(f"{where}: expected {{low: ..., high: ...}} or {{choices: [...]}}")
    if given.low >= given.high:
        raise InputError(f"{where}: low must be less than high, but low is {given.low} and high is {given.high}")
    if given.log and given.low <= 0:
        raise InputError(f"{where}: a range with `log: true` needs low > 0, but low is {given.low}")
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise InputError(f"{where}: the value in use is {default!r}, which lies in no range; give `choices` instead")
    if not given.low <= default <= given.high:
        raise InputError(f"{where}: leaves out {default!r}, the value in use, which trial 0 measures; widen the range")
    if isinstance(default, float):
        return FloatDistribution(given.low, given.high, log=given.log)
    if not (given.low.is_integer() and given.high.is_integer()):
        raise InputError(f"{where}: takes whole numbers, but low is {given.low} and high is {given.high}")
    return IntDistribution(int(given.low), int(given.high), log=given.log)


def current(entry: Entry, axis: str) -> Any:
    return entry.hyper[axis] if axis in entry.hyper else getattr(entry.training, axis)


def check_data(search: Search, data: dict[str, Any]) -> None:
    """Raises InputError where the data, of that manifest, have no labels, or fewer rows than a trial's batch."""
    if not data["classes"]:
        raise InputError(
            f"benchmark.{search.entry.modality}.sweeps: {data['data']} has no labels to score by; empty it"
        )
    if given := search.sweep.space.get("batch_size"):
        largest, rows = int(max(given.choices or [given.high])), data["splits"]["train"]["rows"]
        if largest > rows:
            raise InputError(
                f"sweeps.{search.entry.name}.space.batch_size: {largest} is larger than the data: "
                f"{data['data']} has {rows} rows to train on; choose at most that"
            )


def variant(search: Search, values: dict[str, Any]) -> Entry:
    """The entry with a trial's values and budget.

    A learning rate, drawn or not, is meant for the entry's own batch size, and is scaled to the trial's.
    """
    entry = search.entry
    hyper = {key: values.get(key, value) for key, value in entry.hyper.items()}
    own = {key: value for key, value in values.items() if key not in hyper}
    training = {**entry.training.model_dump(), **own, "epochs": search.sweep.epochs}
    training["lr"] *= training["batch_size"] / entry.training.batch_size
    return entry.model_copy(update={"hyper": hyper, "training": Training(**training)})


# ---- The study
#
# A draw is one point of the space to be tried. It takes one trial of Optuna's, or several with the same values, where a
# worker was killed or two workers began it at the same moment. Which draw a trial belongs to is written as the trial is
# created, so all workers see the same draws in the same order, with no lock and in any storage.

REPEATS, WORKER = (
    "repeats",
    "worker",
)  # attributes of a trial: the number of the draw's first trial; the process at work


def draws_of(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """The trials of each draw, by the number of its first; draws and trials in the order of their creation."""
    draws: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        draws.setdefault(origin_of(trial), []).append(trial)
    return draws


def origin_of(trial: FrozenTrial | Trial) -> int:
    return trial.user_attrs.get(REPEATS, trial.number)


def number_of(study: optuna.Study, trial: FrozenTrial | Trial) -> int:
    """Which draw a trial belongs to, counted from 0: the trial's number in all that a sweep reports."""
    return list(draws_of(study)).index(origin_of(trial))


class DrawSampler(optuna.samplers.BaseSampler):
    """TPE, seeded anew for each draw.

    Seeded once per process, every resumed process and every further worker would draw the same beginning again.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.tpe: optuna.samplers.TPESampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        digest = hashlib.sha256(f"{self.seed} {number_of(study, trial)}".encode()).digest()
        self.tpe = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=STARTUP)
        self.tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study, trial):
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


def open_study(search: Search) -> optuna.Study:
    """The study of that name, created if need be. Raises InputError for a storage that cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, path = search.sweep.storage, SCRATCH / "sweeps" / f"{search.study}.journal"
    try:
        study = optuna.create_study(
            storage=database(url) if url else journal(path),
            sampler=DrawSampler(search.sweep.seed),
            study_name=search.study,
            direction="maximize",
            load_if_exists=True,
        )
        results_of(study, search.sweep.trials)  # here, so that what is damaged is told before any work
        list(map(holds, study.get_trials(deepcopy=False)))
    except Exception as error:  # each kind of storage has its own
        reason = one_line(f"{type(error).__name__} {error}")[:200]
        mend = "" if url else "; delete it to search anew"
        raise InputError(f"sweeps.{search.entry.name}.storage: cannot use {url or path}: {reason}{mend}") from None
    return study


def database(url: str) -> RDBStorage:
    """A database's storage. Of two workers that make its tables at the same moment one is refused, and looks again."""
    for _ in range(2):
        with contextlib.suppress(Exception):  # each kind of database has its own
            return RDBStorage(url)
        time.sleep(1.0)
    return RDBStorage(url)


def journal(path: Path) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Absolute, or the lock that a killed worker leaves behind would never be broken: it is a link to this path.
    return JournalStorage(JournalFileBackend(str(path.resolve())))


def results_of(study: optuna.Study, wanted: int) -> list[Result]:
    """The first `wanted` draws, as far as they have a result."""
    results = []
    for number, trials in enumerate(list(draws_of(study).values())[:wanted]):
        if done := [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]:
            results.append(Result(number, done[0].value, done[0].params, done[0].duration.total_seconds()))
    return results


# ---- The workers


def work(search: Search, objective: Objective, workers: int = 1) -> list[Result]:
    """Runs trials until all have a result, together with whichever other processes do the same. Returns all results.

    What `objective` raises ends this process's work; that trial is tried again when the sweep is resumed.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    study, wanted = open_study(search), search.sweep.trials
    while len(results := results_of(study, wanted)) < wanted:
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():
            raise SystemExit("the sweep's first process is gone")
        mend(study, search)
        trial = claim(study, search)
        if trial is None:
            time.sleep(POLL)
            continue
        score = run(study, trial, search, objective)
        print(
            progress(search, number_of(study, trial), trial.params, score, results_of(study, wanted), workers),
            flush=True,
        )
    return results


def work_together(search: Search, objective: Objective, workers: int) -> list[Result]:
    """`work`, in that many processes. Helpers that die lose nothing: this process takes over what they left."""
    open_study(search)  # here, once: a database is not to be created by several processes at once
    context = multiprocessing.get_context("forkserver")  # CUDA does not survive a plain fork
    helpers = [context.Process(target=work, args=(search, objective, workers)) for _ in range(workers - 1)]
    for helper in helpers:
        helper.start()
    try:
        return work(search, objective, workers)
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    finally:
        for helper in helpers:
            helper.join()


def mend(study: optuna.Study, search: Search) -> None:
    """Queues again each draw that has no result and nobody at work on it, and closes the trials of dead workers."""
    draws = draws_of(study)
    if not draws:
        study.enqueue_trial(search.default, user_attrs={REPEATS: 0})
    for origin, trials in list(draws.items())[: search.sweep.trials]:
        if not any(map(holds, trials)):
            # Values that a worker was killed before drawing are drawn again, from the same seed.
            values = max((t.params for t in trials), key=len) if origin else search.default
            study.enqueue_trial(values, user_attrs={REPEATS: origin})
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not holds(trial):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def claim(study: optuna.Study, search: Search) -> Trial | None:
    """A trial for this process to run; None where there is nothing to do but wait for others."""
    wanted = search.sweep.trials
    if len(draws_of(study)) >= wanted and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return None
    trial = study.ask(search.space)
    trial.set_user_attr(WORKER, this_process())
    # Another process may have been quicker, to the same draw or to the last one: the trial created first counts.
    rivals = draws_of(study)[origin_of(trial)]
    taken = any(holds(rival) for rival in rivals if rival.number < trial.number)
    if taken or number_of(study, trial) >= wanted:
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial


def holds(trial: FrozenTrial) -> bool:
    """Whether a trial has a result, or will have one."""
    if trial.state is TrialState.RUNNING:
        return at_work(trial)
    return trial.state is not TrialState.FAIL


def this_process() -> dict[str, Any]:
    """What tells the process at work, since when, from all others, those of other machines included."""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "since": time.time()}


def at_work(trial: FrozenTrial) -> bool:
    """Whether the process of a running trial is alive, as far as can be told from here."""
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        return datetime.now() - trial.datetime_start < UNSIGNED
    if worker["host"] != socket.gethostname():
        return time.time() - worker["since"] < SILENT
    try:
        process = psutil.Process(worker["pid"])
        # A process number is used again; the time of its start tells the two apart.
        return abs(process.create_time() - worker["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run(study: optuna.Study, trial: Trial, search: Search, objective: Objective) -> float | None:
    """Runs one trial, writes its score into the study, and returns it.

    One that diverged is None, and pruned in Optuna's words: worse than any score, and no score is made up for it.
    """
    from .tracking import runs as tracking

    entry, number = variant(search, trial.params), number_of(study, trial)
    try:
        with tracking.start(
            "sweep",
            modality=entry.modality,
            name=entry.name,
            seed=search.sweep.seed,
            params=entry.model_dump(include={"encoder", "hyper", "training"}),
            tags={"family": entry.family, "method": entry.method, "mlflow.runName": f"{entry.name} trial {number}"},
            key=f"{search.study}-{number}",
        ) as tracked:
            score = objective(entry, tracked.log)
            tracked.finish("diverged" if score is None else "ok", validation=score)
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    state = TrialState.PRUNED if score is None else TrialState.COMPLETE
    study.tell(trial, score, state=state, skip_if_finished=True)
    return score


def progress(
    search: Search, number: int, values: dict[str, Any], score: float | None, results: list[Result], workers: int
) -> str:
    """One line on the trial that has just ended, the best so far and the time left."""
    shown = ", ".join(f"{axis} {v:.4g}" if isinstance(v, float) else f"{axis} {v}" for axis, v in values.items())
    line = f"{search.entry.name} trial {number}: {'diverged' if score is None else f'{score:.2f}'} ({shown})"
    if best := best_of(results):
        line += f"; best {best.value:.2f} (trial {best.number})"
    waiting = search.sweep.trials - len(results)
    if results and waiting:
        minutes = statistics.mean(r.seconds for r in results) * waiting / workers / 60
        line += f"; {waiting} to go, about {minutes:.0f} min" if minutes >= 1 else f"; {waiting} to go, under a minute"
    return line


# ---- The stage


def score(entry: Entry, log: Log, *, folder: Path, seed: int, protocol: Evaluation) -> float | None:
    """Pretrains on the train split of `folder`, and scores the encoder on validation, in percent; None: it diverged."""
    trained = train(entry, folder, seed, log=log)
    if trained.status != "ok":
        return None
    return validation_score(trained.method.encoder, entry.modality, folder, protocol)


def search_of(modality: str, name: str, planned: dict[str, Any], data: dict[str, Any]) -> Search:
    """The sweep as planned in plan.json, on the data with that manifest. Raises InputError for what cannot be swept."""
    entry = Entry(modality=modality, name=name, **planned["entry"])
    sweep = Sweep(**planned["sweep"])
    space = space_of(entry, sweep)
    # The code that scores depend on, which is less than the stage's: a new figure is drawn from the trials as they are.
    roots = ["stages.sweep:score", "stages.sweep:variant", "stages.sweep:DrawSampler"]
    roots += [plan.method(planned["entry"]), *plan.embedding(modality), plan.network(planned["entry"])]
    code = fingerprint(roots, Path(__file__).parent.parent)
    settings = {key: value for key, value in planned.items() if key != "code"}
    settings["sweep"] = sweep.model_dump(exclude={"trials", "storage"})
    search = Search(entry, sweep, space, f"{modality}-{name}-{key_of([settings, code, data['hash']])}")
    check_data(search, data)
    return search


def adoption(search: Search, profile: str, best: Result | None) -> dict[str, Any]:
    """The blocks of params.yaml that would make the best trial's settings the entry's own."""
    if best is None:
        return {}
    name, tried = search.entry.name, variant(search, best.params)
    block: dict[str, Any] = {}
    if hyper := {axis: tried.hyper[axis] for axis in search.space if axis in tried.hyper}:
        block["methods"] = {name: hyper}
    own = {axis: getattr(tried.training, axis) for axis in (*search.space, "lr") if axis not in tried.hyper}
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
    place = Path("reports/sweeps", given.modality, given.entry)
    write(place, search.sweep, search.space, results, block)


if __name__ == "__main__":
    command(main)
