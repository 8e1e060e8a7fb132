"""What a sample of pretraining costs as work grows."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import methodcaller
from pathlib import Path

import numpy as np
import torch

from ..common.files import write_json
from ..common.settings import Entry, Settings
from ..training import devices
from .timing import TURNS, apart, race
from .trainer import Trainer


def growth(settings: Settings, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Seconds per sample of SimCLR as one thing grows and the rest stays."""
    simclr, pictures = settings.entry("image", "simclr"), Path("data/image")

    def cost(entry: Entry = simclr, folder: Path = pictures, seeds: int = 1) -> float:
        make = partial(Trainer, entry, folder, devices.choose(entry.training.device))
        return side_by_side(make, seeds, seconds / TURNS)

    def in_batches_of(size: int) -> float:
        return cost(simclr.model_copy(update={"training": simclr.training.model_copy(update={"batch_size": size})}))

    def as_wide_as(width: int) -> float:
        return cost(simclr.model_copy(update={"encoder": {**simclr.encoder, "width": width}}))

    def on_noise(rows: int, side: int) -> float:
        with noise(rows, side) as folder:
            return cost(folder=folder)

    return {
        "batch size": [{"at": n, "seconds": in_batches_of(n)} for n in (32, 64, 128, 256, 512)],
        "width": [{"at": n, "seconds": as_wide_as(n)} for n in (16, 32, 64, 128)],
        "resolution": [{"at": n, "seconds": on_noise(512, n)} for n in (16, 32, 64, 128)],
        "rows of data": [{"at": n, "seconds": on_noise(n, 16)} for n in (1000, 10_000, 100_000)],
        "seeds at a time": [{"at": n, "seconds": cost(seeds=n)} for n in (1, 2, 3)],
    }


def side_by_side(make: Callable[[], Trainer], seeds: int, seconds: float) -> float:
    """Seconds per sample of so many runs at once, each in a process of its own with its share of the threads."""
    with ExitStack() as stack:
        threads = max(1, torch.get_num_threads() // seeds)
        runs = [stack.enter_context(apart(make, threads)) for _ in range(seeds)]

        def turn() -> int:
            return sum(working.result() for working in [run(methodcaller("turn", seconds)) for run in runs])

        return 1 / race({"": turn})[""]["median"]


@contextmanager
def noise(rows: int, side: int) -> Iterator[Path]:
    """Prepared data of random pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train").mkdir()
        drawn = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), dtype=np.uint8)
        np.save(folder / "train/image.npy", drawn)
        splits = {"train": {"rows": rows}}
        facts = {"data": "noise", "classes": [], "facts": {"size": side}, "hash": "0" * 64, "splits": splits}
        write_json(folder / "manifest.json", facts)
        yield folder
