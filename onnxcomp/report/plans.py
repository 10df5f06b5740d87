"""Tables of a plan, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from onnxcomp.report import text
from onnxcomp.report.tables import _facts, _grid, _print

Json = Mapping[str, Any]

_HEAD = (
    "configuration", "highest rate", "p99 ms", "verdict", "machines", "workers", "PSS", "CPU ms",
    "cost per million", "at full use",
)  # fmt: skip


def plan(result: Json) -> None:
    """`onnxcomp plan`."""
    asked = result["objective"]
    goal = f"{asked['rate']:g} requests a second, p99 within {asked['slo_p99_ms']:g} ms, machines of {asked['cores']}"
    for one in result["plans"]:
        name = PurePath(one["model"]).name
        _grid(f"{name}: {goal} cores [95 % interval]", _HEAD, [_row(o) for o in one["options"]])
        for note in one["notes"]:
            _print(f"note: {note}")
        for option in one["options"]:
            if option["refused"]:
                _print(f"out of question: {label(option)}: {option['refused']}")
        _print(f"{name}: {one['verdict']}" + (f": {one['reason']}" if one["reason"] else ""))
        if one["nearest"]:
            _print(f"nearest: {_nearest(one['nearest'])}")
    for note in result["notes"]:
        _print(f"note: {note}")
    if any(option["need"] and option["need"]["extrapolated"] for one in result["plans"] for option in one["options"]):
        _print("* more workers than this host runs at once: assumed to run as those here, independent of each other")
    for row in result["comparison"]:
        _print(row["statement"])
    if result["best"]:
        _facts(_start(result["best"]))
    _print(f"trust: {result['trust']['grade']}")
    for reason in result["trust"]["reasons"]:
        _print(f"  {reason['text']}; {reason['hint']}")


def label(option: Json, workers: int | None = None) -> str:
    """'2 threads on one session, 2 intra-op threads'."""
    count = workers or option["workers"]
    if option["kind"] == "pack":
        words = f"{count} on a pack"
    elif count == 1:
        words = "1 worker"
    else:
        words = f"{count} {option['kind']}"
    if option["threads"] > 1:
        words += f" x {option['threads']} intra-op" + (", spinning" if option.get("spinning") else "")
    return words + (f", batch {option['batch']}" if option["batch"] > 1 else "")


def _row(option: Json) -> Sequence[str]:
    need, verified = option["need"], option["verified"]
    preview = "-" if need is None else f"{need['preview']['p99_ms']:.3g} simulated"
    beyond = " *" if need is not None and need["extrapolated"] else ""
    cpu = option["cpu_seconds_per_request"]
    return [
        label(option),
        _rate(option["highest_rate"]),
        preview if verified is None else text.latency(verified["p99_ms"]),
        option["verdict"] or "not verified",
        "-" if need is None else str(need["machines"]),
        "-" if need is None else f"{need['workers']}{beyond}",
        text.size(option["memory"]["pss_bytes"]),
        "-" if cpu is None else f"{1e3 * cpu:.3g}",
        _cost(option["cost_per_million"]),
        _cost(option["cost_per_million_at_full_use"]),
    ]


def _rate(found: Json | None) -> str:
    if found is None:
        return "-"
    return f"{found['value']:,.0f} [{found['low']:,.0f}, {found['high']:,.0f}]"


def _cost(found: Json | None) -> str:
    if found is None:
        return "-"
    high = "∞" if found["high"] is None else f"{found['high']:.3g}"
    return f"{found['value']:.3g} [{found['low']:.3g}, {high}]"


def _nearest(found: Json) -> str:
    if "memory_limit" in found:
        return f"{found['configuration']} would fit into {text.size(found['memory_limit'])}"
    rate = "" if found["rate"] is None else f" at {found['rate']:,.1f} requests a second of one machine"
    return f"p99 within {found['slo_p99_ms']:.3g} ms{rate}, by {found['configuration']}"


def _start(best: Json) -> list[tuple[str, str]]:
    """What to start, line by line."""
    session = best["session"]
    settings = [f"intra_op_num_threads {best['threads']}", f"optimization {session['optimization']}"]
    settings += [f"{key}={value}" for key, value in session["config"].items()]
    if session["disabled_optimizers"]:
        settings.append(f"without {', '.join(session['disabled_optimizers'])}")
    machines = f"{best['machines']} machine{'' if best['machines'] == 1 else 's'}, each with "
    rows = [("start", f"{machines}{label(best)} of {best['model']} ({best['verdict']})")]
    rows.append(("session", ", ".join(settings)))
    if best["pack_command"]:
        rows.append(("pack", best["pack_command"]))
    return rows
