"""CIFAR-10: 60,000 photographs of 32x32 pixels, 10 classes (Krizhevsky, 2009; https://www.cs.toronto.edu/~kriz/cifar.html).

The archive has no validation split: it is taken out of train.
"""

from ssl_methods import Count, Fraction

from . import Dataset, Seed, carve, download, labelled, torchvision_version


def load(*, size: Count = 32, validation: Fraction = 0.1, seed: Seed = 0, root: str = "downloads") -> Dataset:
    """The archive in the folder `root`, downloaded once. `validation` is a share of its train split."""
    train, test = (download("CIFAR10", root, by_hand="cifar-10-python.tar.gz", train=train) for train in (True, False))
    train_columns, test_columns = (labelled(p.data.transpose(0, 3, 1, 2), p.targets, size) for p in (train, test))
    splits = carve(train_columns, {"validation": validation}, seed)
    return Dataset({**splits, "test": test_columns}, train.classes, torchvision_version())
