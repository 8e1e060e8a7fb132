"""The pipeline, several entries at a time on one machine.   python -m stages.running.parallel --workers 2

For machines with more GPUs, or more cores, than there are seeds: `dvc repro` makes one entry after another, all its
seeds at a time. Here every worker has its share of the machine, and takes one entry after another, and has DVC pretrain
and evaluate it (`dvc repro --single-item`); DVC's own locks keep the workers apart. All the rest runs before and after,
in order. It goes on where it was interrupted.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ..common.command import command
from ..common.files import read_json
from ..common.progress import Progress
from ..common.settings import InputError, Settings, read
from ..training.children import cores

DVC = (sys.executable, "-m", "dvc")
SHOWN = 20  # lines of what a stage said before it failed
POLL = 0.2  # seconds

Job = list[str]  # stages, each of which needs the one before
Share = dict[str, str]  # of the machine, as variables of the environment


def jobs(settings: Settings, stale: set[str]) -> list[Job]:
    """What is to be pretrained and evaluated, those first that took longest when they last ran, or never ran."""
    found: list[tuple[float, Job]] = []
    for modality, bench in settings.benchmark.items():
        for entry in bench.methods:
            job = [f"{stage}-{modality}@{entry}" for stage in ("pretrain", "evaluate")]
            if job[0] not in stale:
                job = [job[1]] if job[1] in stale else []
            runs = [read_json(path) for path in Path("metrics", modality, entry, "pretrain").glob("*.json")]
            seconds = sum(run.get("seconds", 0) for run in runs) if runs else float("inf")
            found.append((seconds, job))
    return [job for _, job in sorted(found, key=lambda one: one[0], reverse=True) if job]


def shares(workers: int, cores: int, gpus: list[str]) -> list[Share]:
    """The machine, divided among so many workers. Where these are more than the GPUs, several have the same one."""
    threads = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
    own = [gpus[worker::workers] or [gpus[worker % len(gpus)]] for worker in range(workers)] if gpus else []
    return [threads | {"CUDA_VISIBLE_DEVICES": ",".join(some)} for some in own] or [threads] * workers


def work(waiting: list[Job], free: list[Share]) -> dict[str, str]:
    """Runs all jobs, one in each share of the machine; returns what those that failed said, by their last stage.

    Stopped, it leaves none running, and begins no more.
    """
    waiting, free, failed = list(waiting), list(free), {}
    running: dict[subprocess.Popen, tuple[Job, Share]] = {}
    bar = Progress("entries", len(waiting), "entries")
    with tempfile.TemporaryDirectory() as logs:
        try:
            while waiting or running:
                while waiting and free:
                    job, share = waiting.pop(0), free.pop()
                    running[begin(job, share, Path(logs, job[-1]))] = job, share
                time.sleep(POLL)
                for process in [process for process in running if process.poll() is not None]:
                    job, share = running.pop(process)
                    if process.returncode:
                        failed[job[-1]] = Path(logs, job[-1]).read_text(encoding="utf-8", errors="replace")
                    free.append(share)
                    bar.advance(1, failed=len(failed))
        finally:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            for process in running:  # a pretraining saves a checkpoint first
                process.wait()
            bar.close()
    return failed


def begin(job: Job, share: Share, log: Path) -> subprocess.Popen:
    """Has DVC make a job, in a session of its own, to be stopped together with the stage that it runs."""
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", *job]
    with log.open("w") as said:
        return subprocess.Popen(
            command, env=os.environ | share, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )


def reproduce(work: Callable[[list[Job]], dict[str, str]], how: str) -> None:
    """`dvc repro`, but `work` makes all that is to be pretrained and evaluated; it returns what failed.

    Raises InputError where something did.
    """
    settings = read()
    data = [f"prepare/dvc.yaml:prepare@{modality}" for modality, bench in settings.benchmark.items() if bench.methods]
    subprocess.run([*DVC, "repro", "plan", *data], check=True)
    status = subprocess.run([*DVC, "status", "--json"], check=True, stdout=subprocess.PIPE, text=True)
    waiting = jobs(settings, set(json.loads(status.stdout)))
    print(f"{len(waiting)} entries to make, {how}", flush=True)
    failed = work(waiting) if waiting else {}
    for stage, said in failed.items():
        print(f"\n{stage} could not be made:\n" + "\n".join(said.splitlines()[-SHOWN:]), file=sys.stderr)
    if failed:
        raise InputError(f"{len(failed)} of {len(waiting)} entries failed; mend what they say, and start again")
    subprocess.run([*DVC, "repro"], check=True)


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, help="entries at a time; by default each seed has a GPU or core")
    given = parser.parse_args()
    gpus, seeds = visible_gpus(), len(read().seeds)
    workers = max(1, (len(gpus) or cores()) // seeds) if given.workers is None else given.workers
    if workers < 1:
        raise InputError(f"--workers: expected 1 or more, but it is {workers}")
    free = shares(workers, cores(), gpus)
    reproduce(lambda waiting: work(waiting, free), f"{workers} at a time")


if __name__ == "__main__":
    command(main)
