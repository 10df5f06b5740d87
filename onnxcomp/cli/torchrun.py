"""One command in several processes, as `torchrun` starts them: the first one speaks."""

from __future__ import annotations

import dataclasses
import os

from onnxcomp.cli.shell import Shell


def speaks() -> bool:
    """Whether this process is the only one, or the first."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def speaker(shell: Shell) -> Shell:
    """The shell; silent in all processes but the first."""
    return shell if speaks() else dataclasses.replace(shell, quiet=True)
