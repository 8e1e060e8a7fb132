"""Pretrains one entry of the table with every seed.   python -m stages.pretrain image simclr

data/<modality>/train
    -> models/<modality>/<entry>/<seed>/{encoder.safetensors, status.json}
    -> metrics/<modality>/<entry>/pretrain/<seed>.json (what it cost, and how it went)
"""

import argparse
import functools
import shutil
import time
from pathlib import Path
from typing import Any

from . import plan
from .common.command import command
from .common.files import write_json
from .common.settings import Entry, read
from .training import devices, seeds
from .training.children import Teller
from .training.columns import manifest
from .training.loop import train
from .training.record import record, write

PATIENCE = 60.0  # seconds, after which a run's curve is shown in MLflow while it goes on


def pretrain(entry: Entry, planned: dict[str, Any], seed: int, keep: Path, results: Path | None, tell: Teller) -> None:
    """One seed, in a process of its own; see `seeds.make`."""
    folder, began = Path("data", entry.modality), time.time()
    trained = train(entry, folder, seed, log=functools.partial(log, tell), keep=keep)
    if results is None:  # of several processes, the first alone writes
        return
    device = devices.choose(entry.training.device)
    precision = devices.choose_precision(entry.training.precision, device)
    found = record(trained, entry, folder, devices.provenance(planned, manifest(folder), device, precision))
    found |= {"key": keep.name, "clock": [round(began), round(time.time())]}
    write(trained, results)
    write_json(results / "pretrain.json", found)
    ended = trained.status if trained.status == "ok" else f"{trained.status} at step {trained.step}: {trained.cause}"
    print(f"{entry.name} {seed}: {ended}, {trained.seconds:.0f} s of {device.type}", flush=True)


def log(tell: Teller, *, share: float, **point: float) -> None:
    tell.share(share)
    tell.point(**point)


class Watched:
    """The curves of a stage that lasts, shown in MLflow as they grow."""

    def __init__(self, modality: str, entry: str, numbers: list[int]):
        self.of, self.began, self.live = (modality, entry, numbers), time.monotonic(), None
        self.waiting: list[tuple[int, dict[str, float]]] = []

    def heard(self, seed: int, point: dict[str, float]) -> None:
        self.waiting.append((seed, point))
        if time.monotonic() - self.began > PATIENCE:
            if self.live is None:
                from .tracking.runs import Live  # here, because most stages end before they need it

                self.live = Live(*self.of)
            for each in self.waiting:
                self.live.log(*each)
            self.waiting.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    given = parser.parse_args()
    planned, settings = plan.lookup("pretrain", given.modality, given.entry), read()
    entry = Entry(modality=given.modality, name=given.entry, **{k: v for k, v in planned.items() if k != "code"})
    data = manifest(Path("data", given.modality))
    watched = Watched(given.modality, given.entry, settings.seeds)
    made = seeds.make(
        "pretrain",
        given.modality,
        given.entry,
        {seed: devices.key_of([given.modality, given.entry, seed, planned, data["hash"]]) for seed in settings.seeds},
        functools.partial(pretrain, entry, planned),
        proof="pretrain.json",
        device=devices.choose(entry.training.device),
        at_once=settings.at_once,
        processes=entry.training.processes,
        heard=watched.heard,
    )
    models, metrics = (Path(kind, given.modality, given.entry) for kind in ("models", "metrics"))
    for folder in (models, metrics / "pretrain"):
        shutil.rmtree(folder, ignore_errors=True)
    for seed, results in made.items():
        seeds.place(results, "pretrain.json", metrics / "pretrain" / f"{seed}.json")
        for name in ("encoder.safetensors", "status.json"):
            if (results / name).exists():  # a run that diverged leaves no encoder
                seeds.place(results, name, models / str(seed) / name)
    if watched.live:
        from .tracking.runs import write_entry

        write_entry(given.modality, given.entry)


if __name__ == "__main__":
    command(main)
