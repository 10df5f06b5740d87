"""Train the fashion net, a wide one or its student, and write weights and data for the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from onnxcomp_models import command, fashion
from onnxcomp_models.fashion.train import EPOCHS

UNLABELLED = "train.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. The exit code."""
    parser = command.parser("fashion", __doc__ or "", epochs=EPOCHS)
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--wide", action="store_true", help="train the net of 1.6 million parameters instead")
    width.add_argument("--student", action="store_true", help="train the small net instead")
    parser.add_argument(
        "--unlabelled",
        type=command.positive,
        metavar="N",
        help="write train.npz too: N training images without labels, to distill on",
    )
    parser.add_argument("--download", action="store_true", help="fetch the files that FOLDER lacks")
    options = parser.parse_args(arguments)
    return command.run(options, _make, [] if options.unlabelled is None else [UNLABELLED])


def _make(options: argparse.Namespace) -> command.Made:
    if options.download:
        fashion.download(options.data, command.say)
    found = fashion.data(options.data)
    builder = fashion.student if options.student else fashion.wide if options.wide else fashion.build
    network = fashion.train(found, builder=builder, seed=options.seed, epochs=options.epochs, on_progress=command.say)
    right = fashion.accuracy(network, found.test_images, found.test_labels)
    count = len(found.test_labels)
    files = {}
    if options.unlabelled is not None:
        drawn = command.rows(len(found.train_labels), options.unlabelled)
        files[UNLABELLED] = command.npz({"image": found.train_images[drawn]})
    return command.Made(
        network,
        {"image": found.train_images[command.rows(len(found.train_labels))]},
        {"image": found.test_images, "labels": found.test_labels},
        right,
        f"{round(right * count)} of {count} test images, seed {options.seed}",
        files,
    )


if __name__ == "__main__":
    sys.exit(main())
