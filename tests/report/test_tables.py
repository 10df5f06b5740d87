"""Each verb's printer prints the figures that it was given."""

from __future__ import annotations

import pytest
import results

from onnxcomp.report import effects, tables


@pytest.fixture
def printed(capsys):
    """What a printer writes to stdout, runs of blanks as one."""

    def call(printer, *arguments, **options):
        printer(*arguments, **options)
        out, err = capsys.readouterr()
        assert err == ""
        return [" ".join(line.split()) for line in out.splitlines()]

    return call


def inspection(**changes):
    return {
        "model": {
            "path": "m.onnx",
            "sha256": "cd" * 32,
            "bytes": 4321,
            "opset": {"ai.onnx": 17, "com.microsoft": 1},
            "ir_version": 9,
            "producer": "pytorch 2",
        },
        "parameters": 1050,
        "bytes_by_dtype": {"float32": 4200, "int64": 16},
        "ops": {"ai.onnx::Gemm": 2, "ai.onnx::Relu": 1},
        "initializers": {"count": 4, "bytes": 4216, "tied": 1, "zero_fraction": 0.125},
        "quantized": {"weights": 1, "of": 2},
        "macs": 1024,
        "macs_unknown_nodes": 0,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", None, 16]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": None}],
        **changes,
    }


def test_inspection(printed):
    assert printed(tables.inspection, inspection()) == [
        "model m.onnx",
        "size 4.32 kB",
        "sha256 " + "cd" * 32,
        "opset ai.onnx 17, com.microsoft 1 (IR 9)",
        "producer pytorch 2",
        "parameters 1,050",
        "MACs per sample 1,024",
        "stored tensors 4, 4.22 kB: float32 4.2 kB, int64 16 B",
        "tied, zeros 1 tensors equal another, 12.5 % zeros",
        "quantized 1 of 2 weights",
        "input x: float32 [batch, ?, 16]",
        "output y: float32 unknown rank",
        "operators: Gemm 2, Relu 1",
    ]


def test_inspection_of_the_unknown(printed):
    model = {**inspection()["model"], "producer": None}
    ops = {f"ai.onnx::Op{i:02}": i for i in range(1, 15)}
    stored = {"count": 0, "bytes": 0, "tied": 0, "zero_fraction": None}
    found = inspection(model=model, ops=ops, macs=None, macs_unknown_nodes=3, bytes_by_dtype={}, initializers=stored)
    lines = printed(tables.inspection, found)
    assert "producer -" in lines
    assert "MACs per sample - (without 3 nodes of unknown size)" in lines
    assert "stored tensors 0, 0 B: none" in lines
    assert "tied, zeros 0 tensors equal another, - zeros" in lines
    assert lines[-1].startswith("operators: Op14 14, Op13 13")
    assert lines[-1].endswith("Op03 3, and 2 more")


def test_record(printed):
    assert printed(tables.record, results.record()) == [
        "input runs/base.onnx (1.25 MB)",
        "output runs/small.onnx (350 kB)",
        "size 3.57x smaller",
        "quantize-static 3 of 4 weights in int8, 90.0 % of their bytes (1.3 s)",
        "left in float head, tail: too small",
    ]


