"""The tables of the scenario 'workers' print the figures they were given, in the terminal and on the page."""

from __future__ import annotations

import results

from onnxcomp.report import page, tables, workers


def row(kind: str, count: int, **changes):
    base = {**results.bench()["results"][0], "scenario": "workers", "kind": kind, "workers": count}
    del base["samples"]
    memory = {f"{name}_bytes": 1_000_000 * n for n, name in enumerate(("pss", "uss", "peak"), 401)}
    return {
        **base, "memory": memory, "cpu_ms_per_run": 7.654, "open_seconds": 0.345, "outputs_equal": True,
        "same_outputs": True, "against": {}, "notes": ["they share 2 cores"], **changes,
    }  # fmt: skip


def against(count: int, **changes):
    figures = ("latency_cpu", "latency_wall", "throughput", "pss", "uss", "peak")
    found = {name: results.interval(1.0 + n / 10, 0.01) for n, name in enumerate(figures, 1)}
    return {"model": "/runs/base.onnx", "kind": "processes", "workers": count, **found, **changes}


def document(**changes):
    one = row("processes", 1, against={"processes": against(4)})
    other = against(4, peak=None, model="/runs/plain.onnx")
    four = row("threads", 4, against={"one": against(1), "processes": other}, same_outputs=False)
    return {**results.bench(), "results": [one, four], **changes}


def test_the_terminal_shows_every_way_and_its_ratios(capsys):
    tables.benchmark(document())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    figures = "1 2 12,346 1.23 [1.11, 1.36] not estimable (needs 368 runs) 7.65 401 MB 402 MB 403 MB 0.34"
    assert f"base.onnx, 1 process {figures} equal" in lines
    assert f"base.onnx, 4 threads {figures} DIFFER" in lines
    ratios = [line for line in lines if line.startswith("base.onnx, 4 threads") and "12,346" not in line]
    figures = "1.10x [1.09, 1.11] 1.30x [1.29, 1.31] 1.40x [1.39, 1.41] 1.50x [1.49, 1.51]"
    assert ratios == [
        f"base.onnx, 4 threads 1 process {figures} 1.60x [1.59, 1.61]",
        f"base.onnx, 4 threads plain.onnx, 4 processes {figures} -",
    ]
    assert lines.count("note: they share 2 cores") == 1
    assert sum(line.startswith("base.onnx, 1 process") for line in lines) == 1  # not the inverse ratios
    assert "trust: fair" in lines


def test_the_page_shows_them_too():
    html = page.build([document()])
    assert "<h2>Workers</h2>" in html
    for text in ("base.onnx, 4 threads", "402 MB", "1.50x [1.49, 1.51]", "they share 2 cores"):
        assert text in html


def test_ways_have_names():
    ways = [("processes", 1), ("processes", 4), ("threads", 4), ("pack", 4)]
    assert [workers.way(row(*way)) for way in ways] == [
        "base.onnx, 1 process", "base.onnx, 4 processes", "base.onnx, 4 threads", "base.onnx, 4 on a pack",
    ]  # fmt: skip
