"""A result in parts that any page can show: what it says, pictures, tables, remarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text cells; a cell's verdict colours it.

    Attributes:
        head: names of the columns; empty texts where they need none.
        rows: cells.
        title: what it shows; '' where the section says it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: heading.
        lead: one sentence that says the result.
        figures: (caption, what draws the SVG).
        tables: below the figures.
        notes: remarks, one line each.
    """

    title: str
    lead: str = ""
    figures: Sequence[tuple[str, Callable[[], str]]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    def drawn(self, *, pictures: bool) -> Drawn:
        """With its pictures drawn, or without any."""
        found = [(caption, draw()) for caption, draw in self.figures] if pictures else []
        return Drawn(self.title, self.lead, found, self.tables, self.notes)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A section whose figures are (caption, SVG)."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    notes: Sequence[str]
