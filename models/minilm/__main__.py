"""Write the weights of the sentence encoder, and real questions as its data, for the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from onnxcomp_models import command, minilm


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. The exit code."""
    parser = command.parser("minilm", __doc__ or "")
    return command.run(parser.parse_args(arguments), _make)


def _make(options: argparse.Namespace) -> command.Made:
    network = minilm.build()
    found = minilm.data(options.data)
    command.say("tokenized", 0.5)
    embeddings = minilm.embed(network, found.test_ids, found.test_mask)
    right = minilm.same_intent({"embedding": embeddings}, found.test_labels)
    rows = command.rows(len(found.train_labels))
    calibration = {"input_ids": found.train_ids[rows], "attention_mask": found.train_mask[rows]}
    test = {"input_ids": found.test_ids, "attention_mask": found.test_mask, "labels": found.test_labels}
    words = f"{int(right.sum())} of {len(right)} test questions have the intent of the nearest other one"
    return command.Made(network, calibration, test, float(right.mean()), words)


if __name__ == "__main__":
    sys.exit(main())
