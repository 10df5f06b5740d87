"""Results as the verbs print them, one function each; the figures are told apart by their digits."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def interval(value: float, half: float) -> Json:
    return {"value": value, "low": value - half, "high": value + half}


def percentile(value: float | None, low: float | None = None, high: float | None = None) -> Json:
    return {"value": value, "low": low, "high": high, "estimable": value is not None, "needed": 368}


def step(name: str = "quantize-static", effect: Json | None = None, notes: tuple[Json, ...] = ()) -> Json:
    return {"name": name, "options": {}, "seconds": 1.26, "effect": effect or quantized(), "notes": list(notes)}


def quantized(**changes: Any) -> Json:
    return {
        "quantized_weights": 3,
        "total_weights": 4,
        "quantized_weight_bytes": 900,
        "total_weight_bytes": 1000,
        "skipped": [{"node": "head", "reason": "too small"}, {"node": "tail", "reason": "too small"}],
        **changes,
    }


def environment() -> Json:
    return {
        "cpu": "Some CPU 9000",
        "cores": 6,
        "isa": ["avx2", "vnni"],
        "memory_bytes": 16_000_000_000,
        "kernel": "6.1.0",
        "load_average": [0.25, 0.5, 0.75],
        "ort": {"version": "1.99.0", "distributions": ["onnxruntime"], "telemetry": False},
        "packages": {"onnx": "1.98"},
        "python": "3.11.7",
    }


def bench() -> Json:
    def result(model: str, value: float) -> Json:
        return {
            "model": model,
            "provider": "cpu",
            "batch": 1,
            "threads": 2,
            "latency_ms": {
                "p50": percentile(value, value * 0.9, value * 1.1),
                "p90": percentile(2 * value, value, None),
                "p95": percentile(3 * value, value, None),
                "p99": percentile(None),
            },
            "throughput": 12_345.6,
            "memory": {"pss_bytes": 98_700_000},
            "samples": {"wall_ns": [1_000_000, 1_100_000, 1_200_000]},
        }

    return {
        "schema": "onnxcomp/bench/1",
        "environment": environment(),
        "trust": {"grade": "fair", "reasons": [{"text": "the load was 3.1", "hint": "stop other programs"}]},
        "results": [result("/runs/base.onnx", 1.234), result("/runs/small.onnx", 0.617)],
        "comparison": [
            {
                "candidate": "/runs/small.onnx",
                "reference": "/runs/base.onnx",
                "speedup": interval(2.01, 0.11),
                "verdict": "faster",
                "aa": {"ratio": 1.004, "ok": True},
                "rounds": 17,
                "reasons": ["seventeen rounds agreed"],
            }
        ],
    }


def demo(name: str = "static int8") -> Json:
    measured = bench()
    return {
        "schema": "onnxcomp/demo/1",
        "title": "Digits",
        "metric": "accuracy",
        "max_drop": 0.005,
        "models": [
            {
                "name": "float32",
                "bytes": 1_250_000,
                "size_ratio": 1.0,
                "score": interval(0.9911, 0.0042),
                "drop": None,
                "speedup": None,
                "verdict": None,
                "gate": "reference",
                "passes": [],
            },
            {
                "name": name,
                "bytes": 350_000,
                "size_ratio": 0.28,
                "score": interval(0.9877, 0.0051),
                "drop": interval(0.0034, 0.0021),
                "speedup": interval(1.37, 0.08),
                "verdict": "faster",
                "gate": "passed, not certain",
                "passes": [step(notes=({"node": "stem", "reason": "kept symmetric"},))],
            },
        ],
        "refused": [{"name": "dynamic int8", "class": "NoEffectError", "reason": "larger than its input"}],
        "bench": measured,
        "winner": name,
        "conclusion": "It is 1.37 times faster.",
        "report": "runs/report.html",
    }


def record(verb: str = "quantize") -> Json:
    return {
        "schema": f"onnxcomp/{verb}/1",
        "input": {"path": "runs/base.onnx", "sha256": "aa" * 32, "bytes": 1_250_000},
        "output": {"path": "runs/small.onnx", "sha256": "bb" * 32, "bytes": 350_000},
        "size_ratio": 0.28,
        "passes": [step()],
        "equivalence": None,
        "fidelity": None,
        "warnings": ["the data was scarce"],
    }


def fidelity() -> Json:
    def output(sqnr: float | None, worst: float | None) -> Json:
        return {"sqnr_db": sqnr, "cosine_mean": 0.9987, "cosine_p1": 0.9876, "max_abs": worst, "max_rel": worst}

    return {
        "schema": "onnxcomp/compare/1",
        "samples": 321,
        "data": "test.npz",
        "outputs": {"noisy": output(31.42, 0.125), "same": output(None, 0.0), "broken": output(None, None)},
        "agreement": interval(0.9753, 0.0111),
        "agreement_output": "noisy",
    }


def score(metric: str = "accuracy") -> Json:
    return {
        "schema": "onnxcomp/evaluate/1",
        "metric": metric,
        **interval(0.9422, 0.0133),
        "samples": 599,
        "data": "test.npz",
        "reference": interval(0.9533, 0.0144),
        "drop": interval(0.0111, 0.0055),
    }
