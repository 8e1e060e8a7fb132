"""Your own pictures: a folder or a .zip, labelled by its sub-folders or not.

    <root>/train/<class>/*  <root>/validation/<class>/* (or val, valid)  <root>/test/<class>/*
    <root>/<class>/*
    <root>/train/*  ...  or  <root>/*       not labelled

A class is the first folder below the split; one class alone is no label. Splits that are missing are taken out of
train. A single folder around everything is looked through. Hidden files and __MACOSX are ignored.

Files that are no pictures, damaged ones, and what could reach beyond `root` (a symbolic link that leaves it or that
leads to a folder, an archive's link or `..` or absolute name) are skipped and listed.
"""

import io
import os
import posixpath
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from ssl_methods import Count, Fraction

from ..settings import InputError
from . import Dataset, Seed, carve, one_line, picture, take

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # what a file may turn out to be, whatever its name
LARGEST_FILE = 2**28  # bytes that a file of an archive may unpack to

Skipped = dict[str, str]  # {file: why it is not used}


class Place(NamedTuple):
    """A picture, and where it belongs."""

    file: str  # its name below the root
    split: str
    label: str | None


def load(
    *,
    root: str = "",
    size: Count = 32,
    validation: Fraction = 0.1,
    test: Fraction = 0.1,
    seed: Seed = 0,
    tolerate: Fraction = 0.05,
) -> Dataset:
    """The pictures under `root`: upright, shorter side resized to `size`, centre cropped, transparency on white.

    `validation` and `test` are shares of train, for splits that are missing; `tolerate` is the share of all files that
    may be skipped. Raises InputError where there are no pictures, too few to split, or too many files to skip.
    """
    source = locate(root)
    skipped: Skipped = {}
    files = list_folder(source, skipped) if source.is_dir() else list_archive(source, skipped)
    places = arrange(keep_pictures(files, skipped), skipped)
    images = decode(source, [place.file for place in places], size, skipped)
    usable = np.array([place.file not in skipped for place in places], bool)
    reasons = [one_line(f"{file} ({reason})") for file, reason in sorted(skipped.items())]
    complain(root, usable.sum(), reasons, tolerate)

    classes = sorted({place.label for place in places} - {None})
    columns = {"image": images}
    if classes:
        numbers = {label: number for number, label in enumerate(classes)}
        columns["label"] = np.array([numbers[place.label] for place in places], np.int64)
    homes = np.array([place.split for place in places])
    splits = {
        home: take(columns, np.flatnonzero(usable & (homes == home))) for home in np.unique(homes[usable]).tolist()
    }
    missing = {name: share for name, share in (("validation", validation), ("test", test)) if name not in splits}
    if "train" not in splits:
        raise InputError(f"{root!r} has pictures for {' and '.join(splits)}, but none in a folder train; add them")
    if missing:
        splits |= carve(splits["train"], missing, seed)
    return Dataset(splits, classes, {"Pillow": version("pillow")}, reasons)


def locate(root: str) -> Path:
    """The folder or archive, links resolved. Raises InputError where it is neither."""
    if not root:
        raise InputError("`root` is empty; set datasets.image_folder.root to a folder or a .zip of pictures")
    source = Path(root).expanduser().resolve()
    if not source.exists():
        raise InputError(f"{root!r} does not exist; set datasets.image_folder.root to a folder or a .zip of pictures")
    if not source.is_dir() and not zipfile.is_zipfile(source):
        raise InputError(f"{root!r} is neither a folder nor an intact .zip; unpack or repair it")
    return source


def complain(root: str, usable: int, reasons: list[str], tolerate: float) -> None:
    """Raises InputError where too many files had to be skipped, or all of them."""
    examples = "".join(f"; skipped {reason}" for reason in reasons[:3])
    if usable == 0:
        raise InputError(f"{root!r} holds no pictures that can be read ({' '.join(EXTENSIONS)}){examples}")
    if len(reasons) > tolerate * (usable + len(reasons)):
        count = f"{len(reasons)} of {usable + len(reasons)} files in {root!r} cannot be used"
        raise InputError(f"{count}, more than `tolerate` ({tolerate:g}) allows: remove them or raise it{examples}")


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
            elif member.file_size > LARGEST_FILE:
                skipped[member.filename] = "too large"
            else:
                files.append(member.filename)
    return files


def keep_pictures(files: list[str], skipped: Skipped) -> list[str]:
    """Those named like pictures, in sorted order; hidden files are no part of the data, and not even listed."""
    pictures = []
    for file in sorted(files):
        path = PurePosixPath(file)
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            continue
        if path.suffix.lower() in EXTENSIONS:
            pictures.append(file)
        else:
            skipped[file] = "not a picture"
    return pictures


def arrange(files: list[str], skipped: Skipped) -> list[Place]:
    """The split and the class of every picture, from the folders that it lies in."""
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
            places.append(Place(file, split, parts[0] if parts else None))
        else:
            skipped[file] = "in no folder of a split"

    if len({place.label for place in places} - {None}) < 2:
        return [place._replace(label=None) for place in places]
    skipped |= {place.file: "in no folder of a class" for place in places if place.label is None}
    return [place for place in places if place.label is not None]


def decode(source: Path, files: list[str], size: int, skipped: Skipped) -> np.ndarray:
    """(N, 3, size, size) uint8, in as many threads as there are processors; a file that fails is added to `skipped`."""
    from PIL import Image, UnidentifiedImageError
    from tqdm import tqdm

    images = np.zeros((len(files), 3, size, size), np.uint8)
    workers = min(os.cpu_count() or 1, 8)  # each reads an archive's table of contents
    seconds_between_lines = 0.1 if sys.stderr.isatty() else 30

    def work(first: int) -> None:
        with reader(source) as read:
            for row in range(first, len(files), workers):
                try:
                    with read(files[row]) as file, Image.open(file, formats=FORMATS) as image:
                        image.draft(None, (2 * size, 2 * size))  # decodes a large JPEG at a fraction of its size
                        images[row] = picture(image, size)
                except UnidentifiedImageError:
                    skipped[files[row]] = "not a picture"
                except Exception as error:  # decoders raise nearly everything on damaged files
                    skipped[files[row]] = getattr(error, "strerror", None) or str(error) or type(error).__name__
                with tqdm.get_lock():
                    bar.update()

    Image.init()  # once, here: the threads would all do it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on untidy metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with (
            tqdm(total=len(files), desc="reading pictures", mininterval=seconds_between_lines) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            list(pool.map(work, range(workers)))
    return images


@contextmanager
def reader(source: Path) -> Iterator[Callable[[str], BinaryIO]]:
    """What opens one file of the folder or archive, for the use of one thread."""
    if source.is_dir():
        yield lambda file: (source / file).open("rb")
    else:
        with zipfile.ZipFile(source) as archive:
            yield lambda file: io.BytesIO(archive.read(file))
