"""A split is a folder of aligned .npy columns; a batch is the same rows of each."""

import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.settings import InputError, one_line

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of this machine
LARGE = min(2**32, MEMORY // 4)  # bytes; a larger column stays on disk, and only its batches are read


def manifest(folder: Path) -> dict[str, Any]:
    """What `prepare` wrote about a data set. Raises InputError where there is none, or none that can be used."""
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        facts_of(found)  # what every reader asks of it
    except FileNotFoundError:
        raise InputError(f"{folder} holds no prepared data; run `dvc repro`, which prepares it first") from None
    except Exception as error:  # whatever a damaged file makes of itself
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} cannot be read ({reason}); delete {folder} and run `dvc repro`") from None
    return found


def facts_of(data: dict[str, Any]) -> dict[str, Any]:
    """What encoders and methods may ask of the data, from its manifest."""
    return {"classes": len(data["classes"]), "rows": data["splits"]["train"]["rows"], **data["facts"]}


class Columns:
    """The named columns of data/<modality>/<split>, on the device as they are stored (pictures in uint8).

    Only the columns that are named are opened, so a method that names no label cannot see one.
    """

    def __init__(self, folder: Path, names: Iterable[str], device: torch.device):
        self.device = device
        self.columns = {name: self._open(folder / f"{name}.npy") for name in names}
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"the columns of {folder} differ in length: {lengths}; delete the folder and run `dvc repro`"
            )
        self.length = next(iter(lengths.values()), 0)

    def _open(self, path: Path) -> Tensor | np.ndarray:
        try:
            column = np.lib.format.open_memmap(path, mode="r")  # np.load leaves what begins like a zip open
            len(column)
            if column.nbytes <= LARGE:
                return torch.from_numpy(np.array(column)).to(self.device)
            # Else the system reads megabytes ahead of every row: a batch took half a second and now a fiftieth of one.
            column._mmap.madvise(mmap.MADV_RANDOM)
            return column
        except FileNotFoundError:
            have = ", ".join(sorted(p.stem for p in path.parent.glob("*.npy"))) or "none"
            raise InputError(f"{path.parent} has no column {path.stem!r} (it has: {have})") from None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a damaged file makes of itself
            reason = one_line(error)
            raise InputError(f"{path} cannot be read ({reason}); delete its folder and run `dvc repro`") from None

    def __len__(self) -> int:
        return self.length

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at `index` (N,), a CPU tensor, of every column, and `index` itself."""
        batch = {"index": index.to(self.device)}
        for name, column in self.columns.items():
            if isinstance(column, Tensor):
                batch[name] = column[batch["index"]]
            else:
                batch[name] = torch.from_numpy(column[index.numpy()]).to(self.device)
        return batch

    def batch(self, step: int, size: int, seed: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The batch of one step: every epoch has a new order, drawn from the seed alone; its ragged end is dropped.

        A step's batch depends on nothing that came before it, so an interrupted run goes on with the same data. Of the
        `parts` into which it can be cut, this is number `part`.
        """
        epoch, place = divmod(step, len(self) // size)
        return self.rows(self._order(epoch, seed)[place * size : (place + 1) * size].chunk(parts)[part])

    def _order(self, epoch: int, seed: int) -> Tensor:
        if getattr(self, "_ordered", None) != (epoch, seed):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            self._ordered, self._permutation = (epoch, seed), torch.randperm(len(self), generator=generator)
        return self._permutation
