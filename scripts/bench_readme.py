#!/usr/bin/env python3
"""Run the commands that the README, or a model's card, shows and put in what they really print.

usage: .venv/bin/python scripts/bench_readme.py [PAGE.md ...] [WORD ...]     (only commands that hold one of the words)

A fenced block `console` whose first line is `$ COMMAND` is one example; the block's other lines are
replaced by what the command prints. Commands run in the repository root, in the page's order. Those of the cards
read ../shared/data and replace nothing: remove runs/MODEL before.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```console\n\$ (?P<command>.+?)\n(?P<output>(?:.*\n)*?)```$", re.MULTILINE)


def filled(text: str, words: list[str]) -> str:
    """The text with the output of every chosen example made anew."""
    return BLOCK.sub(lambda found: _run(found, words), text)


def _run(found: re.Match[str], words: list[str]) -> str:
    command = found["command"]
    if words and not any(word in command for word in words):
        return found[0]
    print(f"$ {command}", file=sys.stderr)
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    done = subprocess.run(  # noqa: S602 - our own README
        command,
        shell=True,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return f"```console\n$ {command}\n{done.stdout.rstrip()}\n```"


if __name__ == "__main__":
    pages = [word for word in sys.argv[1:] if word.endswith(".md")]
    chosen = [word for word in sys.argv[1:] if word not in pages]
    for page in map(Path, pages or [ROOT / "README.md"]):
        page.write_text(filled(page.read_text(), chosen))
