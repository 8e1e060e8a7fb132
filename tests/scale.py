"""What gives way first as data grow: columns of ever more rows, read as training reads them.

    python -m tests.scale

Not collected by pytest, for it fills up to 9 GB of memory. The files are sparse: they claim to be as large as the data
would be, and take up no disk. So it measures what the code costs, and not the disk, which comes on top: a batch is so
many reads at random places. Prints a line for each size.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from stages.training.columns import Columns

BATCH = 256
SIZES = {  # rows, side of a picture in pixels
    "the default, emoji": (8_466, 32),
    "CIFAR-10": (50_000, 32),
    "ImageNet": (1_281_167, 224),
    "a hundred million, small": (100_000_000, 32),
    "a billion, tiny": (1_000_000_000, 8),
}


def measure(rows: int, side: int) -> dict[str, float]:
    """Gigabytes on disk; seconds and gigabytes for the order of an epoch; milliseconds for a batch after that."""
    with tempfile.TemporaryDirectory() as folder:
        shape = (rows, 3, side, side)
        np.lib.format.open_memmap(Path(folder, "image.npy"), mode="w+", dtype=np.uint8, shape=shape)
        size = Path(folder, "image.npy").stat().st_size
        columns = Columns(Path(folder), ["image"], torch.device("cpu"))
        before, began = psutil.Process().memory_info().rss, time.perf_counter()
        columns.batch(0, BATCH, seed=0)
        first = time.perf_counter() - began
        grown = psutil.Process().memory_info().rss - before
        began = time.perf_counter()
        for step in range(1, 11):
            columns.batch(step, BATCH, seed=0)
        later = (time.perf_counter() - began) / 10
    return {"disk_gb": size / 1e9, "order_s": first - later, "order_gb": grown / 1e9, "batch_ms": 1e3 * later}


def main() -> None:
    for name, (rows, side) in SIZES.items():
        found = ", ".join(f"{what} {value:.3g}" for what, value in measure(rows, side).items())
        print(f"{name}: {rows:,} pictures of {side} x {side}: {found}", flush=True)


if __name__ == "__main__":
    main()
