"""Your own pictures with captions: a folder or a .zip, labelled by its sub-folders or not (see reading/folder.py).

Captions stand in tables, as in Hugging Face's image folders: .csv with a header, or .jsonl, an object a line, in UTF-8,
anywhere below the root, with the keys `file_name` (relative to the table's own folder) and `text`. A picture may have
several captions: each is a row, and all of them are in one split.

Pictures without a caption, captions without a picture, empty ones, files of another kind and damaged ones are skipped
and listed. A class is called by the name of its folder.
"""

import csv
import io
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ssl_methods import Count, Fraction

from ..common.settings import InputError, one_line
from . import Dataset, Seed, take
from .image_folder import EXTENSIONS, decode
from .reading.captions import add_captions
from .reading.folder import LARGEST_FILE, Kind, Place, Skipped, complain, deal, find_places, locate, reader
from .reading.text import Length

CAPTIONED = Kind("caption_folder", "picture", "pictures with captions", EXTENSIONS)
TABLES = (".csv", ".jsonl")
SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON can say, and no text has


def load(
    *,
    root: str = "",
    size: Count = 32,
    length: Length = 32,
    vocabulary: Count = 4096,
    validation: Fraction = 0.1,
    test: Fraction = 0.1,
    seed: Seed = 0,
    tolerate: Fraction = 0.05,
) -> Dataset:
    """The pictures under `root` as `image_folder` reads them, with columns image, token, picture and, perhaps, label.

    `validation` and `test` are shares of train, for splits that are missing; `tolerate` is the share of all files and
    captions that may be skipped. Raises InputError where there is no table, one that cannot be read, no picture with a
    caption, too few to split, or too much to skip.
    """
    source = locate(root, CAPTIONED)
    skipped: Skipped = {}
    places = find_places(source, CAPTIONED, skipped)
    tables = [file for file in skipped if file.lower().endswith(TABLES)]
    if not tables:
        raise InputError(f"{root!r} has no table of captions (.csv or .jsonl, with `file_name` and `text`); add one")
    for file in tables:
        del skipped[file]
    captions = read_captions(source, tables, places, skipped)
    skipped |= {place.file: "no caption" for place in places if place.file not in captions}
    files = [place.file for place in places if place.file in captions]
    images = dict(zip(files, decode(source, files, size, skipped), strict=True))

    rows = [(n, text) for n, place in enumerate(places) for text in captions.get(place.file, ())]
    rows = [(n, text) for n, text in rows if places[n].file not in skipped]
    reasons = complain(root, CAPTIONED, len(rows), skipped, tolerate)
    pictures = np.array([n for n, _ in rows])
    of_rows, usable = [places[n] for n in pictures], np.ones(len(rows), bool)
    splits, classes, labels = deal(
        root, CAPTIONED, of_rows, usable, {"validation": validation, "test": test}, seed, groups=pictures
    )
    columns = {"image": np.stack([images[place.file] for place in of_rows]), "picture": pictures}
    columns |= {"label": labels} if classes else {}
    dataset = Dataset(
        {split: take(columns, of_split) for split, of_split in splits.items()},
        classes,
        {"Pillow": version("pillow")},
        reasons,
    )
    prompts = [(name, " ".join(name.replace("_", " ").replace("-", " ").split())) for name in classes]
    return add_captions(dataset, [text for _, text in rows], splits, prompts, length=length, vocabulary=vocabulary)


def read_captions(source: Path, tables: list[str], places: list[Place], skipped: Skipped) -> dict[str, list[str]]:
    """The captions of each picture that has some, in the order of the tables; others are added to `skipped`."""
    there, captions = {place.file for place in places}, defaultdict(list)
    with reader(source) as read:
        for table in tables:
            try:
                with read(table) as file:
                    content = file.read(LARGEST_FILE + 1)
            except Exception as error:  # a damaged archive raises nearly everything
                raise InputError(f"{one_line(table)} cannot be read ({one_line(error)}); repair it") from None
            for line, row in records(table, as_text(table, content)):
                name, caption = row.get("file_name"), row.get("text")
                if not isinstance(name, str) or not isinstance(caption, str):
                    raise InputError(
                        f"{one_line(table)}, line {line}: every caption needs `file_name` and `text`, and this has "
                        f"{one_line(', '.join(map(str, row)) or 'neither')}; add them"
                    )
                picture = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
                if not caption.isascii() and SURROGATE.search(caption):
                    skipped[f"{table}, line {line}"] = "half a character"
                elif not any(character.isalnum() for character in caption):
                    skipped[f"{table}, line {line}"] = "an empty caption"
                elif picture not in there:
                    skipped[f"{table}, line {line}"] = f"a caption without a picture: {name!r}"
                else:
                    captions[picture].append(caption)
    return captions


def as_text(table: str, content: bytes) -> str:
    if len(content) > LARGEST_FILE:
        raise InputError(f"{one_line(table)} is larger than {LARGEST_FILE >> 20} MiB; split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{one_line(table)} is not UTF-8; save it so") from None


def records(table: str, text: str) -> Iterator[tuple[int, dict]]:
    """The rows of a table, each with the line that it ends in. Raises InputError for one that cannot be read."""
    if table.lower().endswith(".csv"):
        rows = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise InputError(f"{one_line(table)}, line {rows.line_num}: not CSV ({error}); mend it") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{one_line(table)}, line {number}: not JSON ({one_line(error)}); mend it") from None
            yield number, row if isinstance(row, dict) else {}
