"""Rows of every scenario of a benchmark, as `onnxcomp bench --json` prints them, with round figures."""

from __future__ import annotations

from typing import Any

import results

Json = dict[str, Any]


def percentile(value: float) -> Json:
    return {"value": value, "low": 0.9 * value, "high": 1.2 * value, "estimable": True, "needed": 9}


def row(scenario: str, model: str = "/m/net.onnx", **more: Any) -> Json:
    return {
        "model": model,
        "provider": "cpu",
        "scenario": scenario,
        "batch": 1,
        "threads": 1,
        "latency_ms": {name: percentile(ms) for name, ms in (("p50", 2.0), ("p90", 4.0), ("p95", 5.0), ("p99", 7.5))},
        "throughput": 1234.5,
        "memory": {"pss_bytes": 50_000_000, "uss_bytes": 40_000_000, "anonymous_bytes": 40_000_000,
                   "file_bytes": 10_000_000, "peak_bytes": 60_000_000},
        "notes": [],
        **more,
    }  # fmt: skip


def latency(count: int = 500, model: str = "/m/net.onnx", **more: Any) -> Json:
    wall = [1_000_000 + 1_000 * ((7919 * i) % 997) for i in range(count)]
    return row("latency", model, samples={"wall_ns": wall, "cpu_ns": wall}, **more)


def cold() -> Json:
    starts = [{"total": 300.0 + i, "start": 200.0 + i, "load": 80.0, "first": 20.0, "second": 2.0} for i in range(7)]
    phases = ("total", "start", "load", "first", "second")
    return row("cold", page_cache="warm", processes=7, starts=starts,
               cold_ms={phase: percentile(starts[0][phase]) for phase in phases})  # fmt: skip


def server() -> Json:
    trials = [
        {"rate": rate, "utilisation": 0.5, "p99_ms": percentile(rate / 50), "verdict": said, "reason": ""}
        for rate, said in ((300.0, "met"), (420.0, "missed"), (360.0, "undecided"))
    ]
    return row(
        "server", workers=2, kind="threads", rate=300.0, achieved_rate=299.0, utilisation=0.5,
        queue={"mean": 0.5, "max": 9}, lateness_ms={"p50": 0.01, "p99": 0.2}, errors=0, abandoned=0,
        slo={"p99_ms": 7.0, "verdict": "met", "reason": "", "highest_rate": 300.0},
        search={"trials": trials, "failed_rate": 360.0}, preview=None, preview_rate=None,
        samples={"wall_ns": [1_000_000 * (1 + i % 7) for i in range(400)]},
    )  # fmt: skip


def throughput() -> list[Json]:
    return [
        row("throughput", batch=batch, workers=1, kind="threads", throughput=100.0 * batch**0.5,
            throughput_interval={"low": 90.0, "high": 410.0}, cpu_ms_per_run=2.0, best=batch == 16,
            of_best=results.interval(0.5, 0.1))
        for batch in (1, 4, 16)
    ]  # fmt: skip


def workers() -> list[Json]:
    return [
        row("workers", workers=count, kind=kind, cpu_ms_per_run=2.0, open_seconds=0.1, outputs_equal=True,
            same_outputs=True, against={})
        for count, kind in ((1, "processes"), (4, "processes"), (4, "threads"), (4, "pack"))
    ]  # fmt: skip


def sweep() -> list[Json]:
    return [
        row("sweep", batch=batch, threads=threads, shape={}, spinning=threads > 1, optimization="all",
            cpu_ms_per_sample=results.interval(cpu, 0.1), samples_per_core_second=results.interval(500.0, 9.0),
            front=front, front_p99=front, aa={"ratio": 1.0, "low": 0.9, "high": 1.1, "ok": True}, memory=None,
            samples=[{"wall_ns": [1], "cpu_ns": [1]}])
        for batch, threads, cpu, front in ((1, 1, 2.0, True), (1, 2, 3.0, False), (8, 1, 1.0, True))
    ]  # fmt: skip


def document(*rows: Json, comparison: tuple[Json, ...] = (), **more: Any) -> Json:
    return {
        **results.bench(),
        "results": list(rows),
        "comparison": list(comparison),
        **more,
    }


def gated(verdict: str = "regression") -> Json:
    found = {
        "model": "/m/net.onnx", "scenario": "latency", "provider": "cpu", "batch": 1, "threads": 1,
        "method": "stored", "indicative": True, "what": "lower quartile of the CPU time of a run",
        "speedup": results.interval(0.913, 0.011), "sessions": [20, 19], "verdict": verdict,
        "reasons": ["why it is so"] if verdict == "undecided" else [], "aa": None,
    }  # fmt: skip
    return {
        "path": "/ci/old.json", "tolerance": 0.02, "verdict": verdict, "differences": [], "rows": [found],
        "missing": [{"model": "/m/other.onnx", "scenario": "latency", "provider": "cpu", "batch": 8, "threads": 1}],
    }  # fmt: skip


def plan() -> Json:
    """One model, two options, the second of which was refused."""
    option = {
        "model": "/m/net.onnx", "kind": "processes", "workers": 2, "threads": 1, "batch": 1, "spinning": False,
        "highest_rate": {"value": 310.0, "low": 250.0, "high": 9e6},
        "need": {"machines": 1, "workers": 2, "extrapolated": False, "preview": {"p99_ms": 8.1}},
        "verified": {"p99_ms": percentile(7.5)}, "verdict": "met", "refused": None,
        "memory": {"pss_bytes": 50_000_000}, "cpu_seconds_per_request": 0.002,
        "cost_per_million": results.interval(0.14, 0.01), "cost_per_million_at_full_use": None,
    }  # fmt: skip
    nothing = dict.fromkeys(("highest_rate", "need", "verified", "verdict", "cpu_seconds_per_request",
                             "cost_per_million"))  # fmt: skip
    refused = {**option, **nothing, "workers": 9, "memory": {"pss_bytes": None}, "refused": "only two cores"}
    session = {"optimization": "all", "config": {}, "disabled_optimizers": []}
    best = {**option, "machines": 1, "session": session, "pack_command": None}
    return {
        "schema": "onnxcomp/plan/1",
        "objective": {"rate": 200.0, "slo_p99_ms": 10.0, "cores": 2},
        "plans": [{"model": "/m/net.onnx", "options": [option, refused], "notes": ["a note"], "verdict": "met",
                   "reason": "", "nearest": None}],
        "comparison": [{"statement": "net needs 2 workers where other needs 4"}],
        "best": best, "notes": [], "trust": results.bench()["trust"],
    }  # fmt: skip
