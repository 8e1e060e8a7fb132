"""Fashion-MNIST: 70,000 grey pictures of clothes, 28x28, 10 classes (Xiao et al., 2017;
https://github.com/zalandoresearch/fashion-mnist).

Debian's package dataset-fashion-mnist is read where it is installed; elsewhere the files are downloaded. Pictures are
padded with black to 32x32, and their grey is repeated in three channels. Validation is taken out of train.
"""

import gzip
from pathlib import Path

import numpy as np

from ssl_methods import Count, Fraction

from . import Columns, Dataset, Seed, carve, download, labelled, torchvision_version

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load(*, size: Count = 32, validation: Fraction = 0.1, seed: Seed = 0, root: str = "downloads") -> Dataset:
    """Debian's files, or those in the folder `root`, downloaded once. `validation` is a share of their train split."""
    if DEBIAN.is_dir():
        train, test = (read_debian(part, size) for part in ("train", "t10k"))
        sources = {"dataset-fashion-mnist": "Debian"}
    else:
        parts = [download("FashionMNIST", root, by_hand=FILES, train=train) for train in (True, False)]
        train, test = (grey(part.data.numpy(), part.targets.numpy(), size) for part in parts)
        sources = torchvision_version()
    return Dataset({**carve(train, {"validation": validation}, seed), "test": test}, CLASSES, sources)


def read_debian(part: str, size: int) -> Columns:
    """One part ("train" or "t10k") of Debian's copy."""
    images = gzip.decompress((DEBIAN / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DEBIAN / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    # The idx format: a header of 16 bytes before the pixels, of 8 before the labels.
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return grey(pixels, np.frombuffer(labels, np.uint8, offset=8), size)


def grey(images: np.ndarray, labels: np.ndarray, size: int) -> Columns:
    """(N, 28, 28) uint8 -> (N, 3, size, size)."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))  # (N, 32, 32)
    return labelled(np.repeat(padded[:, None], 3, axis=1), labels, size)
