"""Write the weights of the sentence encoder, and real questions as its data, for the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from onnxcomp_models import command, minilm
from onnxcomp_models.minilm.unlabelled import commands, unlabelled

#: sentences to distill on, the first of them, which pruning looks at, and others of the second kind, to judge by
UNLABELLED, FEW, COMMANDS = "unlabelled.npz", "few.npz", "commands.npz"
_FEW = 640


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. The exit code."""
    parser = command.parser("minilm", __doc__ or "")
    parser.add_argument(
        "--unlabelled",
        type=command.positive,
        metavar="N",
        help=f"write {UNLABELLED} too: N training sentences of Banking77 and Snips to distill on; the first {_FEW} are "
        f"{FEW}, {COMMANDS} are the validation sentences of Snips",
    )
    options = parser.parse_args(arguments)
    return command.run(options, _make, [] if options.unlabelled is None else [UNLABELLED, FEW, COMMANDS])


def _make(options: argparse.Namespace) -> command.Made:
    network = minilm.build()
    found = minilm.data(options.data)
    command.say("tokenized", 0.5)
    embeddings = minilm.embed(network, found.test_ids, found.test_mask)
    right = minilm.same_intent({"embedding": embeddings}, found.test_labels)
    rows = command.rows(len(found.train_labels))
    calibration = {"input_ids": found.train_ids[rows], "attention_mask": found.train_mask[rows]}
    test = {"input_ids": found.test_ids, "attention_mask": found.test_mask, "labels": found.test_labels}
    files = {}
    if options.unlabelled is not None:
        sentences = unlabelled(options.data, options.unlabelled)
        few = {name: array[:_FEW] for name, array in sentences.items()}
        written = (sentences, few, commands(options.data))
        files = dict(zip((UNLABELLED, FEW, COMMANDS), map(command.npz, written), strict=True))
    words = f"{int(right.sum())} of {len(right)} test questions have the intent of the nearest other one"
    return command.Made(network, calibration, test, float(right.mean()), words, files)


if __name__ == "__main__":
    sys.exit(main())
