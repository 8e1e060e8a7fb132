"""The pipeline, several stages at a time on one machine.   python -m stages.parallel --workers 2

`dvc repro` runs one stage after another. Here every worker takes one entry and seed after another, and has DVC pretrain
and evaluate it (`dvc repro --single-item`); DVC's own locks keep the workers apart. All the rest runs before and after,
in order. It ends with what `dvc repro` ends with on as many threads, and goes on where it was interrupted.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..common.command import command
from ..common.files import replacing
from ..common.progress import Progress
from ..common.settings import InputError, Settings, read
from ..reporting.results import read_json

DVC = (sys.executable, "-m", "dvc")
SHOWN = 20  # lines of what a stage said before it failed

Job = list[str]  # stages, each of which needs the one before


def jobs(settings: Settings, stale: set[str]) -> list[Job]:
    """What is to be pretrained and evaluated, those first that took longest when they last ran, or never ran."""
    found: list[tuple[float, Job]] = []
    for modality, bench in settings.benchmark.items():
        for entry in bench.methods:
            for seed in settings.seeds:
                pretrain, evaluate = (f"{kind}-{modality}@{entry}-{seed}" for kind in ("pretrain", "evaluate"))
                if pretrain in stale or evaluate in stale:
                    job = [pretrain, evaluate] if pretrain in stale else [evaluate]
                    place = Path("metrics", modality, entry, str(seed))
                    last = [read_json(place / f"{stage.partition('-')[0]}.json") for stage in job]
                    found.append((sum(one.get("seconds", float("inf")) for one in last), job))
    return [job for _, job in sorted(found, key=lambda one: one[0], reverse=True)]


class Workers:
    """So many processes at a time, with `threads` threads each, and of `gpus` GPUs one each, in turn."""

    def __init__(self, count: int, threads: int, gpus: int):
        self.count, self.running, self.stopped = count, set(), threading.Event()
        self.slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for number in range(count):
            gpu = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {}
            self.slots.put({"OMP_NUM_THREADS": str(threads), **gpu})

    def work(self, waiting: list[Job]) -> dict[str, str]:
        """Runs all jobs; returns what those that failed said, by their last stage. Stopped, it leaves none running."""
        failed, bar = {}, Progress("runs", len(waiting), "runs")
        with ThreadPoolExecutor(self.count) as pool, self.stopping():
            for done in as_completed([pool.submit(self.run, job) for job in waiting]):
                failed |= done.result()
                bar.advance(1, failed=len(failed))
        bar.close()
        return failed

    def run(self, job: Job) -> dict[str, str]:
        """One stage after another, up to one that fails; then it returns what was said."""
        slot = self.slots.get()
        try:
            said = None if self.stopped.is_set() else self.make(job, slot)
        finally:
            self.slots.put(slot)
        return {} if said is None else {job[-1]: said}

    def make(self, job: Job, slot: dict[str, str]) -> str | None:
        """What a job's stages said, if one fails."""
        process = subprocess.Popen(
            [*DVC, "--wait-for-lock", "repro", "--single-item", *job],
            env=os.environ | slot,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # to be stopped together with the stage that it runs
        )
        self.running.add(process)
        if self.stopped.is_set():  # between the look at it and here
            end(process)
        said, _ = process.communicate()
        self.running.discard(process)
        return said if process.returncode else None

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Within it, Ctrl-C and SIGTERM stop what runs, and the rest is not begun."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield
        except BaseException:
            self.stopped.set()
            for process in list(self.running):
                end(process)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def end(process: subprocess.Popen) -> None:
    """Ends a process and those that it began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def forget(status: Mapping[str, list[Any]], lock: Path = Path("dvc.lock")) -> None:
    """Drops from dvc.lock what it says of stages that depend on something else by now; `status` is DVC's, as JSON.

    DVC writes all of dvc.lock anew after every stage. Where all runs are to be made, half of it is such.
    """
    gone = [name for name, changes in status.items() if any("changed deps" in change for change in changes)]
    if not gone or not lock.exists():
        return
    yaml = YAML()
    known = yaml.load(lock)
    for name in gone:
        known["stages"].pop(name, None)
    with replacing(lock) as partial:
        yaml.dump(known, partial)


def reproduce(work: Callable[[list[Job]], dict[str, str]], how: str) -> None:
    """`dvc repro`, but `work` makes all that is to be pretrained and evaluated; it returns what failed, as Workers do.

    Raises InputError where something did.
    """
    settings = read()
    subprocess.run([*DVC, "repro", "plan", *(f"prepare@{modality}" for modality in settings.benchmark)], check=True)
    status = subprocess.run([*DVC, "status", "--json"], check=True, stdout=subprocess.PIPE, text=True)
    stale = json.loads(status.stdout)
    forget(stale)
    waiting = jobs(settings, set(stale))
    print(f"{len(waiting)} runs to make, {how}", flush=True)
    failed = work(waiting) if waiting else {}
    for stage, said in failed.items():
        print(f"\n{stage} could not be made:\n" + "\n".join(said.splitlines()[-SHOWN:]), file=sys.stderr)
    if failed:
        raise InputError(f"{len(failed)} of {len(waiting)} runs failed; mend what they say, and start again")
    subprocess.run([*DVC, "repro"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, help="stages at a time; one for each GPU, or else for each core")
    parser.add_argument("--threads", type=int, help="of each; the cores, divided among the workers")
    given = parser.parse_args()
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    workers = given.workers or gpus or cores
    threads = given.threads or max(1, cores // workers)
    if min(workers, threads) < 1:
        raise InputError("--workers and --threads must be at least 1")
    reproduce(Workers(workers, threads, gpus).work, f"{workers} at a time with {threads} threads each")


if __name__ == "__main__":
    command(main)
