"""What data sets of pictures with captions share: a vocabulary learned from train's captions, and the classes' prompts.

They have the columns `image`, `token` (N, L) int32 as in text.py, and `label` where there are classes. A prompt is a
text that stands for a class, by which pictures can be told without a single label; a class may have several.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np

from .. import Dataset
from .text import encode, learn


def add_captions(
    dataset: Dataset,
    captions: Sequence[str],
    rows: Mapping[str, np.ndarray],
    prompts: Sequence[tuple[str, str]],
    *,
    length: int,
    vocabulary: int,
) -> Dataset:
    """The data set with the captions of its rows (`rows` numbers each split's), and with the prompts (class, text)."""
    tokenizer = learn(list(dict.fromkeys(captions[row] for row in rows["train"])), length, vocabulary)
    token = encode(tokenizer, captions)
    for split, of_split in rows.items():
        dataset.splits[split]["token"] = token[of_split]
    if prompts:
        labels = [dataset.classes.index(name) for name, _ in prompts]
        texts = [text for _, text in prompts]
        dataset.prompts = {"token": encode(tokenizer, texts), "label": np.array(labels, np.int64)}
    dataset.sources["tokenizers"] = version("tokenizers")
    dataset.facts["vocabulary"] = tokenizer.get_vocab_size()
    dataset.files["tokenizer.json"] = tokenizer.to_str(pretty=True)
    return dataset
