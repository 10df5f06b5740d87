"""Which files are results, and their content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxcomp import documents
from onnxcomp.errors import DataError, OnnxcompError
from onnxcomp.report import sections


def read(runs: Iterable[Path]) -> dict[Path, Mapping[str, Any]]:
    """The results in some files and folders, in their order; of a folder those that are results.

    Raises DataError for a file that is none, and for a folder without one; OutputError for what cannot be read.
    """
    found: dict[Path, Mapping[str, Any]] = {}
    for run in runs:
        found |= _folder(run) if run.is_dir() else {run: _file(run)}
    return found


def _file(path: Path) -> Mapping[str, Any]:
    document = documents.read(path)
    if sections.kind(document) is None:
        schema = document.get("schema")
        raise DataError(
            "not a result" if schema is None else f"no section for results of the schema '{schema}'",
            where=path,
            hint=f"give the --json output of: {', '.join(sections.KINDS)}",
        )
    return document


def _folder(path: Path) -> dict[Path, Mapping[str, Any]]:
    whole = path / "demo.json"  # holds its records already
    found = {}
    for file in [whole] if whole.is_file() else sorted(path.glob("*.json")):
        try:
            found[file] = _file(file)
        except OnnxcompError:
            continue
    if not found:
        raise DataError("the folder holds no .json result", where=path)
    return found
