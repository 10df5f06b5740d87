"""JSON documents: how results are written and read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError, from_os_error


def to_text(document: Any) -> str:
    """Indented JSON with each list of numbers on one line, since samples come in thousands.

    A line break never stands inside a JSON string, so texts that quote a list stay as they are.
    Raises ValueError for NaN and infinity: they are not JSON, and a bug of the caller.
    """
    text = json.dumps(document, indent=2, allow_nan=False)
    return re.sub(r"\[\n[-+.\deE,\s]+\]", lambda found: re.sub(r"\s+", "", found[0]), text) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises OutputError (unreadable), DataError (not a JSON object)."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise from_os_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=path) from error
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=path)
    return value
