#!/usr/bin/env python3
"""onnxcomp beside other tools.

    .venv/bin/python scripts/compare_peers.py optimize FOLDER    nodes and bytes beside onnxslim and onnxsim
    .venv/bin/python scripts/compare_peers.py quantize           int8 beside ONNX Runtime, NNCF, neural-compressor

The peers live in environments of their own below runs/peers, made at the first run.
"""

from __future__ import annotations

import argparse
import sys

from peers import optimize, quantize


def main() -> int:
    """The exit code of the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, module in (("optimize", optimize), ("quantize", quantize)):
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args()
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
