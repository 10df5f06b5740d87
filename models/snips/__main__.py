"""Train the intent transformer, and write weights, vocabulary and data for the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from onnxcomp_models import command, snips
from onnxcomp_models.snips.train import EPOCHS
from onnxcomp_models.snips.words import to_json

_VOCABULARY, _TRAINING = "vocabulary.json", "train.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. The exit code."""
    parser = command.parser("snips", __doc__ or "", epochs=EPOCHS)
    return command.run(parser.parse_args(arguments), _make, [_VOCABULARY, _TRAINING])


def _make(options: argparse.Namespace) -> command.Made:
    found = snips.data(options.data)
    network = snips.train(found, seed=options.seed, epochs=options.epochs, on_progress=command.say)
    right = snips.accuracy(network, found.valid_ids, found.valid_labels)
    count = len(found.valid_labels)
    return command.Made(
        network,
        {"ids": found.train_ids[command.rows(len(found.train_labels))]},
        {"ids": found.valid_ids, "labels": found.valid_labels},
        right,
        f"{round(right * count)} of {count} validation sentences, seed {options.seed}",
        {
            _VOCABULARY: to_json(found.words),
            _TRAINING: command.npz({"ids": found.train_ids, "labels": found.train_labels}),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
