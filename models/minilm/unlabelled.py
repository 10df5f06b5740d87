"""Sentences without labels, to distill on: those of two training splits, and mixtures of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnxcomp_models.minilm.sentences import LONGEST_QUESTION, encode

from onnxcomp.errors import DataError

#: what is read and what no sentence may come from: file, column, what separates columns
TRAIN = (("banking77_train.csv", "text", ","), ("snips_train.tsv", "text", "\t"))
COMMANDS = ("snips_valid.tsv", "text", "\t")
HELD_OUT = (("banking77_test.csv", "text", ","), COMMANDS)


def unlabelled(folder: str | os.PathLike[str], count: int) -> dict[str, np.ndarray]:
    """`count` sentences as `input_ids` and `attention_mask`, int64, (count, longest, at most 48).

    First every sentence once, in an order drawn with a fixed seed, then mixtures: the beginning of one sentence
    and the end of another, about as long as they are. A teacher knows what is near those too. What also stands
    in a split for testing, apart from capitals, is left out.

    Raises DataError (a file is missing, or has no column text), UnsupportedError (the extra is not installed).
    """
    held = {_plain(text) for text in _texts(Path(folder), HELD_OUT)}
    texts = sorted({text for text in _texts(Path(folder), TRAIN) if _plain(text) not in held})
    generator = np.random.default_rng(0)
    drawn = [texts[i] for i in generator.permutation(len(texts))[:count]]
    drawn += [_mixture(texts, generator) for _ in range(count - len(drawn))]
    ids, mask = encode(drawn, LONGEST_QUESTION)
    return {"input_ids": ids, "attention_mask": mask}


def commands(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The voice commands for testing, as `unlabelled` gives sentences: another kind of text than the questions.

    Raises as `unlabelled`.
    """
    ids, mask = encode([*_texts(Path(folder), [COMMANDS])], LONGEST_QUESTION)
    return {"input_ids": ids, "attention_mask": mask}


def _mixture(texts: list[str], generator: np.random.Generator) -> str:
    first, second = (texts[i].split() for i in generator.integers(len(texts), size=2))
    share = generator.uniform()
    return " ".join([*first[: max(round(share * len(first)), 1)], *second[round(share * len(second)) :]])


def _plain(text: str) -> str:
    return text.strip().lower()


def _texts(folder: Path, files: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    for name, column, separator in files:
        try:
            with (folder / name).open(encoding="utf-8", newline="") as file:
                quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
                rows = list(csv.DictReader(file, delimiter=separator, quoting=quoting))
        except FileNotFoundError as error:
            raise DataError(
                "no such file", where=folder / name, hint="the cards of minilm and snips name the source"
            ) from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot be read: {error}", where=folder / name) from error
        if not rows or any(not row.get(column) for row in rows):
            raise DataError(f"not rows with a {column}", where=folder / name)
        yield from (row[column] for row in rows)
