"""Real models that int8 destroys: the search finds what to leave in float, without help."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import real_data

from onnxcomp import runtime
from onnxcomp.evaluate import evaluate
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize_file
from onnxcomp.sensitivity import quantize_within, rank

SILERO_OPS = ("Conv", "Gather", "Gemm", "LSTM", "MatMul")
SILERO_CONV = "/model/encoder/3/reparam_conv/Conv"
FRAMES = 700

#: of a model made from magika with TensorFlow: the variance of its first LayerNormalization
MAGIKA_OPS = (
    "Add",
    "Conv",
    "Gemm",
    "MatMul",
    "Mul",
    "Reshape",
    "Slice",
    "Softmax",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def stream(path, sound, frames=FRAMES):
    """Speech probability of each frame of 512 samples, the state carried on: (probabilities, what was fed)."""
    session = runtime.open_session(path)
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16000, np.int64)
    probabilities, inputs, states = [], [], []
    padded = np.concatenate([np.zeros(64, np.float32), sound])
    for i in range(frames):
        frame = padded[np.newaxis, 512 * i : 512 * i + 576]
        inputs.append(frame)
        states.append(state)
        found = session.run({"input": frame, "state": state, "sr": rate})
        state = found["stateN"]
        probabilities.append(float(found["output"][0, 0]))
    fed = {"input": np.stack(inputs), "state": np.stack(states), "sr": np.full(frames, 16000, np.int64)}
    return np.array(probabilities), fed


@pytest.fixture(scope="module")
def speech(shared, tmp_path_factory):
    """(model, calibration, evaluation with the float model's decisions as labels, metric, 22 s of sound)."""
    model = shared / "models/silero_vad_16k_op15.onnx"
    sound = real_data._speech(shared / "data")
    probabilities, fed = stream(model, sound)
    half = FRAMES // 2
    calibration = {name: array[:half] for name, array in fed.items()}
    judged = {name: array[half:] for name, array in fed.items()}
    judged["labels"] = (probabilities[half:] > 0.5).astype(np.int64)
    metric = tmp_path_factory.mktemp("metric") / "vad.py"
    metric.write_text(
        "def frames(outputs, labels):\n"
        "    return ((outputs['output'].reshape(len(labels)) > 0.5) == labels).astype('float64')\n"
    )
    return model, calibration, judged, f"{metric}:frames", sound


def test_silero_the_one_convolution_is_ranked_first(speech):
    model, calibration, *_ = speech
    worst, second, *_ = rank(model, QuantizeDynamic(op_types=SILERO_OPS), calibration).nodes
    assert worst.target.node == SILERO_CONV
    assert worst.error > 5 * second.error


def test_silero_only_that_convolution_stays_in_float(speech, tmp_path):
    model, calibration, judged, metric, sound = speech
    step = QuantizeDynamic(op_types=SILERO_OPS)
    optimize_file(model, tmp_path / "all.onnx", [step])
    assert evaluate(tmp_path / "all.onnx", judged, metric=metric).value.value < 0.8
    record = quantize_within(
        model, tmp_path / "o.onnx", [step], data=calibration, eval=judged, metric=metric, max_drop=0.01
    )
    found = record.passes[0].effect["search"]
    assert [n["node"] for n in found["excluded"]] == [SILERO_CONV]
    assert len(found["tried"]) == 2
    assert record.size_ratio < 0.65
    # with its own state, as it is served
    reference, _ = stream(model, sound)
    candidate, _ = stream(tmp_path / "o.onnx", sound)
    assert np.mean((reference > 0.5) == (candidate > 0.5)) >= 0.98


@pytest.mark.slow
def test_magika_finds_its_way_back_from_all_operators(shared, tmp_path):
    model = shared / "models/magika_standard_v3_3.onnx"
    judged, _ = real_data.samples("magika_standard_v3_3", shared)
    calibration = {"bytes": judged["bytes"][::2][:60]}
    step = QuantizeStatic(op_types=MAGIKA_OPS)
    optimize_file(model, tmp_path / "all.onnx", [dataclasses.replace(step, max_node_error=None)], data=calibration)
    assert evaluate(tmp_path / "all.onnx", judged).value.value < 0.2
    optimize_file(model, tmp_path / "unspoilt.onnx", [step], data=calibration)
    assert evaluate(tmp_path / "unspoilt.onnx", judged).value.value > 0.9
    record = quantize_within(
        model, tmp_path / "o.onnx", [step], data=calibration, eval=judged, max_drop=0.007, samples=24
    )
    found = record.passes[0].effect["search"]
    assert 1 <= len(found["excluded"]) <= 8
    assert all("LayerNorm_0" in n["node"] for n in found["excluded"])
    assert record.size_ratio < 1 / 3.5
    assert evaluate(tmp_path / "o.onnx", judged).value.value >= 0.967


def test_snips_all_fits(shared, tmp_path):
    model = shared / "models/snips_transformer.onnx"
    judged, _ = real_data.samples("snips_transformer", shared)
    calibration = real_data.snips_calibration(shared / "data")
    record = quantize_within(
        model, tmp_path / "o.onnx", [QuantizeStatic()], data=calibration, eval=judged, max_drop=0.005
    )
    found = record.passes[0].effect["search"]
    assert (found["excluded"], found["tried"][0]["fits"]) == ([], True)
    assert record.size_ratio < 1 / 3.5
