"""Many short runs in a row must not grow: in memory, open files, threads, files left behind, or seconds.

    python -m tests.soak --runs 500

Not collected by pytest, for it takes some minutes. One process pretrains and evaluates a small network again and again,
each time with another seed, as `python -m stages.pretrain` and `stages.evaluate` do; MLflow's runs are written by one
recorder. Prints a line for every tenth of the runs; exit code 1 and a line for whatever has grown.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it
from test_faults import prepare
from test_pipeline import Project

WARM = 0.2  # the share of runs after which everything is loaded
ALLOWED = {"seconds": 1.1, "megabytes": 1.05, "recorder": 1.05}  # how often as much at the end; of the rest, no more


@dataclass
class Sample:
    """What a run took, and what there was after it."""

    seconds: float
    megabytes: float  # of this process
    recorder: float  # megabytes of the process that writes MLflow's runs
    handles: int
    threads: int
    left: int  # files in .scratch, and half-written ones


def run(project: Project, seed: int) -> Sample:
    from stages import evaluate, pretrain

    began = time.monotonic()
    for main in (pretrain.main, evaluate.main):
        sys.argv = [main.__module__, "image", "byol", "--seed", str(seed)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main()
    project.settle()
    took, own = time.monotonic() - began, psutil.Process()
    files = [path for path in Path().rglob("*") if path.is_file()]
    left = [path for path in files if ".scratch" in path.parts or path.suffix == ".partial"]
    recorder = sum(child.memory_info().rss for child in own.children()) / 2**20
    return Sample(took, own.memory_info().rss / 2**20, recorder, own.num_fds(), own.num_threads(), len(left))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        project = prepare(Path(folder, "copy"))
        os.chdir(project.folder)
        sys.path.insert(0, str(project.folder))
        samples = []
        for seed in range(runs):
            samples.append(run(project, seed))
            if (seed + 1) % max(1, runs // 10) == 0:
                shown = ", ".join(f"{name} {value:.4g}" for name, value in asdict(samples[-1]).items())
                print(f"{seed + 1} runs: {shown}", flush=True)
    grown = growth(samples)
    print("\n".join(grown) or f"{runs} runs: nothing has grown")
    return 1 if grown else 0


def growth(samples: list[Sample]) -> list[str]:
    """What is more at the end than when everything was loaded: the medians of a fifth of the runs each."""
    fifth = max(1, len(samples) // 5)
    warm = int(WARM * len(samples))
    found = []
    for name in asdict(samples[0]):
        early, late = (
            statistics.median(getattr(sample, name) for sample in part)
            for part in (samples[warm : warm + fifth], samples[-fifth:])
        )
        if late > early * ALLOWED.get(name, 1.0):
            found.append(f"{name}: {early:.4g} at first, {late:.4g} at the end")
    return found


if __name__ == "__main__":
    sys.exit(main())