def test_record_with_proof_fidelity_and_no_gain(printed):
    found = {**results.record(), "size_ratio": 1.0, "equivalence": 1.5e-7, "fidelity": results.fidelity()}
    lines = printed(tables.record, found)
    assert "size not smaller" in lines
    assert "proof outputs equal within 1.5e-07 of the largest value" in lines
    assert "fidelity on 321 samples of test.npz" in lines


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            results.quantized(reduce_range=True),
            "3 of 4 weights in int8, 90.0 % of their bytes, 7 bits on this CPU",
        ),
        (
            results.quantized(total_weight_bytes=0, quantized_weight_bytes=0),
            "3 of 4 weights in int8, 0.0 % of their bytes",
        ),
        (
            results.quantized(
                bits=4, gptq={"weights": 2, "of": 3, "output_error": {"nearest": 0.0067, "gptq": 0.00113}}
            ),
            (
                "3 of 4 weights in int4, 90.0 % of their bytes; 2 of 3 rounded with error feedback: "
                "error of their outputs 0.0067 -> 0.0011"
            ),
        ),
        (
            {
                "removed_parameters": 5000,
                "parameters": 10000,
                "label": "download size only",
                "download_bytes": {"before": 40_000, "after": 22_000},
            },
            "5,000 of 10,000 weights set to zero; download size only: compressed 40 kB -> 22 kB",
        ),
        (
            {"nodes": {"before": 9, "after": 7}, "removed": {"ai.onnx::Identity": 3}, "added": {"ai.onnx::Gemm": 1}},
            "9 -> 7 nodes: -3 Identity, +1 Gemm",
        ),
        ({"nodes": {"before": 9, "after": 9}, "removed": {}, "added": {}}, "9 -> 9 nodes: initializers only"),
        (
            {
                "equivalence_error": 1.6e-7,
                "units": {"removed": 128, "of": 448},
                "importance": "elimination",
                "removed_parameters": 466,
                "parameters": 1000,
                "macs_ratio": 0.433,
                "repair": {
                    "chosen": ["sequential"],
                    "samples": {"fitted": 328, "judged": 82},
                    "fidelity": {
                        "before": {"outputs": {"a": {"sqnr_db": -1.26}, "b": {"sqnr_db": None}}},
                        "after": {"outputs": {"a": {"sqnr_db": 15.05}, "b": {"sqnr_db": 16.0}}},
                    },
                },
            },
            (
                "128 of 448 units cut, ranked by elimination: 46.6 % of the parameters gone, 43.3 % of the MACs left; "
                "equal to the model with zeros there within 1.6e-07; "
                "repaired (sequential): outputs -1.3 -> 15.1 dB on 82 samples"
            ),
        ),
        ({"opset": {"before": 11, "after": 20}}, "opset 11 -> 20"),
        ({"joined": 4, "bytes": 12}, "joined 4, bytes 12"),
        (
            {"tied": 4, "bytes_saved": 12_000, "transposed": [{"kept": "a", "removed": ["b"], "bytes": 800}]},
            "4 stored tensors went, 1 of them as transposes: 12 kB saved",
        ),
    ],
)
def test_effect(found, expected):
    assert effects.effect(found) == expected


def test_skipped_groups_nodes_by_reason_and_counts_the_rest():
    skipped = [{"node": f"n{i}", "reason": "small"} for i in range(10)] + [{"node": "z", "reason": "shared"}]
    assert effects.skipped({"skipped": skipped}) == [
        ("n0, n1, n2, n3, n4, n5, n6, n7 and 2 more", "small"),
        ("z", "shared"),
    ]
    assert effects.skipped({}) == []


def test_fidelity(printed):
    assert printed(tables.fidelity, results.fidelity()) == [
        "fidelity on 321 samples of test.npz",
        "output SQNR cosine mean cosine p1 max abs max rel",
        "noisy 31.4 dB 0.9987 0.9876 0.125 0.125",
        "same equal 0.9987 0.9876 0 0",
        "broken none 0.9987 0.9876 NaN NaN",
        "same class: 97.53 % [96.42, 98.64] (output noisy)",
    ]


def test_fidelity_without_classes(printed):
    lines = printed(tables.fidelity, {**results.fidelity(), "agreement": None})
    assert not any("same class" in line for line in lines)


def test_fidelity_of_embeddings(printed):
    near = {"nearest": results.interval(0.81, 0.02), "nearest_output": "noisy"}
    assert (
        printed(tables.fidelity, results.fidelity() | near)[-1] == "same nearest: 81.00 % [79.00, 83.00] (output noisy)"
    )


def test_score(printed):
    assert printed(tables.score, results.score()) == [
        "accuracy 94.22 % [92.89, 95.55] on 599 samples of test.npz",
        "reference 95.33 % [93.89, 96.77]",
        "drop, paired 1.11 % [0.56, 1.66]",
    ]
    alone = {**results.score("mse"), "reference": None, "drop": None}
    assert printed(tables.score, alone) == ["mse 0.9422 [0.9289, 0.9555] on 599 samples of test.npz"]


def test_verification(printed):
    found = {"model": {"path": "m.onnx", "sha256": "ee" * 32}, "checks": ["hash", "loads"]}
    assert printed(tables.verification, found) == ["model m.onnx", "sha256 " + "ee" * 32, "verified hash, loads"]


def test_exported(printed):
    found = {
        "output": {"path": "m.onnx", "bytes": 539},
        "opset": 20,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", None]}],
        "parity": [
            {"sizes": {"batch": 2, "seq": 5}, "max_rel_error": 1.26e-7},
            {"sizes": {}, "max_rel_error": 0.0},
        ],
    }
    assert printed(tables.exported, found) == [
        "output m.onnx (539 B)",
        "opset 20",
        "input x: float32 [batch, 4]",
        "output y: float32 [batch, ?]",
        "parity of ONNX Runtime with torch",
        "sizes max relative error",
        "batch=2, seq=5 1.3e-07",
        "as traced 0.0e+00",
    ]


