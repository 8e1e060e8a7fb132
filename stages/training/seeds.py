"""A stage over all seeds of an entry: what has been made is kept, what is missing is made, side by side.

A finished run lies in .scratch/<stage>/<modality>/<entry>/<seed>/<key>/done, under a key that stands for all that it
depends on. So a stage that is asked again, for a fourth seed or after a kill, makes what is missing and nothing else.
.scratch may be deleted at any time, at no loss but time.
"""

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..common.files import replacing
from ..common.settings import InputError
from . import checkpoint, children, distributed
from .children import Heard, Teller

DONE, PARTIAL = "done", "partial"

# work(seed, keep, results, teller): `keep` is the run's own folder, and `results` the one to write to, which is None in
# all processes of a run but the first.
Work = Callable[[int, Path, Path | None, Teller], None]


def make(
    stage: str,
    modality: str,
    entry: str,
    keys: Mapping[int, str],
    work: Work,
    *,
    proof: str,
    device: torch.device,
    at_once: int | str,
    processes: int = 1,
    heard: Heard = lambda seed, point: None,
) -> dict[int, Path]:
    """The folder of results of each seed, made by `work` where it is missing. `keys` are {seed: its key}.

    `proof` is the file of a run's results that it writes last. Raises InputError where a seed failed, after the others
    have ended.
    """
    folders = {seed: checkpoint.folder_of(stage, modality, entry, seed, key) for seed, key in keys.items()}
    missing = lacking(folders, proof)
    if kept := len(folders) - len(missing):
        print(f"{entry}: {kept} of {len(folders)} seeds are kept from before", flush=True)
    if missing:
        failed = children.side_by_side(
            functools.partial(run, work, folders, proof),
            missing,
            label=f"{stage} {modality} {entry}",
            device=device,
            count=children.at_once(at_once, len(missing), device, processes),
            processes=processes,
            heard=heard,
        )
        if failed:
            raise InputError(complaint(entry, failed))
        if gone := lacking(folders, proof):
            told = f"what it made is gone, for {checkpoint.SCRATCH} was deleted meanwhile; run `dvc repro` again"
            raise InputError(complaint(entry, dict.fromkeys(gone, told)))
    for folder in folders.values():
        forget_others(folder)
    return {seed: folder / DONE for seed, folder in folders.items()}


def lacking(folders: Mapping[int, Path], proof: str) -> list[int]:
    """The seeds that have no results, or not all of them."""
    return [seed for seed, folder in folders.items() if not (folder / DONE / proof).exists()]


def run(work: Work, folders: Mapping[int, Path], proof: str, seed: int, teller: Teller) -> None:
    """One seed, in a child: its results are there whole or not at all."""
    folder = folders[seed]
    if distributed.rank():
        work(seed, folder, None, teller)
        return
    with checkpoint.locked(folder):
        if (folder / DONE / proof).exists():  # another process was quicker
            return
        for remains in (DONE, PARTIAL):
            shutil.rmtree(folder / remains, ignore_errors=True)
        (folder / PARTIAL).mkdir()
        work(seed, folder, folder / PARTIAL, teller)
        for path in (folder / PARTIAL).iterdir():  # on the disk, before the folder says so
            with path.open("rb") as file:
                os.fsync(file.fileno())
        (folder / PARTIAL).rename(folder / DONE)
        (folder / checkpoint.FILE).unlink(missing_ok=True)


def complaint(entry: str, failed: Mapping[int, str]) -> str:
    """What failed, a line for each different reason, with the seeds that have it."""
    seeds: dict[str, list[str]] = {}
    for seed, said in sorted(failed.items()):
        seeds.setdefault(said.strip(), []).append(str(seed))
    return "\n".join(f"{entry}, seed {', '.join(numbers)}: {said}" for said, numbers in seeds.items())


def forget_others(folder: Path) -> None:
    """Removes finished runs of the same seed under other keys, which DVC's cache has."""
    for other in folder.parent.iterdir():
        if other != folder and (other / DONE).exists():
            shutil.rmtree(other, ignore_errors=True)


def place(results: Path, name: str, target: Path) -> None:
    """Puts a file of a run's results where the stage's outputs lie: as a hard link, or as a copy where none can be."""
    with replacing(target) as partial:
        try:
            os.link(results / name, partial)
        except OSError:
            shutil.copyfile(results / name, partial)
