"""Your own pictures: a folder or a .zip, labelled by its sub-folders or not (see reading/folder.py for where they go).

Files that are no pictures, and damaged ones, are skipped and listed.
"""

import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ssl_methods import Count, Fraction

from . import Dataset, Seed, picture, take
from .reading.folder import Kind, Skipped, complain, deal, find_places, locate, reader

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # what a file may turn out to be, whatever its name
PICTURES = Kind("image_folder", "picture", "pictures", EXTENSIONS)


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
    source = locate(root, PICTURES)
    skipped: Skipped = {}
    places = find_places(source, PICTURES, skipped)
    images = decode(source, [place.file for place in places], size, skipped)
    usable = np.array([place.file not in skipped for place in places], bool)
    reasons = complain(root, PICTURES, usable.sum(), skipped, tolerate)

    shares = {"validation": validation, "test": test}
    splits, classes, labels = deal(root, PICTURES, places, usable, shares, seed)
    columns = {"image": images, "label": labels} if classes else {"image": images}
    splits = {split: take(columns, rows) for split, rows in splits.items()}
    return Dataset(splits, classes, {"Pillow": version("pillow")}, reasons)


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
