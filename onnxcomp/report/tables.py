"""Tables for the terminal, from the JSON of each verb."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcomp.report import baseline, effects, placement, scenarios, stages, sweep, text, workers

Json = Mapping[str, Any]

_COLOURS = {"faster": "green", "slower": "red", "equivalent": "cyan", "undecided": "yellow"}
_WORDS = ("workers", "configuration", "against", "model", "why", "operator", "where", "change")  # columns of words
_MOST_OPS = 12
_PIPE_WIDTH = 160  # a pipe has no width; do not cut numbers


def inspection(result: Json) -> None:
    """`onnxcomp inspect`."""
    model, stored = result["model"], result["initializers"]
    opsets = ", ".join(f"{domain} {version}" for domain, version in model["opset"].items())
    dtypes = ", ".join(f"{name} {text.size(n)}" for name, n in result["bytes_by_dtype"].items())
    macs = text.number(result["macs"])
    if result["macs_unknown_nodes"]:
        macs += f" (without {result['macs_unknown_nodes']} nodes of unknown size)"
    quantized, coded = result["quantized"], result.get("clustered", {}).get("weights")
    _facts(
        [
            ("model", model["path"]),
            ("size", text.size(model["bytes"])),
            ("sha256", model["sha256"]),
            ("opset", f"{opsets} (IR {model['ir_version']})"),
            ("producer", model["producer"] or "-"),
            ("parameters", text.number(result["parameters"])),
            ("MACs per sample", macs),
            ("stored tensors", f"{stored['count']}, {text.size(stored['bytes'])}: {dtypes or 'none'}"),
            (
                "tied, zeros",
                f"{stored['tied']} tensors equal another, {text.percent(stored['zero_fraction'], 1)} zeros",
            ),
            ("quantized", f"{quantized['weights']} of {quantized['of']} weights"),
            *([("clustered", f"{coded} weights in codes, which ORT turns into floats at load")] if coded else []),
            *[("input", _value(spec)) for spec in result["inputs"]],
            *[("output", _value(spec)) for spec in result["outputs"]],
        ]
    )
    ops = sorted(result["ops"].items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name.removeprefix('ai.onnx::')} {count}" for name, count in ops[:_MOST_OPS]]
    rest = len(ops) - len(shown)
    _print("operators: " + ", ".join(shown) + (f", and {rest} more" if rest > 0 else ""))


def record(result: Json) -> None:
    """Every verb that changes a model."""
    before, after = result["input"], result["output"]
    rows = [
        ("input", f"{before['path']} ({text.size(before['bytes'])})"),
        ("output", f"{after['path']} ({text.size(after['bytes'])})"),
        ("size", f"{1 / result['size_ratio']:.2f}x smaller" if result["size_ratio"] < 1 else "not smaller"),
    ]
    for step in result["passes"]:
        rows.append((step["name"], f"{effects.effect(step['effect'])} ({step['seconds']:.1f} s)"))
        left = f"  left {effects.left(step['effect'])}"
        rows += [(left, f"{nodes}: {reason}") for nodes, reason in effects.skipped(step["effect"])]
    if result["equivalence"] is not None:
        rows.append(("proof", f"outputs equal within {result['equivalence']:.1e} of the largest value"))
    if result.get("speed") is not None:
        rows.append(("speed", speed(result["speed"])))
    _facts(rows)
    if judged := stages.rows(result):
        _grid(stages.title(result), stages.head(result), judged)
    if result["fidelity"] is not None:
        fidelity(result["fidelity"])
    if "explanation" in result:
        explanation(result["explanation"])


def speed(found: Json) -> str:
    """One line about a quick look."""
    span = f"[{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['ratio']:.2f}x {span} that of the input, {found['samples']} sample a run, one thread: a quick look"


def fidelity(result: Json) -> None:
    """`onnxcomp compare`."""
    table = _table(f"fidelity on {result['samples']} samples of {result['data']}")
    for name in ("output", "SQNR", "cosine mean", "cosine p1", "max abs", "max rel"):
        table.add_column(name, justify="left" if name == "output" else "right")
    for name, found in result["outputs"].items():
        figures = (found["cosine_mean"], found["cosine_p1"], found["max_abs"], found["max_rel"])
        _add(table, name, text.decibel(found), *("NaN" if f is None else f"{f:.4g}" for f in figures))
    _print(table)
    if result["agreement"] is not None:
        agreement = text.score_interval(result["agreement"], "accuracy")
        _print(f"same class: {agreement} (output {result['agreement_output']})")
    if result.get("nearest") is not None:
        _print(
            f"same nearest: {text.score_interval(result['nearest'], 'accuracy')} (output {result['nearest_output']})"
        )


def score(result: Json) -> None:
    """`onnxcomp evaluate`."""
    metric = result["metric"]
    rows = [(metric, f"{text.score_interval(result, metric)} on {result['samples']} samples of {result['data']}")]
    if result["reference"] is not None:
        rows.append(("reference", text.score_interval(result["reference"], metric)))
        rows.append(("drop, paired", text.score_interval(result["drop"], metric)))
    _facts(rows)


def verification(result: Json) -> None:
    """`onnxcomp verify`."""
    _facts(
        [
            ("model", result["model"]["path"]),
            ("sha256", result["model"]["sha256"]),
            ("verified", ", ".join(result["checks"])),
        ]
    )


def exported(result: Json) -> None:
    """`onnxcomp export`."""
    _facts(
        [
            ("output", f"{result['output']['path']} ({text.size(result['output']['bytes'])})"),
            ("opset", str(result["opset"])),
            *[("input", _value(spec)) for spec in result["inputs"]],
            *[("output", _value(spec)) for spec in result["outputs"]],
        ]
    )
    table = _table("parity of ONNX Runtime with torch")
    table.add_column("sizes")
    table.add_column("max relative error", justify="right")
    for check in result["parity"]:
        sizes = check["sizes"]
        shown = ", ".join(f"{k}={v}" for k, v in sizes.items()) if isinstance(sizes, Mapping) else str(sizes)
        kind = ", real samples" if check.get("inputs") == "real" else ""
        _add(table, (shown or "as traced") + kind, f"{check['max_rel_error']:.1e}")
    _print(table)


def benchmark(result: Json) -> None:
    """`onnxcomp bench`."""
    crowds = [row for row in result["results"] if workers.is_workers(row)]
    grids = [*scenarios.grids(result["results"]), *placement.grids(result["results"]), *sweep.grids(result)]
    for grid in grids:
        _grid(grid.title, grid.head, grid.rows)
        for note in grid.notes:
            _print(note)
    if crowds:
        _grid(
            "workers; memory of all together, latency in ms [95 % interval]",
            workers.HEAD,
            workers.rows(crowds),
        )
        _grid("ratio to plain processes [95 % interval over rounds]", workers.AGAINST, workers.ratios(crowds))
        for note in workers.notes(crowds):
            _print(f"note: {note}")
    elif not grids:
        _latencies(result["results"])
    verdicts(result["comparison"])
    if "baseline" in result:
        gate = baseline.grid(result["baseline"])
        _grid(gate.title, gate.head, gate.rows)
        for note in gate.notes:
            _print(note)
    trust = result["trust"]
    _print(Text(f"trust: {trust['grade']}", style="bold"))
    for reason in trust["reasons"]:
        _print(f"  {reason['text']}; {reason['hint']}")


def _grid(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose cells are text already."""
    table = _table(title)
    for name in head:
        justify: Literal["left", "right"] = "left" if name in _WORDS else "right"
        table.add_column(name, justify=justify, no_wrap=name not in _WORDS)
    for row in rows:
        _add(table, *row)
    _print(table)


