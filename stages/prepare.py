"""Stage `prepare`: one modality's data set, as a folder of aligned .npy columns and a manifest.

    python -m stages.prepare <modality>

reads what to do from plan.json and writes data/<modality>/.
"""

import argparse
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from . import datasets
from .common import files
from .common.command import command
from .common.settings import InputError
from .datasets import Columns, Dataset
from .plan import lookup

SPLITS = ("train", "validation", "test")
LISTED = 20  # of the skipped files, in the manifest
SHAPES = {"size": ("image", -1), "length": ("token", -1)}  # {fact: (the column that shows it, its axis)}


def prepare(data: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Loads the data set `data`, checks it, and writes it as `folder`, whole or not at all. Returns the manifest.

    Raises InputError where the data set cannot be loaded, or is not what stages can rely on (see `check`).
    """
    dataset = datasets.load(data, **settings)
    check(data, dataset)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, columns in parts(dataset).items():
        (partial / part).mkdir(parents=True)
        for name, column in columns.items():
            np.save(partial / part / f"{name}.npy", column)
    manifest = describe(data, settings, dataset)
    for name, text in dataset.files.items():
        (partial / name).write_text(text, encoding="utf-8", newline="\n")
    files.write_json(partial / "manifest.json", manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return manifest


def check(name: str, dataset: Dataset) -> None:
    """Raises InputError unless all that later stages take for granted holds."""
    if set(dataset.splits) != set(SPLITS):
        raise InputError(f"data set {name}: its splits must be {', '.join(SPLITS)}, not {', '.join(dataset.splits)}")
    for split, columns in dataset.splits.items():
        check_columns(f"data set {name}, {split}", columns, dataset)
    if dataset.classes:
        present = set(dataset.splits["train"]["label"].tolist())
        absent = [title for number, title in enumerate(dataset.classes) if number not in present]
        if absent:
            raise InputError(
                f"data set {name}: train has no row of class {', '.join(absent)}; add some, or drop the class"
            )
    if dataset.prompts is not None:
        check_prompts(f"data set {name}, prompts", dataset.prompts, len(dataset.classes))


def check_prompts(where: str, prompts: Columns, classes: int) -> None:
    """The names of the classes: a token and a label column, and at least one name for each class."""
    if prompts.keys() != {"token", "label"} or len(prompts["token"]) != len(prompts["label"]):
        raise InputError(f"{where}: they must be columns `token` and `label` of equally many rows")
    if prompts["token"].dtype != np.int32 or prompts["token"].ndim != 2:
        token = prompts["token"]
        raise InputError(f"{where}: column token must be (P, L) int32, not {token.shape} {token.dtype}")
    if set(prompts["label"].tolist()) != set(range(classes)):
        raise InputError(f"{where}: every one of the {classes} classes needs a name, and no other has one")


def check_columns(where: str, columns: Columns, dataset: Dataset) -> None:
    """The columns of one split."""
    if columns.keys() != dataset.splits["train"].keys():
        raise InputError(
            f"{where}: its columns are {', '.join(columns)}, unlike those of train; every split needs the same"
        )
    rows = {column: len(array) for column, array in columns.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise InputError(f"{where}: its columns must have equally many rows, and at least one, but they have {rows}")
    image = columns.get("image")
    if image is not None and (image.dtype != np.uint8 or image.ndim != 4 or image.shape[1] != 3):
        raise InputError(f"{where}: images must be (N, 3, H, W) uint8, not {image.shape} {image.dtype}")
    video, sound = columns.get("video"), columns.get("sound")
    if video is not None and (video.dtype != np.uint8 or video.ndim != 5 or video.shape[2] != 3):
        raise InputError(f"{where}: films must be (N, F, 3, H, W) uint8, not {video.shape} {video.dtype}")
    if sound is not None and (sound.dtype != np.uint8 or sound.ndim != 3):
        raise InputError(f"{where}: spectrograms must be (N, T, M) uint8, not {sound.shape} {sound.dtype}")
    if ("label" in columns) != bool(dataset.classes):
        raise InputError(f"{where}: a column `label` and a list of classes go together, but only one of them is there")
    for name in {"token", "next"} & columns.keys():
        if columns[name].dtype != np.int32 or columns[name].ndim != 2:
            raise InputError(
                f"{where}: column {name} must be (N, L) int32, not {columns[name].shape} {columns[name].dtype}"
            )
    label = columns.get("label")
    if label is not None and (label.dtype != np.int64 or label.min() < -1 or label.max() >= len(dataset.classes)):
        raise InputError(f"{where}: labels must be int64 from -1 (none) to {len(dataset.classes) - 1}")


def describe(data: str, settings: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """The manifest: all that a stage, a report or a reader may ask of the data without opening a column."""
    manifest = {
        "data": data,
        "settings": settings,
        "classes": dataset.classes,
        "facts": facts(dataset),
        "sources": dataset.sources,
        "splits": {split: describe_split(dataset.splits[split], len(dataset.classes)) for split in SPLITS},
        "skipped": dataset.skipped[:LISTED],
        "skipped_count": len(dataset.skipped),
        "hash": content_hash(parts(dataset)),
    }
    if dataset.show is not None:
        manifest["show"] = dataset.show
    return manifest


def parts(dataset: Dataset) -> dict[str, Columns]:
    """All that has columns: the splits, and the classes' prompts where there are some."""
    return dataset.splits | ({} if dataset.prompts is None else {"prompts": dataset.prompts})


def facts(dataset: Dataset) -> dict[str, int]:
    """What a network must know of the data to be built: what the columns' shapes tell, and what the data set adds."""
    shapes = {name: column.shape for name, column in dataset.splits["train"].items()}
    told = {fact: shapes[column][axis] for fact, (column, axis) in SHAPES.items() if column in shapes}
    return told | dataset.facts


def describe_split(columns: Columns, classes: int) -> dict[str, Any]:
    """Rows, columns, and rows per class where there are classes."""
    described = {
        "rows": len(next(iter(columns.values()))),
        "columns": {
            name: {"dtype": str(column.dtype), "shape": list(column.shape)} for name, column in columns.items()
        },
    }
    if classes:
        labels = columns["label"]
        described["per_class"] = np.bincount(labels[labels >= 0], minlength=classes).tolist()
    return described


def content_hash(parts: dict[str, Columns]) -> str:
    """SHA-256 over every column: its part, name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for part, columns in sorted(parts.items()):
        for name, column in sorted(columns.items()):
            digest.update(f"{part}/{name} {column.dtype.str} {column.shape}\n".encode())
            digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepares the data set of one modality as plan.json says.")
    parser.add_argument("modality")
    modality = parser.parse_args().modality
    block = lookup("prepare", modality)
    manifest = prepare(block["data"], block["settings"], Path("data", modality))
    rows = ", ".join(f"{split} {described['rows']:,}" for split, described in manifest["splits"].items())
    skipped = f"{manifest['skipped_count']} files skipped"
    print(f"{modality}: {block['data']}, {len(manifest['classes'])} classes; {rows}; {skipped}")


if __name__ == "__main__":
    command(main)
