"""Many short runs in a row must not grow: in memory, open files, threads, files left behind, or seconds.

    python -m tests.soak --runs 500

Not collected by pytest, for it takes some minutes. One process trains and evaluates a small network again and again,
each time with another seed, as the stages do. Prints a line for every tenth of the runs; exit code 1 and
a line for whatever has grown.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from stages import plan
from stages.common.settings import Entry, Evaluation, read
from stages.measures.protocol import evaluate
from stages.training import checkpoint
from stages.training.loop import train
from stages.training.record import write
from tests.pipeline.test_faults import prepare

WARM = 0.2  # the share of runs after which everything is loaded
ALLOWED = {"seconds": 1.1, "megabytes": 1.05}  # how often as much at the end; of the rest, no more


@dataclass
class Sample:
    """What a run took, and what there was after it."""

    seconds: float
    megabytes: float  # of this process
    handles: int
    threads: int
    left: int  # checkpoints, and half-written files


def run(entry: Entry, planned: dict[str, Any], seed: int) -> Sample:
    began, folder, results = time.monotonic(), Path("data/image"), Path("models/image/byol", str(seed))
    keep = checkpoint.folder_of("pretrain", "image", "byol", seed, "key")
    with checkpoint.locked(keep):
        write(train(entry, folder, seed, keep=keep), results)
        (keep / checkpoint.FILE).unlink()
    evaluate(results, folder, "image", planned["encoder"], Evaluation(**planned["protocol"]))
    took, own = time.monotonic() - began, psutil.Process()
    left = [path for path in Path().rglob("*") if path.suffix in (".partial", ".pt")]
    return Sample(took, own.memory_info().rss / 2**20, own.num_fds(), own.num_threads(), len(left))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(prepare(Path(folder, "copy")).folder)
        planned, samples = plan.lookup("evaluate", "image", "byol"), []
        entry = read().entry("image", "byol")
        for seed in range(runs):
            samples.append(run(entry, planned, seed))
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