def _latencies(results: Sequence[Json]) -> None:
    table = _table("latency in ms [95 % interval]")
    for name in ("model", "provider", "batch", "threads", "p50", "p90", "p99", "samples/s", "memory"):
        table.add_column(name, justify="left" if name in ("model", "provider") else "right")
    for row in results:
        found = row["latency_ms"]
        _add(
            table, row["model"], row["provider"], str(row["batch"]), str(row["threads"]),
            *(text.latency(found[p]) for p in ("p50", "p90", "p99")),
            text.number(row["throughput"]), text.size(row["memory"]["pss_bytes"]),
        )  # fmt: skip
    _print(table)


def explanation(result: Json) -> None:
    """`onnxcomp explain`: findings, worst first, then kernels and the expectation."""
    rows = []
    for finding in result["findings"]:
        rows += [(finding["severity"], finding["what"]), ("  why", finding["why"]), ("  remedy", finding["remedy"])]
    kernels = ", ".join(f"{name} {count}" for name, count in result["integer_kernels"].items())
    expected = result["expectation"]
    _facts(
        [
            *(rows or [("findings", "none")]),
            ("integer kernels", kernels or "none"),
            ("expectation", f"{expected['speed']}, estimated, not measured: {expected['reason']}"),
        ]
    )


def demo(result: Json) -> None:
    """`onnxcomp demo`."""
    metric = result["metric"]
    table = _table(result["title"])
    for name in ("model", "size", "smaller", metric, "drop, paired", "speedup", "verdict", "gate"):
        table.add_column(_plain(name), justify="right" if name in ("size", "smaller") else "left")
    for row in result["models"]:
        _add(
            table,
            row["name"],
            text.size(row["bytes"]),
            f"{1 / row['size_ratio']:.2f}x",
            text.score_interval(row["score"], metric),
            text.score_interval(row["drop"], metric),
            "-" if row["speedup"] is None else text.ratio(row["speedup"]),
            Text(row["verdict"] or "-", style=_COLOURS.get(row["verdict"], "")),
            row["gate"],
        )
    _print(table)
    for row in result["refused"]:
        _print(f"refused: {row['name']}: {row['reason']}")
    _print(_plain(result["conclusion"], style="bold"))
    trust = result["bench"]["trust"]
    reasons = "; ".join(reason["text"] for reason in trust["reasons"])
    _print(f"trust in the timings: {trust['grade']}" + (f" ({reasons})" if reasons else ""))
    _print(f"report: {result['report']}")