def test_benchmark(printed):
    lines = printed(tables.benchmark, results.bench())
    assert lines[:3] == [
        "latency in ms [95 % interval]",
        "model provider batch threads p50 p90 p99 samples/s memory",
        "/runs/base.onnx cpu 1 2 1.23 [1.11, 1.36] 2.47 [1.23, ∞] not estimable (needs 368 runs) 12,346 98.7 MB",
    ]
    assert "/runs/small.onnx 2.01x [1.90, 2.12] faster 1.004 ok" in lines
    assert "/runs/small.onnx: seventeen rounds agreed" in lines
    assert lines[-2:] == ["trust: fair", "the load was 3.1; stop other programs"]


def test_benchmark_of_one_model_with_unknown_memory(printed):
    found = results.bench()
    found["results"] = found["results"][:1]
    found["results"][0]["memory"]["pss_bytes"] = None
    found["comparison"] = []
    lines = printed(tables.benchmark, found)
    assert lines[2].endswith("12,346 -")
    assert not any("speedup" in line for line in lines)


def test_a_failed_control_is_said(printed):
    found = results.bench()["comparison"]
    found[0]["aa"] = {"ratio": 1.234, "ok": False}
    assert "1.234 failed" in " ".join(printed(tables.verdicts, found))


def test_explanation(printed):
    result = {
        "findings": [
            {"severity": "high", "what": "2 run as ConvInteger: a, b", "why": "slow", "remedy": "quantize statically"},
            {"severity": "low", "what": "1 fused", "why": "slower", "remedy": "measure"},
        ],
        "integer_kernels": {"ConvInteger": 2, "QGemm": 1},
        "expectation": {"speed": "slower", "reason": "90% in ConvInteger"},
    }
    assert printed(tables.explanation, result) == [
        "high 2 run as ConvInteger: a, b",
        "why slow",
        "remedy quantize statically",
        "low 1 fused",
        "why slower",
        "remedy measure",
        "integer kernels ConvInteger 2, QGemm 1",
        "expectation slower, estimated, not measured: 90% in ConvInteger",
    ]


def test_explanation_of_a_float_model(printed):
    expected = {"speed": "about equal", "reason": "nothing in it is quantized"}
    lines = printed(tables.explanation, {"findings": [], "integer_kernels": {}, "expectation": expected})
    assert lines[:2] == ["findings none", "integer kernels none"]


def test_demo(printed):
    lines = printed(tables.demo, results.demo())
    assert "float32 1.25 MB 1.00x 99.11 % [98.69, 99.53] - - - reference" in lines
    candidate = next(line for line in lines if line.startswith("static int8"))
    assert candidate.startswith("static int8 350 kB 3.57x 98.77 % [98.26, 99.28] 0.34 % [0.13, 0.55] ")
    assert candidate.endswith(" 1.37x [1.29, 1.45] faster passed, not certain")
    assert "refused: dynamic int8: larger than its input" in lines
    assert lines[-3:] == [
        "It is 1.37 times faster.",
        "trust in the timings: fair (the load was 3.1)",
        "report: runs/report.html",
    ]


def test_doctor(printed, capsys):
    found = {
        "findings": [
            {"ok": True, "name": "cpu", "text": "works"},
            {"ok": False, "name": "two builds", "text": "remove one"},
        ],
        "packages": {"onnx": "1.98", "numpy": "2.9"},
    }
    expected = ["ok cpu: works", "WRONG two builds: remove one", "packages onnx 1.98, numpy 2.9"]
    assert printed(tables.doctor, found) == expected
    tables.doctor(found, stderr=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert [" ".join(line.split()) for line in err.splitlines()] == expected


def test_names_are_not_read_as_markup(printed):
    found = results.record()
    found["output"]["path"] = "[red]small[/red].onnx"
    assert "output [red]small[/red].onnx (350 kB)" in printed(tables.record, found)
    compared = results.bench()
    compared["results"][0]["model"] = "[/bold]base.onnx"
    assert any(line.startswith("[/bold]base.onnx cpu") for line in printed(tables.benchmark, compared))
    judged = results.demo("[/bold]:cat:")
    judged["metric"] = judged["title"] = "[/red]m.py:fn"
    text = " ".join(printed(tables.demo, judged))
    assert "[/bold]:cat: 350 kB" in text
    assert text.count("[/red]m.py:fn") == 2


def test_control_characters_of_names_do_not_reach_the_terminal(printed):
    evil = "a\x1b[2J\nb\x9b"
    spec = {"name": evil, "dtype": "float32", "shape": [evil]}
    found = inspection(inputs=[spec], ops={evil: 1})
    compared = {**results.fidelity(), "outputs": {evil: results.fidelity()["outputs"]["same"]}, "data": evil}
    lines = [*printed(tables.inspection, found), *printed(tables.fidelity, compared)]
    assert not {"\x1b", "\x9b"} & set("".join(lines))
    assert any(line.startswith("a [2J b") for line in lines)
