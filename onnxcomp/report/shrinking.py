"""A search for the best model: what is said while it runs, and the table in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from onnxcomp.report import text
from onnxcomp.report.tables import _grid, _print

Json = Mapping[str, Any]


class _Outcome(Protocol):
    def to_json(self) -> dict[str, Any]: ...


class Teller:
    """Says what became of each candidate, and above the progress bar what is the best so far.

    Args:
        bar: the terminal's progress bar; None: none.
        note: prints a line.
    """

    def __init__(self, bar: Callable[[str, float | None], None] | None, note: Callable[[str], None]) -> None:
        self._bar, self._note = bar, note
        self._left = ""

    def progress(self, what: str, fraction: float | None) -> None:
        """What is being done."""
        if self._bar is not None:
            self._bar(f"{self._left}{what}", fraction)

    def outcome(self, outcome: _Outcome, left: float) -> None:
        """A candidate is known."""
        one = outcome.to_json()
        self._left = f"{max(left, 0):.0f} s left; "
        if one["reason"] is not None:
            self._note(f"{one['name']}: out: {one['reason']}")
            return
        speed, drop = one["speed"], one["drop"]
        self._note(
            f"{one['name']}: {speed['value']:.2f}x as fast, {text.size(one['bytes'])}, "
            f"drop {drop['value']:.4g} [{drop['low']:.4g}, {drop['high']:.4g}]"
        )


def table(result: Json) -> None:
    """The winner, what was tried, and what was not."""
    metric, whole = result["metric"], result["baseline"]["bytes"]
    samples = result["samples"]
    rows = [["input", text.size(whole), "", "", text.score_interval(result["baseline"]["score"], metric), "", ""]]
    rows += [
        [
            one["name"],
            text.size(one["bytes"]),
            f"{1 / one['size_ratio']:.2f}x",
            f"{text.ratio(one['speedup'])} {one['speedup']['verdict']}",
            text.score_interval(one["score"], metric),
            text.score_interval(one["drop"], metric),
            "met" if one["met"] else "missed",
        ]
        for one in result["tested"]
    ]
    _grid(
        f"on {samples['test']:,} samples that chose nothing",
        ["model", "size", "smaller", "speedup", metric, "drop, paired", "budget"],
        rows,
    )
    if result["front"]:
        _grid(
            f"not beaten in drop, size and speed at once: {len(result['front'])} of {result['tried']} tried, "
            f"on {samples['selection']:,} samples that choose",
            ["model", "smaller", "speed, a quick look", "drop, paired"],
            [
                [
                    one["name"],
                    f"{1 / one['size_ratio']:.2f}x",
                    text.ratio(one["speedup"]),
                    text.score_interval(one["drop"], metric),
                ]
                for one in result["front"]
            ],
        )
    _print(sentence(result))
    settings = None if result["best"] is None else result["best"]["settings"]
    if settings is not None:
        _print(settled(settings))
    if result["report"] is not None:
        _print(f"report: {result['report']}")


def sentence(result: Json) -> str:
    """The result in words."""
    best = result["best"]
    allowed = text.score(result["wanted"]["max_drop"], result["metric"])
    early = "" if result["complete"] else " The time was over before everything was tried."
    if best is not None:
        cost, own = best["cost_per_million"], result["baseline"]["cost"]
        cheaper = (
            f" A million requests cost {cost['value']:.3g} [{cost['low']:.3g}, {cost['high']:.3g}]"
            + (", with the input none can be held." if own is None else f", with the input {own['value']:.3g}.")
            if cost is not None
            else ""
        )
        return (
            f"{best['name']} is {best['speedup']['value']:.2f} times as fast and {1 / best['size_ratio']:.2f} times "
            f"smaller, within a drop of {allowed}: {best['path']}.{cheaper}{early}"
        )
    needed = result["samples_needed"]
    more = "" if needed is None else f" About {needed:,} test samples would make it certain."
    return f"Nothing beats the input: {result['why_none']}.{more}{early}"


def settled(settings: Json) -> str:
    """What session settings do, in words."""
    if settings["speedup"] is None:
        return "No session settings beat the defaults of ONNX Runtime, neither for it nor for the input."
    return (
        f"Both at their best session settings: {text.ratio(settings['speedup'])} times as fast "
        f"({settings['verdict']}); settings.json has them."
    )