def doctor(result: Json, *, stderr: bool = False) -> None:
    """`onnxcomp doctor`."""
    rows = [("ok" if f["ok"] else "WRONG", f"{f['name']}: {f['text']}") for f in result["findings"]]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    _facts([*rows, ("packages", packages)], stderr=stderr)


def verdicts(comparison: Sequence[Json]) -> None:
    """The table of comparisons, empty or not."""
    if not comparison:
        return
    table = _table("speedup = reference latency / candidate latency [95 % interval]")
    for name in ("candidate", "speedup", "verdict", "A/A control"):
        table.add_column(name)
    for row in comparison:
        control = row["aa"]
        _add(
            table,
            row["candidate"],
            text.ratio(row["speedup"]),
            Text(row["verdict"], style=_COLOURS[row["verdict"]]),
            f"{control['ratio']:.3f} {'ok' if control['ok'] else 'failed'}",
        )
    _print(table)
    for what in dict.fromkeys(row["what"] for row in comparison if "what" in row):
        _print(f"  compared: {what}; less is better")
    for row in comparison:
        for reason in row.get("reasons", ()):
            _print(f"  {row['candidate']}: {reason}")


def _facts(rows: Sequence[tuple[str, str]], *, stderr: bool = False) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        _add(table, name, value)
    _print(table, stderr=stderr)


def _table(title: str) -> Table:
    return Table(
        title=_plain(title, "bold"),
        box=None,
        pad_edge=False,
        header_style="dim",
    )


def _add(table: Table, *cells: str | Text) -> None:
    table.add_row(*(_plain(cell) if isinstance(cell, str) else cell for cell in cells))


def _plain(words: str, style: str = "") -> Text:
    """Names come from models: neither markup nor control characters in them may do anything."""
    return Text(re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", words), style=style)


def _print(what: Any, *, stderr: bool = False) -> None:
    what = _plain(what) if isinstance(what, str) else what
    if isinstance(what, Table) and what.title:
        title, what.title = what.title, None  # a title would be wrapped to the table's width
        _print(title, stderr=stderr)
    console = Console(stderr=stderr)
    if console.is_terminal:
        console.print(what)
        return
    console = Console(stderr=stderr, width=_PIPE_WIDTH)
    with console.capture() as printed:
        console.print(what)
    lines = "\n".join(line.rstrip() for line in printed.get().splitlines())
    print(lines, file=console.file)


def _value(spec: Json) -> str:
    shape = "unknown rank" if spec["shape"] is None else "[" + ", ".join(str(d or "?") for d in spec["shape"]) + "]"
    return f"{spec['name']}: {spec['dtype']} {shape}"
