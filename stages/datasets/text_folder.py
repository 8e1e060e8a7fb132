"""Your own text: .txt files in a folder or a .zip, labelled by its sub-folders or not (reading/folder.py says how).

A file is a document in UTF-8, and its sentences are rows, each with the document's class. A sentence ends with every
line (see reading/text.py), so join lines that were broken to a width. Files of another kind, without a sentence, in
another encoding, and damaged ones are skipped and listed.

Splits that are missing are taken out of train by whole documents, and equal documents stay together.
"""

from pathlib import Path

import numpy as np

from ssl_methods import Count, Fraction

from . import Dataset, Seed
from .reading.folder import LARGEST_FILE, Kind, Skipped, complain, deal, find_places, locate, reader
from .reading.text import Length, build, rows_of, sentences

TEXTS = Kind("text_folder", "text", "texts", (".txt",))


def load(
    *,
    root: str = "",
    length: Length = 32,
    vocabulary: Count = 4096,
    validation: Fraction = 0.1,
    test: Fraction = 0.1,
    seed: Seed = 0,
    tolerate: Fraction = 0.05,
) -> Dataset:
    """The sentences under `root`, with columns token, next, document and, where there are classes, label.

    `validation` and `test` are shares of train's documents, for splits that are missing; `tolerate` is the share of all
    files that may be skipped. Raises InputError where there is no text, too little to split, or too many files to skip.
    """
    source = locate(root, TEXTS)
    skipped: Skipped = {}
    places = find_places(source, TEXTS, skipped)
    found = decode(source, [place.file for place in places], skipped)
    usable = np.array([place.file not in skipped for place in places], bool)
    reasons = complain(root, TEXTS, usable.sum(), skipped, tolerate)

    shares = {"validation": validation, "test": test}
    groups = np.unique(["\n".join(document) for document in found], return_inverse=True)[1]
    documents, classes, labels = deal(root, TEXTS, places, usable, shares, seed, groups)
    rows = []
    for number, document in enumerate(found):
        rows += rows_of(number, document, [labels[number]] * len(document))
    return build(rows, documents, classes, {}, length=length, vocabulary=vocabulary, skipped=reasons)


def decode(source: Path, files: list[str], skipped: Skipped) -> list[list[str]]:
    """The sentences of every file; a file that fails has none, and is added to `skipped`."""
    documents = []
    with reader(source) as read:
        for name in files:
            documents.append([])
            try:
                with read(name) as file:
                    content = file.read(LARGEST_FILE + 1)
                if len(content) > LARGEST_FILE:
                    raise ValueError("too large")
                documents[-1] = sentences(content.decode("utf-8-sig"))
                if not documents[-1]:
                    skipped[name] = "no sentence"
            except UnicodeDecodeError:
                skipped[name] = "not UTF-8"
            except Exception as error:  # a damaged archive raises nearly everything
                skipped[name] = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return documents
