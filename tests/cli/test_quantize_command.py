"""`onnxcomp quantize`: what stands before the quantization, the budget, and what cannot go together."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from test_cli import fails, ok, run

from onnxcomp.runtime import open_session

KEYS = {
    "schema", "input", "output", "size_ratio", "passes", "fidelity", "equivalence", "score", "speed", "data",
    "warnings", "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("quantize")
    builders.save(builders.mlp(width=256), place / "mlp.onnx")
    builders.save(builders.cnn(), place / "cnn.onnx")
    builders.save(builders.encoder(), place / "encoder.onnx")
    # positive, so that means matter
    x, more = np.abs(builders.samples(80, 16)), np.abs(builders.samples(400, 16, seed=1))
    scores = open_session(place / "mlp.onnx").run({"x": more})["y"]
    np.savez(place / "x.npz", x=x)
    np.savez(place / "labelled.npz", x=more, labels=scores.argmax(1))
    np.savez(place / "images.npz", image=builders.samples(64, 3, 8, 8))
    np.savez(place / "ids.npz", ids=np.random.default_rng(0).integers(0, 50, (64, 6)))
    return place


def quantize(folder, tmp_path, *arguments, model="mlp", out="q.onnx"):
    """The record; nothing is timed unless the arguments say so."""
    timed = () if {"--measure", "--no-measure"} & set(arguments) else ("--no-measure",)
    return ok("quantize", folder / f"{model}.onnx", "-o", tmp_path / out, *timed, *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--mode", "dynamic", "--smooth"), "--smooth needs --data"),
        (("--mode", "dynamic", "--correct-bias"), "--correct-bias needs --data"),
        (("--mode", "static"), "--mode static needs --data"),
        (("--mode", "static", "--data", "x.npz", "--max-drop", "1%"), "--max-drop and --eval go together"),
        (("--mode", "static", "--data", "x.npz", "--eval", "x.npz"), "--max-drop and --eval go together"),
        (("--mode", "static", "--data", "x.npz", "--metric", "f1"), "--metric is for --max-drop"),
        (
            ("--mode", "static", "--data", "x.npz", "--max-drop", "1%", "--eval", "x.npz", "--max-node-error", "0.1"),
            "both choose nodes",
        ),
        (("--mode", "weights", "--data", "x.npz", "--smooth"), "--smooth does nothing for --mode weights"),
        (("--mode", "weights", "--data", "x.npz", "--correct-bias"), "--correct-bias does nothing"),
        (("--mode", "weights", "--max-drop", "1%", "--eval", "x.npz"), "not an option of --mode weights"),
        (("--mode", "dynamic", "--calibration", "mse"), "--calibration is not an option of --mode dynamic"),
        (("--mode", "static", "--data", "x.npz", "--bits", "4"), "--bits is not an option of --mode static"),
        (("--mode", "weights", "--per-tensor"), "--per-channel is not an option of --mode weights"),
        (("--mode", "dynamic", "--statistics", "kept"), "--statistics has nothing to keep"),
        (("--mode", "weights", "--statistics", "kept"), "--statistics has nothing to keep"),
        (("--mode", "weights", "--data", "x.npz", "--no-gptq", "--statistics", "kept"), "has nothing to keep"),
        (("--mode", "dynamic", "--max-drop", "much", "--eval", "labelled.npz"), "much"),
        (("--mode", "dynamic", "--op-types", "MatMull"), "MatMull"),
    ],
)
def test_what_cannot_be(arguments, text, folder, tmp_path):
    paths = [folder / a if a.endswith(".npz") else a for a in arguments]
    fails(2, "quantize", folder / "mlp.onnx", "-o", tmp_path / "q.onnx", *paths, text=text)
    assert not list(tmp_path.iterdir())


def test_json_keys(folder, tmp_path):
    record = quantize(folder, tmp_path, "--mode", "dynamic", "--measure")
    assert record.keys() == KEYS
    assert record["schema"] == "onnxcomp/quantize/1"
    speed = record["speed"]
    assert speed.keys() == {"ratio", "low", "high", "pairs", "samples", "threads", "provider"}
    assert 0 < speed["low"] <= speed["ratio"] <= speed["high"]


def test_no_measure_and_explain(folder, tmp_path):
    record = quantize(folder, tmp_path, "--mode", "static", "--data", folder / "x.npz", "--no-measure", "--explain")
    assert record["speed"] is None
    assert record.keys() == KEYS | {"explanation"}
    assert sum(record["explanation"]["integer_kernels"].values()) > 0


def test_what_stands_before_runs_in_order(folder, tmp_path):
    steps = ("--correct-bias", "--smooth", "--equalize", "--exclude", "fc2", "--per-tensor", "--reduce-range")
    record = quantize(folder, tmp_path, "--mode", "static", "--data", folder / "x.npz", *steps)
    names = [step["name"] for step in record["passes"]]
    assert names == ["equalize", "smooth", "correct-bias", "quantize-static"]
    assert all(step["options"]["exclude"] == ["fc2"] for step in record["passes"])
    corrected, quantized = record["passes"][2:]
    assert (corrected["options"]["per_channel"], corrected["options"]["reduce_range"]) == (False, True)
    assert (quantized["options"]["per_channel"], quantized["options"]["reduce_range"]) == (False, True)
    assert [entry["node"] for entry in corrected["effect"]["layers"]] == ["fc1"]
    assert [entry["node"] for entry in quantized["effect"]["skipped"]] == ["fc2"]


@pytest.mark.parametrize(
    ("mode", "more", "nodes"),
    [
        ("dynamic", (), ["head"]),
        ("static", (), ["conv1", "conv2", "head"]),
        ("static", ("--op-types", "Conv,Relu"), ["conv1", "conv2"]),
    ],
)
def test_biases_of_what_stays_in_float_stay(mode, more, nodes, folder, tmp_path):
    arguments = ("--mode", mode, "--correct-bias", "--data", folder / "images.npz", "--allow-larger", *more)
    record = quantize(folder, tmp_path, *arguments, model="cnn")
    assert [entry["node"] for entry in record["passes"][0]["effect"]["layers"]] == nodes


def test_equalize_passes_over_a_model_without_pairs(folder, tmp_path):
    arguments = ("--mode", "dynamic", "--equalize", "--allow-larger")
    record = quantize(folder, tmp_path, *arguments, model="encoder")
    equalized, quantized = record["passes"]
    assert (equalized["name"], equalized["effect"]["equalized"]) == ("equalize", 0)
    assert quantized["effect"]["quantized_weights"] > 0


def test_the_quantization_itself_must_have_an_effect(folder, tmp_path):
    arguments = ("--mode", "dynamic", "--equalize", "--op-types", "LSTM", "--no-measure")
    fails(5, "quantize", folder / "encoder.onnx", "-o", tmp_path / "q.onnx", *arguments, text="0 of 3 weights")


@pytest.mark.parametrize("mode", ["static", "weights"])
def test_statistics_are_kept(mode, folder, tmp_path):
    kept = tmp_path / "kept"
    arguments = ("--mode", mode, "--data", folder / "x.npz", "--statistics", kept)
    quantize(folder, tmp_path, *arguments)
    files = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert files
    quantize(folder, tmp_path, *arguments, out="again.onnx")
    quantize(folder, tmp_path, *arguments[:-2], out="without.onnx")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == files
    made = {(tmp_path / name).read_bytes() for name in ("q.onnx", "again.onnx", "without.onnx")}
    assert len(made) == 1


def test_a_budget_on_labels(folder, tmp_path):
    budget = ("--max-drop", "0.5%", "--eval", folder / "labelled.npz")
    record = quantize(folder, tmp_path, "--mode", "static", "--data", folder / "x.npz", *budget)
    (step,) = record["passes"]
    search = step["effect"]["search"]
    assert (search["metric"], search["max_drop"], search["samples"]) == ("accuracy", 0.005, 400)
    assert search["drop"] <= 0.005
    assert search["tried"]
    assert step["options"]["metric"] == "accuracy"


def test_a_budget_in_words(folder, tmp_path):
    """Without class scores there is no interval; the line about the pass says the drop alone."""
    np.savez(tmp_path / "more.npz", ids=np.random.default_rng(1).integers(0, 50, (64, 6)))
    arguments = ("--mode", "dynamic", "--allow-larger", "--max-drop", "50%", "--eval", tmp_path / "more.npz")
    done = run("quantize", folder / "encoder.onnx", "-o", tmp_path / "q.onnx", "--no-measure", *arguments)
    assert done.returncode == 0, done.stderr
    assert "nodes in float after 1 candidates" in " ".join(done.stdout.split())
