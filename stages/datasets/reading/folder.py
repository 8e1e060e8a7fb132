"""What data sets of one's own files share: a folder or a .zip, labelled by its sub-folders or not.

    <root>/train/<class>/*  <root>/validation/<class>/* (or val, valid)  <root>/test/<class>/*
    <root>/<class>/*
    <root>/train/*  ...  or  <root>/*       not labelled

A class is the first folder below the split; one class alone is no label. Splits that are missing are taken out of
train. A single folder around everything is looked through. Hidden files and __MACOSX are ignored.

Files of another kind, damaged ones, and what could reach beyond `root` (a symbolic link that leaves it or that
leads to a folder, an archive's link or `..` or absolute name) are skipped and listed.
"""

import io
import os
import posixpath
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from ...common.settings import InputError, one_line
from .. import split_rows

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
LARGEST_FILE = 2**28  # bytes that a file of an archive may unpack to
BOMB = 2**20, 250  # bytes from which on it may not unpack to more than so many times its packed size
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without regard to how much was asked for

Skipped = dict[str, str]  # {file: why it is not used}


class Kind(NamedTuple):
    """What a folder should hold, and how messages speak of it."""

    data: str  # the data set's name
    one: str  # "picture"
    many: str
    extensions: tuple[str, ...]


class Place(NamedTuple):
    """A file, and where it belongs."""

    file: str  # its name below the root
    split: str
    label: str | None


def find_places(source: Path, kind: Kind, skipped: Skipped) -> list[Place]:
    """Every file of that kind in the folder or archive, in sorted order."""
    files = list_folder(source, skipped) if source.is_dir() else list_archive(source, skipped)
    return arrange(keep_kind(files, kind, skipped), skipped)


def deal(
    root: str,
    kind: Kind,
    places: Sequence[Place],
    usable: np.ndarray,
    shares: dict[str, float],
    seed: int,
    groups: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], list[str], np.ndarray]:
    """Which of the `usable` (N,) places are in each split, ascending; the classes; and the labels (N,), all 0 without.

    The splits that `shares` names and that are missing are taken out of train, stratified by class; there, what is of
    one of the `groups` (N,) stays together. Raises InputError where there is no train.
    """
    classes = sorted({place.label for place in places} - {None})
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers.get(place.label, 0) for place in places], np.int64)
    homes = np.array([place.split for place in places])
    splits = {home: np.flatnonzero(usable & (homes == home)) for home in np.unique(homes[usable]).tolist()}
    if "train" not in splits:
        raise InputError(f"{root!r} has {kind.many} for {' and '.join(splits)}, but none in a folder train; add them")
    missing = {split: share for split, share in shares.items() if split not in splits}
    if missing:
        train = splits["train"]
        dealt = split_rows(labels[train], missing, seed, None if groups is None else groups[train])
        splits |= {split: train[rows] for split, rows in dealt.items()}
    return splits, classes, labels


def locate(root: str, kind: Kind) -> Path:
    """The folder or archive, links resolved. Raises InputError where it is neither."""
    mend = f"set datasets.{kind.data}.root to a folder or a .zip of {kind.many}"
    if not root:
        raise InputError(f"`root` is empty; {mend}")
    try:
        source = Path(root).expanduser().resolve()
        there = source.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have
        raise InputError(f"{root!r} is no usable name ({one_line(error)}); {mend}") from None
    if not there:
        raise InputError(f"{root!r} does not exist; {mend}")
    if not source.is_dir():
        try:
            with zipfile.ZipFile(source) as archive:
                packed = sum(member.compress_size for member in archive.infolist())
        except Exception:  # a damaged archive raises nearly everything
            raise InputError(f"{root!r} is neither a folder nor an intact .zip; unpack or repair it") from None
        if packed > source.stat().st_size:
            raise InputError(f"{root!r} is an archive whose files overlap, as in a zip bomb; pack it anew")
    return source


