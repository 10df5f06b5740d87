"""`onnxcomp bench --scenario server`: exit codes, tables and the page; and the tables of the other new scenarios."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import builders
import pytest

from onnxcomp.cli.bench import command
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.report import page


def percentile(value, *, estimable=True):
    if not estimable:
        return {"value": None, "low": None, "high": None, "estimable": False, "needed": 912, "samples": 9, "maximum": 1}
    return {"value": value, "low": 0.9 * value, "high": 1.2 * value, "estimable": True, "needed": 9, "samples": 99}


def row(scenario, **more):
    return {
        "model": "/models/net.onnx",
        "provider": "cpu",
        "scenario": scenario,
        "batch": 2,
        "threads": 1,
        "workers": 2,
        "kind": "threads",
        "latency_ms": {p: percentile(v) for p, v in (("p50", 2.0), ("p90", 4.0), ("p95", 5.0), ("p99", 7.5))},
        "throughput": 1234.5,
        "memory": {"pss_bytes": 50_000_000, "peak_bytes": 60_000_000},
        "notes": ["2 workers share 1 core"],
        **more,
    }


def server(verdict, *, search=None):
    slo = {"p99_ms": 10.0, "verdict": verdict, "reason": "" if verdict == "met" else "so it was", "highest_rate": None}
    return row(
        "server",
        rate=617.25,
        achieved_rate=616.0,
        utilisation=0.62,
        queue={"mean": 0.8, "max": 12},
        lateness_ms={"p50": 0.01, "p99": 0.21},
        errors=0,
        abandoned=0,
        slo=None if verdict is None else slo | {"highest_rate": 617.25 if search else None},
        search=search,
        preview={"p99_ms": 7.1},
        preview_rate=700.0,
        samples={"wall_ns": [1_000_000, 2_000_000, 8_000_000]},
    )


def document(*rows):
    return {
        "environment": {
            "cpu": "a CPU", "cores": 2, "isa": ["avx2"], "memory_bytes": 1 << 33, "kernel": "6.1",
            "load_average": [0.1, 0.1, 0.1], "packages": {}, "python": "3.11",
            "ort": {"version": "1.32", "distributions": ["onnxruntime"], "telemetry": False},
        },
        "trust": {"grade": "good", "reasons": []},
        "results": list(rows),
        "comparison": [],
    }  # fmt: skip


@pytest.fixture
def answers(monkeypatch):
    """What the measurement would have said; no model is opened."""

    def answer(*rows):
        monkeypatch.setattr(Shell, "work", lambda self, fn, *args, **kwargs: document(*rows))

    return answer


def run(*arguments):
    """The exit code."""
    try:
        command.main(["net.onnx", *arguments], prog_name="bench", standalone_mode=False)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["met"], 0),
        (["missed"], 5),
        (["undecided"], 9),
        ([None], 0),
        (["met", "undecided"], 9),
        (["undecided", "missed"], 5),
    ],
)
def test_the_verdict_is_the_exit_code_and_the_result_is_printed(answers, capsys, verdicts, code):
    answers(*(server(v) for v in verdicts))
    assert run("--scenario", "server", "--rate", "617", "--json") == code
    printed = json.loads(capsys.readouterr().out)
    assert [r["slo"] and r["slo"]["verdict"] for r in printed["results"]] == verdicts


def test_the_table_of_a_search(answers, capsys):
    trials = [
        {"rate": 617.25, "verdict": "met", "reason": "", "utilisation": 0.6, "p99_ms": percentile(7.5)},
        {"rate": 700.0, "verdict": "undecided", "reason": "too few", "utilisation": 0.7,
         "p99_ms": percentile(1, estimable=False)},
    ]  # fmt: skip
    answers(server("met", search={"converged": False, "failed_rate": 700.0, "trials": trials}))
    assert run("--scenario", "server", "--slo-p99", "10") == 0
    out = capsys.readouterr().out
    assert re.search(r"net\.onnx\s+2\s+2 threads\s+617\.2\s+616\s+62 %\s+2\.00 \[1\.80, 2\.40\]", out)
    assert "7.50 [6.75, 9.00]" in out
    assert "0.8, 12" in out
    words = " ".join(out.split())  # long lines are wrapped
    assert "p99 within 10 ms: met up to 617.2 requests a second" in out
    assert "a simulated line of these run times gives p99 7.1 ms at this rate, and 700 requests a second" in words
    assert re.search(r"700\s+70 %\s+needs 912\s+undecided\s+too few", out)
    assert "2 workers share 1 core" in out


def cold(cache):
    cold_ms = {phase: percentile(v) for v, phase in enumerate(("total", "start", "load", "first", "second"), 100)}
    return row("cold", page_cache=cache, processes=7, cold_ms=cold_ms, throughput=None)


def throughput(batch, rate, ratio):
    return row(
        "throughput", batch=batch, throughput=rate, throughput_interval={"low": rate - 5, "high": rate + 5},
        of_best={"value": ratio, "low": ratio - 0.05, "high": ratio + 0.05}, best=ratio == 1, cpu_ms_per_run=1.5,
    )  # fmt: skip


def test_the_table_of_cold_starts(answers, capsys):
    answers(cold("warm"), cold("dropped"))
    assert run("--scenario", "cold") == 0
    out = capsys.readouterr().out
    assert re.search(r"net\.onnx\s+dropped\s+2\s+1\s+7\s+100 \[90\.0, 120\]\s+101", out)


def test_the_table_of_throughput_names_the_best_and_what_may_be_as_good(answers, capsys):
    answers(throughput(1, 500.0, 0.5), throughput(4, 980.0, 0.98), throughput(2, 1000.0, 1))
    assert run("--scenario", "throughput") == 0
    out = capsys.readouterr().out
    best = next(line for line in out.splitlines() if "best batch" in line)
    assert "best batch 2, intra-op threads 1, callers 2, 1,000 samples/s" in best
    assert "no difference measured to (batch 4, intra-op threads 1, callers 2)" in best
    assert "batch 1," not in best
    assert "1,000 [995, 1,005]" in out
    assert "0.50x" in out


def test_the_page_shows_the_scenarios():
    for title, found in (
        ("Server", [server("met")]),
        ("Cold start", [cold("warm")]),
        ("Throughput", [throughput(2, 10.0, 1)]),
    ):
        html = page.build([{"schema": "onnxcomp/bench/1", **document(*found)}])
        assert f"<h2>{title}</h2>" in html
        assert "net.onnx" in html
        assert "2 workers share 1 core" in html
    html = page.build([{"schema": "onnxcomp/bench/1", **document(server("missed"))}])
    assert "when a request was due" in html
    assert "p99 within 10 ms: missed (so it was)" in html


def test_one_real_run(tmp_path):
    model = builders.save(builders.mlp(), tmp_path / "mlp.onnx")
    line = [sys.executable, "-m", "onnxcomp", "bench", model, "--scenario", "server", "--rate", "200"]
    done = subprocess.run([*line, "--seconds", "1", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["results"]
    assert one["rate"] == 200
    assert one["slo"] is None


@pytest.mark.parametrize("options", [("--scenario", "server"), ("--slo-p99", "5")])
def test_usage(tmp_path, options):
    model = builders.save(builders.mlp(), tmp_path / "mlp.onnx")
    with pytest.raises(UsageError, match="rate"):
        command.main([str(model), *options], prog_name="bench", standalone_mode=False)
