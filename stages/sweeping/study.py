"""The trials of a study, done by any number of processes on any number of machines: each of them once.

All trials wait in Optuna's queue, which gives each to one process. What a trial tries follows from its number and from
the scores so far. One whose process dies goes back to the queue under its number, so that a killed sweep ends in the
trials that it would have had undisturbed.
"""

import contextlib
import hashlib
import multiprocessing
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from ..common.settings import Entry, InputError, one_line
from ..training import devices
from ..training.checkpoint import SCRATCH
from ..training.children import end_with_parent
from .space import Search, variant

STARTUP = 5  # random draws before TPE follows what it has learned
POLL = 1.0  # seconds between two looks at the study, while others hold its last trials
UNSIGNED = timedelta(minutes=2)  # after which a trial that names none lost its process as it began
ELSEWHERE = timedelta(hours=2)  # after which a trial on another machine, which cannot be asked, is given up

Objective = Callable[[Entry], float | None]  # the score of an entry's settings; None where training diverged


class DrawSampler(optuna.samplers.BaseSampler):
    """TPE, seeded anew for each trial; trial 0 is the entry as it stands.

    Seeded once per process, every resumed process and every further worker would draw the same beginning again.
    """

    def __init__(self, search: Search):
        self.seed, self.default = search.sweep.seed, search.default

    def tpe(self, *draw: int | str) -> TPESampler:
        digest = hashlib.sha256(f"{self.seed} {draw}".encode()).digest()
        return TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=STARTUP)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.tpe(trial.number).infer_relative_search_space(study, trial) if trial.number else {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> dict:
        return self.tpe(trial.number).sample_relative(study, trial, space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        if trial.number == 0:
            return self.default[name]
        return self.tpe(trial.number, name).sample_independent(study, trial, name, distribution)


def draw(trial: Trial, search: Search) -> None:
    """Gives a trial a value for each axis. Those that it has from before an interruption, it keeps."""
    for axis, given in search.sweep.space.items():
        if given.choices is not None:
            trial.suggest_categorical(axis, given.choices)
        elif isinstance(search.default[axis], float):
            trial.suggest_float(axis, given.low, given.high, log=given.log)
        else:
            trial.suggest_int(axis, int(given.low), int(given.high), log=given.log)


def open_study(search: Search) -> optuna.Study:
    """The study of that name, created if need be. Raises InputError for a storage that cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, path = search.sweep.storage, SCRATCH / "sweeps" / f"{search.study}.journal"
    try:
        study = optuna.create_study(
            storage=database(url) if url else journal(path),
            sampler=DrawSampler(search),
            study_name=search.study,
            direction="maximize",
            load_if_exists=True,
        )
        results_of(study, search.sweep.trials)  # here, so that what is damaged is told before any work
        list(map(lost, study.get_trials(deepcopy=False)))
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


def results_of(study: optuna.Study, wanted: int) -> list[FrozenTrial]:
    """Those of the first `wanted` trials that have a result: a value, or None where training diverged."""
    first = study.get_trials(deepcopy=False)[:wanted]
    return [trial for trial in first if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def best_of(results: list[FrozenTrial]) -> FrozenTrial | None:
    """The first with the highest score; None where all diverged."""
    return max((r for r in results if r.value is not None), key=lambda r: r.value, default=None)


def work(search: Search, objective: Objective, workers: int = 1) -> list[FrozenTrial]:
    """Runs trials until all have a result, together with whichever other processes do the same. Returns all results.

    What `objective` raises ends this process's work; that trial is tried again when the sweep is resumed.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    study, wanted = open_study(search), search.sweep.trials
    while len(results := results_of(study, wanted)) < wanted:
        queue_up(study, wanted)
        if trial := claim(study, wanted):
            draw(trial, search)
            score = run(study, trial, search, objective)
            print(progress(search, trial, score, results_of(study, wanted), workers), flush=True)
        else:
            time.sleep(POLL)
    return results


def work_together(search: Search, objective: Objective, workers: int) -> list[FrozenTrial]:
    """`work`, in that many processes. Helpers that die lose nothing: this process takes over what they left."""
    open_study(search)  # here, once: a database is not to be created by several processes at once
    context = multiprocessing.get_context("forkserver")  # CUDA does not survive a plain fork
    helpers = [context.Process(target=help_out, args=(search, objective, workers)) for _ in range(workers - 1)]
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


def help_out(search: Search, objective: Objective, workers: int) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    work(search, objective, workers)


def queue_up(study: optuna.Study, wanted: int) -> None:
    """Queues the trials that are wanted and not yet there, and again those whose process is gone."""
    trials = study.get_trials(deepcopy=False)
    for _ in range(wanted - len(trials)):  # two processes that do so at once queue too many, which nobody takes
        study.enqueue_trial({})
    for trial in filter(lost, trials):
        put(study, trial, TrialState.WAITING, worker=None)


def claim(study: optuna.Study, wanted: int) -> Trial | None:
    """A trial for this process to run; None where there is nothing to do but wait for others."""
    if not any(trial.number < wanted for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))):
        return None
    trial = study.ask()
    if trial.number >= wanted:  # another process was quicker to the last one
        put(study, trial, TrialState.WAITING)
        return None
    trial.set_user_attr("worker", this_process())
    return trial


