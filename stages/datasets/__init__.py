"""One file per data set, found by its name, and what several of them share.

A data set's module has one public function, `load`, whose keyword-only parameters are the keys of `datasets.<name>` in
params.yaml. Adding a data set is adding a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge

from ssl_methods import unknown

from ..common.settings import InputError, one_line
from ..common.settings import check as check_settings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL.Image import Image

Columns = dict[str, np.ndarray]
Seed = Annotated[int, Ge(0)]


@dataclass
class Dataset:
    """Three splits of aligned columns, and what a reader of the results may want to know about them."""

    splits: dict[str, Columns]  # {"train": {"image": (N, 3, H, W) uint8, "label": (N,) int64}, "validation":, "test":}
    classes: list[str]  # label 0 is classes[0]; empty, and no column "label", where nothing is labelled
    sources: dict[str, str]  # what the data came from, and its version
    skipped: list[str] = field(default_factory=list)  # files that could not be used, each with the reason
    show: dict[str, list[int]] | None = None  # the rows that figures may show; None for all
    facts: dict[str, int] = field(default_factory=dict)  # what networks must know and no shape tells: the vocabulary
    files: dict[str, str] = field(default_factory=dict)  # text files beside the splits, by name: how to read tokens
    prompts: Columns | None = None  # what to call the classes: {"token": (P, L) int32, "label": (P,) int64}


def find(name: str) -> Callable[..., Dataset]:
    """`load` of stages/datasets/<name>.py. Raises InputError for an unknown name, with the nearest known one."""
    known = [file.stem for file in Path(__file__).parent.glob("[!_]*.py")]
    if name not in known:
        raise InputError(unknown("data set", name, known))
    return import_module(f"{__name__}.{name}").load


def check(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of that data set, checked against the signature of its `load` and filled up with its defaults."""
    return check_settings(find(name), settings, f"datasets.{name}")


def load(name: str, **settings: Any) -> Dataset:
    """The data set of that name. Raises InputError, naming it, for whatever of the user's stands in the way."""
    function = find(name)
    try:
        return function(**settings)
    except InputError as error:
        raise InputError(f"data set {name}: {error}") from None


def picture(image: Image, size: int) -> np.ndarray:
    """A PIL image of any mode as (3, size, size) uint8: upright, on white, shorter side to `size`, centre cropped."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32: keep the upper byte
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """(N, 3, H, W) uint8 -> (N, 3, size, size) uint8."""
    from PIL import Image

    if images.shape[2:] == (size, size):
        return np.ascontiguousarray(images)
    resized = np.empty((len(images), 3, size, size), np.uint8)
    for row, image in enumerate(images):
        resized[row] = picture(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), size)
    return resized


def labelled(images: np.ndarray, labels: ArrayLike, size: int) -> Columns:
    """Images (N, 3, H, W) uint8 and their labels as columns, the images resized to `size`."""
    return {"image": resize(images, size), "label": np.asarray(labels, np.int64)}


def split_rows(
    strata: np.ndarray, shares: dict[str, float], seed: int, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Deals rows out at random to "train" and to the splits that `shares` names.

    Args:
        strata: (N,) each of its values is spread over the splits as `shares` says, and is never missing from train.
        shares: {split: share of all rows}; train gets the rest.
        groups: (N,) rows of one group stay together. By default every row is alone.

    Returns:
        {split: its rows, ascending}.

    Raises:
        InputError: where a split would be left without a row.
    """
    shares = {"train": 1 - sum(shares.values()), **shares}
    groups = np.arange(len(strata)) if groups is None else groups
    _, first, member, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    stratum = strata[first]
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(stratum[order], kind="stable")]

    # Every group goes to the split that is furthest behind its share, but the first of a stratum goes to train.
    homes = np.empty(len(first), dtype=object)
    owed = dict.fromkeys(shares, 0.0)
    seen = set()
    for group in order:
        for split, share in shares.items():
            owed[split] += share * sizes[group]
        homes[group] = max(owed, key=owed.get) if stratum[group] in seen else "train"
        owed[homes[group]] -= sizes[group]
        seen.add(stratum[group])

    rows = {split: np.flatnonzero(homes[member] == split) for split in shares}
    for split, found in rows.items():
        if len(found) == 0:
            short = f"no row is left for {split} (a share of {shares[split]:.2g} of {len(strata)})"
            raise InputError(f"{short}; give more data, or change the shares")
    return rows


def take(columns: Columns, rows: np.ndarray) -> Columns:
    """Those rows of every column."""
    return {name: column[rows] for name, column in columns.items()}


def carve(train: Columns, shares: dict[str, float], seed: int) -> dict[str, Columns]:
    """Train, and the splits that `shares` names taken out of it, stratified by label where there is one."""
    strata = train.get("label", np.zeros(len(train["image"]), np.int64))
    return {split: take(train, rows) for split, rows in split_rows(strata, shares, seed).items()}


def download(kind: str, root: str, by_hand: str, **settings: Any) -> Any:
    """torchvision.datasets.<kind>, downloaded into `root` unless it is there.

    Raises InputError where that fails: it says that the files `by_hand` may be put into `root` instead.
    """
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(root, download=True, **settings)
    except (OSError, RuntimeError, HTTPException) as error:
        mend = f"put {by_hand} into {root!r} by hand, or use the data set `image_folder` with pictures of your own"
        raise InputError(f"{kind} could not be downloaded into {root!r} ({one_line(error)}); {mend}") from None


def torchvision_version() -> dict[str, str]:
    """What a data set that came through torchvision states as its source."""
    from importlib.metadata import version

    return {"torchvision": version("torchvision")}
