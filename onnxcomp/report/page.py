"""One self-contained HTML page of results: no script, no network, safe to send around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp.errors import UnsupportedError
from onnxcomp.report import plots, sections

Json = Mapping[str, Any]


def build(documents: Sequence[Json], *, title: str = "onnxcomp report") -> str:
    """The page for some results (JSON objects with a `schema`).

    Raises DataError for a schema that has no section, UnsupportedError without jinja2 or matplotlib.
    """
    found = sections.made(documents, pictures=True)
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise UnsupportedError("the page needs jinja2", hint="pip install 'onnxcomp[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = markupsafe.Markup  # made by us; all text of results is escaped
    return environment.get_template("page.html").render(title=title, sections=found, verdicts=plots.COLOURS)