def complain(root: str, kind: Kind, usable: int, skipped: Skipped, tolerate: float) -> list[str]:
    """What was skipped, with the reasons. Raises InputError where that is too much, or all there is."""
    reasons = [one_line(f"{file} ({reason})") for file, reason in sorted(skipped.items())]
    examples = "".join(f"; skipped {reason}" for reason in reasons[:3])
    if usable == 0:
        raise InputError(f"{root!r} holds no {kind.many} that can be read ({' '.join(kind.extensions)}){examples}")
    if len(reasons) > tolerate * (usable + len(reasons)):
        count = f"{len(reasons)} of {usable + len(reasons)} files in {root!r} cannot be used"
        raise InputError(f"{count}, more than `tolerate` ({tolerate:g}) allows: remove them or raise it{examples}")
    return reasons


def list_folder(root: Path, skipped: Skipped) -> list[str]:
    """All files below a folder. Links that leave it, and links to folders, are not followed."""

    def name(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    def unreadable(error: OSError) -> None:
        skipped[name(error.filename)] = "unreadable"

    files = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        for path in [Path(folder, entry) for entry in names + subfolders]:
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                skipped[name(path)] = "a link that leaves the folder"
            elif path.is_symlink() and path.is_dir():
                skipped[name(path)] = "a link to a folder"
            elif path.is_file():
                files.append(name(path))
            elif not path.is_dir():
                skipped[name(path)] = "not a file"
    return files


def list_archive(archive: Path, skipped: Skipped) -> list[str]:
    """All files of a .zip whose names stay inside it."""
    files = []
    with zipfile.ZipFile(archive) as unpacked:
        for member in unpacked.infolist():
            path = PurePosixPath(member.filename)
            if member.is_dir():
                continue
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
                skipped[member.filename] = "an unsafe name"
            elif stat.S_ISLNK(member.external_attr >> 16):
                skipped[member.filename] = "a link"
            elif member.compress_type not in PACKED:
                skipped[member.filename] = "packed in an unusual way"
            elif member.file_size > LARGEST_FILE or member.file_size > max(BOMB[0], BOMB[1] * member.compress_size):
                skipped[member.filename] = "too large"
            else:
                files.append(member.filename)
    return files


def keep_kind(files: list[str], kind: Kind, skipped: Skipped) -> list[str]:
    """Those named like that kind, in sorted order; hidden files are no part of the data, and not even listed."""
    kept = []
    for file in sorted(files):
        path = PurePosixPath(file)
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            continue
        if path.suffix.lower() in kind.extensions:
            kept.append(file)
        else:
            skipped[file] = f"not a {kind.one}"
    return kept


def arrange(files: list[str], skipped: Skipped) -> list[Place]:
    """The split and the class of every file, from the folders that it lies in."""
    if not files:
        return []
    parents = {file: PurePosixPath(file).parent for file in files}
    around = PurePosixPath(posixpath.commonpath(parents.values())).parts
    depth = len(list(takewhile(lambda folder: folder.lower() not in SPLITS, around)))
    folders = {file: parent.parts[depth:] for file, parent in parents.items()}

    places = []
    in_splits = any(parts and parts[0].lower() in SPLITS for parts in folders.values())
    for file, parts in folders.items():
        split = "train"
        if in_splits:
            split, parts = SPLITS.get(parts[0].lower()) if parts else None, parts[1:]
        if split:
            places.append(Place(file, split, one_line(parts[0]) or "?" if parts else None))
        else:
            skipped[file] = "in no folder of a split"

    if len({place.label for place in places} - {None}) < 2:
        return [place._replace(label=None) for place in places]
    skipped |= {place.file: "in no folder of a class" for place in places if place.label is None}
    return [place for place in places if place.label is not None]


@contextmanager
def reader(source: Path) -> Iterator[Callable[[str], BinaryIO]]:
    """What opens one file of the folder or archive, for the use of one thread."""
    if source.is_dir():
        yield lambda file: (source / file).open("rb")
    else:
        with zipfile.ZipFile(source) as archive:
            yield lambda file: io.BytesIO(archive.read(file))
