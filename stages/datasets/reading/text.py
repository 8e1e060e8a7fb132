"""What data sets of text share: sentences, a vocabulary learned from train alone, and columns of token ids.

A row is one sentence. Its columns, where L is `length` and 0 is padding:

    token (N, L) int32      [CLS] ids [SEP], cut to L with the [SEP] kept
    next (N, L) int32       the sentence that follows it, in the same form; all 0 where none does
    document (N,) int64     the number of its document; a document lies in one split
    label (N,) int64        its class, or -1; there only where there are classes

tokenizer.json, which the library `tokenizers` reads, makes such ids of any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from annotated_types import Ge

from ssl_methods.modalities.text import CLS, MASK, PAD, SEP, UNK

from ...common.settings import InputError
from .. import Dataset, take

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Length = Annotated[int, Ge(4)]  # [CLS], two tokens and [SEP]: less is no sentence

SPECIAL = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK, "[UNK]": UNK}
ENDLESS = re.compile(r"\S{1000,}")  # no word, though there are files of such; learning takes its length squared
END = re.compile(  # of a sentence, unless the stop belongs to an initial or a title, or a small letter follows
    # The first of these looks: a row of stops is tried from its first two alone, or a long one would take for ever.
    r"""(?<![.!?]{2})(?<!\b[A-Z])(?<!\b(?:Mr|Ms|Dr|St))(?<!\bMrs)([.!?]+["'\u2019\u201d)\]]*)\s+(?![a-z])"""
)


class Row(NamedTuple):
    """A sentence, and where it belongs."""

    sentence: str
    follows: str  # the sentence after it; "" where there is none
    document: int
    label: int = -1


def sentences(text: str) -> list[str]:
    """The sentences of a text, without those that have no letter and no digit.

    One ends with its line, and at `.`, `!` or `?`, with quotes and brackets that close there, before white space. But
    not before a small letter, nor at the stop of an initial (J. Smith) or of Mr, Mrs, Ms, Dr, St.
    """
    pieces = (piece.strip() for line in text.splitlines() for piece in END.sub(r"\1\n", line).split("\n"))
    return [piece for piece in pieces if re.search(r"[^\W_]", piece)]


def rows_of(document: int, found: Sequence[str], labels: Iterable[int]) -> list[Row]:
    """The rows of a document, each followed by the next."""
    return [Row(*row) for row in zip(found, [*found, ""][1:], [document] * len(found), labels, strict=True)]


def linked(documents: Sequence[Iterable[str]]) -> np.ndarray:
    """(N,) a number for each document, the same for all that share a sentence, at first hand or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    edges = [
        (document, len(documents) + numbers.setdefault(sentence.casefold(), len(numbers)))
        for document, found in enumerate(documents)
        for sentence in found
    ]
    nodes = len(documents) + len(numbers)
    graph = coo_array((np.ones(len(edges)), np.array(edges).T), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][: len(documents)]


def build(
    rows: Sequence[Row],
    documents: dict[str, np.ndarray],
    classes: list[str],
    sources: dict[str, str],
    *,
    length: int,
    vocabulary: int,
    skipped: Sequence[str] = (),
) -> Dataset:
    """The data set of these rows. `documents` has the numbers of each split's documents."""
    columns = {"document": np.array([row.document for row in rows], np.int64)}
    if classes:
        columns["label"] = np.array([row.label for row in rows], np.int64)
    homes = {split: np.flatnonzero(np.isin(columns["document"], numbers)) for split, numbers in documents.items()}
    tokenizer = learn(distinct(rows[row] for row in homes["train"]), length, vocabulary)

    columns["token"] = encode(tokenizer, [row.sentence for row in rows])
    columns["next"] = encode(tokenizer, [row.follows for row in rows])
    return Dataset(
        splits={split: take(columns, of_split) for split, of_split in homes.items()},
        classes=classes,
        sources=sources | {"tokenizers": version("tokenizers")},
        skipped=list(skipped),
        facts={"vocabulary": tokenizer.get_vocab_size()},
        files={"tokenizer.json": tokenizer.to_str(pretty=True)},
    )


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """The ids of each text, (N, L) int32; those of no text are all 0."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(["", *texts]))}
    ids = np.zeros((len(numbers), tokenizer.padding["length"]), np.int32)
    if len(numbers) > 1:
        ids[1:] = [encoded.ids for encoded in tokenizer.encode_batch_fast(list(numbers)[1:])]
    return ids[[numbers[text] for text in texts]]


def distinct(rows: Iterable[Row]) -> list[str]:
    """Every sentence once, those that merely follow too."""
    return list(dict.fromkeys(text for row in rows for text in (row.sentence, row.follows) if text))


def learn(texts: Sequence[str], length: int, vocabulary: int) -> Tokenizer:
    """A tokeniser with a WordPiece vocabulary learned from these texts, and BERT's ways: lower case, no accents.

    Raises InputError where `vocabulary` has no room for every character of the texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    used = sorted(set().union(*texts))
    characters = sorted(set(normalizer.normalize_str(" ".join(used))) - {" "})
    inner = [f"##{c}" for c in characters if len(words.pre_tokenize_str(f"x{c}")) == 1]  # c continues a word
    first = [*SPECIAL, *characters, *inner]
    if len(first) > vocabulary:
        room = f"the special tokens and single characters alone take {len(first)}"
        raise InputError(f"`vocabulary` is {vocabulary}, but {room}; raise it above that")

    def tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
        made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizer, words
        return made

    # The trainer numbers what it is not given in an order that changes from run to run, and ties go by number. So it
    # is given every character; as these would then count as special, a new tokeniser takes its vocabulary over.
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
    learner = tokenizer({})
    learner.train_from_iterator((ENDLESS.sub(" ", text) for text in texts), trainer)
    learned = tokenizer(learner.get_vocab())
    learned.add_special_tokens(list(SPECIAL))
    learned.encode_special_tokens = True  # "[SEP]" in a text is a word like others
    learned.decoder = decoders.WordPiece()
    ends = [("[CLS]", CLS), ("[SEP]", SEP)]
    learned.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    learned.enable_truncation(length)
    learned.enable_padding(length=length, pad_id=PAD, pad_token="[PAD]")
    return learned