def put(study: optuna.Study, trial: FrozenTrial | Trial, state: TrialState, score: float | None = None, **attributes):
    """Sets a trial's attributes, then its state and score. One that has a result by now keeps it.

    By the storage's own means, because `study.tell` does not put a trial back into the queue, nor end one that another
    process, which took this one for dead, has put there.
    """
    with contextlib.suppress(UpdateFinishedTrialError):
        for name, content in attributes.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, content)
        study._storage.set_trial_state_values(trial._trial_id, state, None if score is None else [score])


def this_process() -> dict[str, Any]:
    """What tells the process at work from all others, those of other machines included."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def lost(trial: FrozenTrial) -> bool:
    """Whether the process that ran a trial is gone, as far as can be told from here."""
    if trial.state is not TrialState.RUNNING:
        return False
    worker = trial.user_attrs.get("worker")
    if worker is None or worker["host"] != socket.gethostname():
        return datetime.now() - trial.datetime_start > (ELSEWHERE if worker else UNSIGNED)
    try:
        process = psutil.Process(worker["pid"])
        # A process number is used again; the time of its start tells the two apart.
        return abs(process.create_time() - worker["started"]) > 2 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(study: optuna.Study, trial: Trial, search: Search, objective: Objective) -> float | None:
    """Runs one trial, writes into the study its score and what it cost (see `devices.clock`), and returns the score.

    One that diverged is None, and pruned in Optuna's words: worse than any score, and no score is made up for it.
    """
    clock = devices.clock(devices.choose(search.entry.training.device))
    began = clock()
    try:
        score = objective(variant(search, trial.params))
    except BaseException:
        put(study, trial, TrialState.WAITING, worker=None)
        raise
    put(study, trial, TrialState.PRUNED if score is None else TrialState.COMPLETE, score, seconds=clock() - began)
    return score


def progress(search: Search, trial: Trial, score: float | None, results: list[FrozenTrial], workers: int) -> str:
    """One line on the trial that has just ended, the best so far and the time left."""
    shown = ", ".join(f"{axis} {v:.4g}" if isinstance(v, float) else f"{axis} {v}" for axis, v in trial.params.items())
    line = f"{search.entry.name} trial {trial.number}: {'diverged' if score is None else f'{score:.2f}'} ({shown})"
    if best := best_of(results):
        line += f"; best {best.value:.2f} (trial {best.number})"
    if waiting := search.sweep.trials - len(results):
        minutes = statistics.mean(r.duration.total_seconds() for r in results) * waiting / workers / 60
        line += f"; {waiting} to go, about {minutes:.0f} min" if minutes >= 1 else f"; {waiting} to go, under a minute"
    return line
