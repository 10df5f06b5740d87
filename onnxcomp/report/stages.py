"""A model on its way through the passes of a recipe: what it was worth after each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcomp.report import text

Json = Mapping[str, Any]


def title(result: Json) -> str:
    """Of the table."""
    score = result["score"]
    return f"after each pass, on {score['samples']} samples of {score['data']}"


def head(result: Json) -> list[str]:
    """Of a table with `rows`."""
    return ["after", "size", "smaller", result["score"]["metric"], "drop, paired", "speed, a quick look"]


def rows(result: Json) -> list[list[str]]:
    """The input, and the model after each pass; nothing where a record judged no stages."""
    first = result.get("score")
    if first is None:
        return []
    metric, whole = first["metric"], result["input"]["bytes"]
    found = [["input", text.size(whole), "", text.score_interval(first, metric), "", ""]]
    for step in result["passes"]:
        score, speed = step["score"], step["speed"]
        found.append(
            [
                step["name"],
                text.size(step["bytes"]),
                f"{whole / step['bytes']:.2f}x",
                text.score_interval(score, metric),
                text.score_interval(score["drop"], metric),
                text.ratio({**speed, "value": speed["ratio"]}),
            ]
        )
    return found
