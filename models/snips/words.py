"""Sentences of the Snips data set as word ids."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnxcomp_models.snips.model import INTENTS, PADDING, UNKNOWN, VOCABULARY

from onnxcomp.errors import DataError

TRAIN, VALID = "snips_train.tsv", "snips_valid.tsv"

#: a word, or one character that is neither part of a word nor space
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Data:
    """Ids (n, longest sentence) int64, 0 behind the words; labels (n,) int64, indices of INTENTS.

    Attributes:
        words: the vocabulary; a word's id is its place. The first two stand for padding and unknown words.
    """

    train_ids: np.ndarray
    train_labels: np.ndarray
    valid_ids: np.ndarray
    valid_labels: np.ndarray
    words: tuple[str, ...]


def data(folder: str | os.PathLike[str]) -> Data:
    """Both splits in `folder`; the vocabulary comes from the training split alone.

    Raises DataError: a file is missing, or a line is not `text<TAB>intent`.
    """
    train_texts, train_labels = _read(Path(folder) / TRAIN)
    valid_texts, valid_labels = _read(Path(folder) / VALID)
    words = vocabulary(train_texts)
    return Data(encode(train_texts, words), train_labels, encode(valid_texts, words), valid_labels, words)


def tokens(text: str) -> list[str]:
    """Lower-case words and signs."""
    return _TOKEN.findall(text.lower())


def vocabulary(texts: Sequence[str]) -> tuple[str, ...]:
    """The most frequent words, at most VOCABULARY with the two special ones; ties in alphabetical order."""
    counts = collections.Counter(word for text in texts for word in tokens(text))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return ("[padding]", "[unknown]", *ordered[: VOCABULARY - 2])


def encode(texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Ids int64, (texts, longest text): what the network reads."""
    known = {word: i for i, word in enumerate(words)}
    rows = [[known.get(word, UNKNOWN) for word in tokens(text)] for text in texts]
    ids = np.full((len(rows), max(map(len, rows), default=0)), PADDING, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def to_json(words: Sequence[str]) -> bytes:
    """What a server needs beside the weights: `words` by id, `intents` by class."""
    return json.dumps({"words": list(words), "intents": list(INTENTS)}, ensure_ascii=False, indent=0).encode()


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """(texts, labels) below the header of a .tsv."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(
            "no such file",
            where=path,
            hint=f"make {TRAIN} and {VALID} (text<TAB>intent) from 2017-06-custom-intent-engines "
            "of https://github.com/sonos/nlu-benchmark",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=path) from error
    texts, labels = [], []
    for number, line in enumerate(lines[1:], 2):
        text, tab, intent = line.partition("\t")
        if not tab or intent not in INTENTS or not tokens(text):
            raise DataError(f"line {number} is not text<TAB>intent", where=path, hint=f"intents: {', '.join(INTENTS)}")
        texts.append(text)
        labels.append(INTENTS.index(intent))
    if not texts:
        raise DataError("no sentences", where=path)
    return texts, np.array(labels, np.int64)
