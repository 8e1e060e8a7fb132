"""STL-10: 96x96 photographs, 10 classes; made for learning without labels (Coates et al., 2011;
https://cs.stanford.edu/~acoates/stl10/).

Train is what is left of its 5,000 labelled pictures after validation, and then its 100,000 unlabelled ones, whose
label is -1. Test is its 8,000.
"""

import numpy as np

from ssl_methods import Count, Fraction

from . import Dataset, Seed, carve, download, labelled, torchvision_version

NAMES = ("train", "unlabeled", "test")


def load(*, size: Count = 96, validation: Fraction = 0.2, seed: Seed = 0, root: str = "downloads") -> Dataset:
    """The archive in the folder `root`, downloaded once. `validation` is a share of its labelled train split."""
    parts = {name: download("STL10", root, by_hand="stl10_binary.tar.gz", split=name) for name in NAMES}
    columns = {name: labelled(part.data, part.labels, size) for name, part in parts.items()}
    splits = carve(columns["train"], {"validation": validation}, seed)
    train = {name: np.concatenate([column, columns["unlabeled"][name]]) for name, column in splits["train"].items()}
    splits = {"train": train, "validation": splits["validation"], "test": columns["test"]}
    return Dataset(splits, parts["train"].classes, torchvision_version())
