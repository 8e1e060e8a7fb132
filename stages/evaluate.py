"""Freezes the pretrained encoders of an entry and measures their features.   python -m stages.evaluate image simclr

data/<modality> and models/<modality>/<entry>/<seed>/{encoder.safetensors, status.json}
    -> metrics/<modality>/<entry>/evaluate/<seed>.json (all that was measured)
    -> metrics/<modality>/<entry>.json (the means, for `dvc metrics show`)
"""

import argparse
import functools
import hashlib
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from . import plan
from .common.command import command
from .common.files import read_json, write_json
from .common.settings import Evaluation, read
from .measures.protocol import evaluate
from .reporting.statistics import estimate
from .training import devices, seeds
from .training.children import Teller
from .training.columns import manifest

SHOWN = ("linear", "knn")  # in the summary; the effective rank where the data have no labels


def measure(
    modality: str, entry: str, planned: dict[str, Any], seed: int, keep: Path, results: Path, tell: Teller
) -> None:
    """One seed, in a process of its own; see `seeds.make`."""
    folder, protocol, began = Path("data", modality), Evaluation(**planned["protocol"]), time.time()
    device = devices.choose(protocol.device)
    clock = devices.clock(device)
    working = clock()
    found = evaluate(
        models_of(modality, entry, seed),
        folder,
        modality,
        planned["encoder"],
        protocol,
        mapped=seed == planned["mapped"],
        advance=tell.share,
    )
    found |= {"key": keep.name, "seconds": round(clock() - working, 2)}
    found["provenance"] = devices.provenance(planned, manifest(folder), device, torch.float32)
    found["clock"] = [round(began), round(time.time())]
    write_json(results / "evaluate.json", found)
    shown = ", ".join(f"{name} {found[name]:.4g}" for name in (*SHOWN, "effective_rank") if found[name] is not None)
    print(f"{entry} {seed}: {found['status']}{shown and ': '}{shown}; {found['seconds']:.0f} s", flush=True)


def models_of(modality: str, entry: str, seed: int) -> Path:
    return Path("models", modality, entry, str(seed))


def weights_of(models: Path) -> str:
    """Stands for what pretraining left, which no setting of evaluation tells: of other weights it is another run."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(models.glob("*")))).hexdigest()


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The few numbers of an entry that people want first: means over its runs, with half of the 95 % interval."""
    statuses = Counter(run["status"] for run in runs)
    found: dict[str, Any] = {"status": ", ".join(f"{count} {status}" for status, count in statuses.items())}
    names = SHOWN if any(run["linear"] is not None for run in runs) else ("effective_rank",)
    for name in names:
        if values := [run[name] for run in runs if run[name] is not None]:
            mean = estimate(values)
            found[name] = round(mean.mean, 1)
            if mean.half_width is not None:
                found[f"{name}_ci95"] = round(mean.half_width, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    given = parser.parse_args()
    planned, settings = plan.lookup("evaluate", given.modality, given.entry), read()
    data = manifest(Path("data", given.modality))
    keys = {
        seed: devices.key_of([planned, data["hash"], seed, weights_of(models_of(given.modality, given.entry, seed))])
        for seed in settings.seeds
    }
    made = seeds.make(
        "evaluate",
        given.modality,
        given.entry,
        keys,
        functools.partial(measure, given.modality, given.entry, planned),
        proof="evaluate.json",
        device=devices.choose(planned["protocol"]["device"]),
        at_once=settings.at_once,
    )
    metrics = Path("metrics", given.modality, given.entry)
    shutil.rmtree(metrics / "evaluate", ignore_errors=True)
    for seed, results in made.items():
        seeds.place(results, "evaluate.json", metrics / "evaluate" / f"{seed}.json")
    runs = [read_json(results / "evaluate.json") for results in made.values()]
    write_json(metrics.with_name(f"{metrics.name}.json"), summary(runs))

    from .tracking.runs import write_entry  # here, so that MLflow is imported once there is something to write

    write_entry(given.modality, given.entry)


if __name__ == "__main__":
    command(main)
