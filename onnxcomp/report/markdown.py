"""Results as Markdown tables, for a comment on a pull request. No pictures: a comment shows none that is inline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxcomp.report import sections
from onnxcomp.report.benchmark import ENVIRONMENT
from onnxcomp.report.section import Drawn, Table

Json = Mapping[str, Any]


def build(documents: Sequence[Json], *, title: str = "onnxcomp report") -> str:
    """Markdown (GitHub's, with tables) for some results. Raises DataError for a schema that has no section."""
    lines = [f"# {_text(title)}", ""]
    for section in sections.made(documents, pictures=False):
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Drawn) -> Iterator[str]:
    folded = section.title == ENVIRONMENT  # long, and seldom read
    yield from (f"<details><summary>{ENVIRONMENT}</summary>" if folded else f"## {_text(section.title)}", "")
    if section.lead:
        yield from (_text(section.lead), "")
    for table in section.tables:
        yield from _table(table)
    yield from (f"- {_text(note)}" for note in section.notes)
    if section.notes:
        yield ""
    if folded:
        yield from ("</details>", "")


def _table(table: Table) -> Iterator[str]:
    if not table.rows:
        return
    if table.title:
        yield from (f"**{_text(table.title)}**", "")
    yield _row(table.head)
    yield "|" + " --- |" * len(table.head)
    yield from (_row(row) for row in table.rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(text: str) -> str:
    """One line in which nothing of a model's names is markup, a mention or a link."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(text))
    plain = re.sub(r"([\\`*_|~#])", r"\\\1", plain).replace("](", "]\\(")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;").replace("://", ":&#47;/")
