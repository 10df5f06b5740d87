"""Observing: every value of every sample once, whatever the batches, shapes and turns; errors that name the sample."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.activations import Channels, Histogram, Range, Rows, observe
from onnxcomp.data import Batches
from onnxcomp.data.sources import from_arrays
from onnxcomp.errors import CalibrationError, DataError, UsageError
from onnxcomp.model import load, signature

MODULE = importlib.import_module("onnxcomp.activations.observe")


def prepared(proto, shards, tmp_path, *, batch_size=32):
    """(model, batches)."""
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    source = from_arrays(shards, "calibration.npz")
    return model, Batches(source, signature(model).inputs, batch_size=batch_size)


def values(proto, names, shards):
    """{name: all values of the tensor}, one sample at a time, by ORT alone."""
    augmented = onnx.ModelProto()
    augmented.CopyFrom(proto)
    there = {o.name for o in proto.graph.output}
    augmented.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in there)
    session = ort.InferenceSession(augmented.SerializeToString())
    found = {name: [] for name in names}
    for shard in shards:
        for i in range(len(next(iter(shard.values())))):
            outputs = session.run(names, {k: v[i : i + 1] for k, v in shard.items()})
            for name, array in zip(names, outputs, strict=True):
                found[name].append(array.reshape(-1))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def assert_observed(wanted, expected):
    for name, (ranged, histogram) in wanted.items():
        assert ranged.low == pytest.approx(expected[name].min(), rel=1e-5, abs=1e-6)
        assert ranged.high == pytest.approx(expected[name].max(), rel=1e-5, abs=1e-6)
        assert histogram.counts.sum() == expected[name].size


def test_every_value_once(tmp_path):
    names = ["c1", "n1", "r1", "c2", "s", "p", "f", "scores"]
    shards = [{"image": builders.samples(50, 3, 8, 8)}, {"image": builders.samples(13, 3, 8, 8, seed=1)}]
    proto = builders.cnn()
    model, data = prepared(proto, shards, tmp_path)
    before = MODULE.ir.to_proto(model).SerializeToString()
    wanted = {name: (Range(), Histogram()) for name in names}
    observe(model, data, wanted, workdir=tmp_path)
    assert_observed(wanted, values(proto, names, shards))
    assert MODULE.ir.to_proto(model).SerializeToString() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_text_of_different_lengths(tmp_path):
    generator = np.random.default_rng(0)
    shards = [{"ids": generator.integers(0, 50, shape)} for shape in ((9, 5), (40, 17), (3, 1))]
    proto = builders.encoder()
    model, data = prepared(proto, shards, tmp_path, batch_size=8)
    wanted = {name: (Range(), Histogram()) for name in ("e", "n", "states")}
    observe(model, data, wanted, workdir=tmp_path)
    assert_observed(wanted, values(proto, list(wanted), shards))
    assert wanted["e"][1].counts.sum() == (9 * 5 + 40 * 17 + 3) * 16


def test_batches_fit_the_longest_sample(tmp_path, monkeypatch):
    """The first sample is short: sizes that were taken from it would let the long ones exceed the budget."""
    shards = [{"ids": np.zeros((4, 2), np.int64)}, {"ids": np.zeros((16, 40), np.int64)}]
    model, data = prepared(builders.encoder(), shards, tmp_path)
    budget = 4 * 40 * 32 * 4
    monkeypatch.setattr(MODULE, "_BUDGET", budget)
    taken = []
    monkeypatch.setattr(Range, "update", lambda self, array: taken.append(array.nbytes))
    observe(model, data, {"n": [Range()]}, workdir=tmp_path)
    assert max(taken) == budget
    assert len(taken) == 1 + 4


@pytest.fixture
def sessions(monkeypatch):
    """A list that gets the tensors of each session that is opened."""
    opened = []
    plain = MODULE._session
    monkeypatch.setattr(MODULE, "_session", lambda m, names, f: opened.append(list(names)) or plain(m, names, f))
    return opened


def test_turns_give_the_same(tmp_path, monkeypatch, sessions):
    """By bytes, in a graph where nothing is fused that rounds otherwise; one sample of h and a takes 128 bytes."""
    names = ["h", "a", "y"]
    model, data = prepared(builders.mlp(), {"x": builders.samples(50, 16)}, tmp_path, batch_size=1)
    states = []
    for budget in (64 << 20, 256, 100):
        monkeypatch.setattr(MODULE, "_BUDGET", budget)
        wanted = {name: (Range(), Histogram(), Channels(1), Rows(7)) for name in names}
        observe(model, data, wanted, workdir=tmp_path)
        states.append([{k: v.tobytes() for k, v in s.state().items()} for held in wanted.values() for s in held])
    assert states[0] == states[1] == states[2]
    # the first session of each tells the sizes; it stays where one turn is enough
    assert sessions == [names, names, ["h", "a"], ["y"], names, ["h"], ["a"], ["y"]]


def test_turns_see_every_value(tmp_path, monkeypatch, sessions):
    names = ["c1", "n1", "r1", "c2", "s", "scores"]
    shards = [{"image": builders.samples(20, 3, 8, 8)}]
    model, data = prepared(builders.cnn(), shards, tmp_path)
    monkeypatch.setattr(MODULE, "_BUDGET", 2 * 16 * 64 * 4)
    wanted = {name: (Range(), Histogram()) for name in names}
    observe(model, data, wanted, workdir=tmp_path)
    assert sessions == [names, ["c1", "n1"], ["r1", "c2"], ["s", "scores"]]
    assert_observed(wanted, values(builders.cnn(), names, shards))


def test_a_fixed_batch_is_not_cut(tmp_path, monkeypatch, sessions):
    proto = builders.mlp()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 4
    x = builders.samples(12, 16)
    model, data = prepared(proto, {"x": x}, tmp_path)
    taken = {"h": [], "a": []}
    monkeypatch.setattr(Range, "update", lambda self, array: taken[self.tensor].append(array.nbytes))
    wanted = {name: [Range()] for name in taken}
    for name, (ranged,) in wanted.items():
        ranged.tensor = name
    # one batch of one tensor fits, the two do not
    monkeypatch.setattr(MODULE, "_BUDGET", 4 * 32 * 4)
    observe(model, data, wanted, workdir=tmp_path)
    assert sessions == [["h", "a"], ["h"], ["a"]]
    assert taken == {"h": [512] * 3, "a": [512] * 3}


def test_inputs_and_whole_inputs(tmp_path):
    count = 5
    arrays = {"x": builders.samples(count, 1, 4), "state": builders.samples(count, 2, 1, 4, seed=1)}
    arrays["rate"] = np.arange(count, dtype=np.float32)
    model, data = prepared(builders.stateful(), arrays, tmp_path)
    wanted = {name: (Range(), Histogram()) for name in ("x", "state", "rate", "m", "y")}
    observe(model, data, wanted, workdir=tmp_path)
    assert_observed({k: wanted[k] for k in arrays}, {k: v.reshape(-1) for k, v in arrays.items()})
    expected = arrays["x"][:, 0] * arrays["rate"][:, None]
    assert_observed({"m": wanted["m"]}, {"m": expected.reshape(-1)})


def types():
    """x int64 (batch, 3) -> float16 h, float32 f, float64 d, bfloat16 b, int32 i, bool t."""
    kinds = {"h": "FLOAT16", "f": "FLOAT", "d": "DOUBLE", "b": "BFLOAT16", "i": "INT32", "t": "BOOL"}
    nodes = [helper.make_node("Cast", ["x"], [k], to=getattr(TensorProto, v)) for k, v in kinds.items()]
    nodes.append(helper.make_node("Cast", ["f"], ["y"], to=TensorProto.FLOAT))
    return builders.model(
        nodes, [builders.value("x", "batch", 3, dtype=TensorProto.INT64)], [builders.value("y", "batch", 3)]
    )


def test_types(tmp_path):
    x = np.arange(-9, 12).reshape(7, 3)
    model, data = prepared(types(), {"x": x}, tmp_path)
    wanted = {name: (Range(), Histogram()) for name in "xhfdbit"}
    observe(model, data, wanted, workdir=tmp_path)
    assert_observed({k: wanted[k] for k in "hfd"}, dict.fromkeys("hfd", x.reshape(-1)))
    for name in "xbit":
        assert wanted[name][1].counts.sum() == 0
        assert wanted[name][0].low > wanted[name][0].high


def test_no_float_among_them(tmp_path):
    model, data = prepared(types(), {"x": np.zeros((2, 3), np.int64)}, tmp_path)
    observe(model, data, {"i": [Range()]}, workdir=tmp_path, store=tmp_path / "kept")


def test_a_tensor_that_is_empty_for_some_samples(tmp_path):
    """How many of x are positive depends on the sample; the first has none."""
    proto = builders.model(
        [
            helper.make_node("Greater", ["x", "zero"], ["positive"]),
            helper.make_node("Reshape", ["positive", "flat"], ["condition"]),
            helper.make_node("Compress", ["x", "condition"], ["chosen"]),
            helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0),
        ],
        [builders.value("x", "batch", 3)],
        [builders.value("y")],
        [
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.array([-1], np.int64), "flat"),
        ],
    )
    x = np.array([[-1, -2, -3], [4, -5, 6], [-7, -8, -9], [10, 11, 12]], np.float32)
    model, data = prepared(proto, {"x": x}, tmp_path, batch_size=1)
    wanted = {"chosen": (Range(), Histogram())}
    observe(model, data, wanted, workdir=tmp_path)
    assert_observed(wanted, {"chosen": x[x > 0]})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_input_names_sample_and_input(tmp_path, bad):
    x = builders.samples(100, 16)
    x[70, 3] = bad
    model, data = prepared(builders.mlp(), {"x": x}, tmp_path)
    with pytest.raises(CalibrationError, match=r"holds NaN or infinity \(calibration\.npz: sample 70, input x\)"):
        observe(model, data, {"x": [Range()], "h": [Range()]}, workdir=tmp_path)


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_a_bad_activation_names_sample_and_tensor(tmp_path, batch_size):
    """Across batches, and where the first axis is not the batch though it is as long."""
    proto = builders.model(
        [
            helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]),
            helper.make_node("Reciprocal", ["turned"], ["inverse"]),
            helper.make_node("Transpose", ["inverse"], ["y"], perm=[1, 0]),
        ],
        [builders.value("x", "batch", 8)],
        [builders.value("y", "batch", 8)],
    )
    x = np.abs(builders.samples(60, 8)) + 1
    x[45, 2] = 0
    model, data = prepared(proto, {"x": x}, tmp_path, batch_size=batch_size)
    with pytest.raises(CalibrationError, match=r"infinite .*: sample 45, tensor inverse\)"):
        observe(model, data, {"turned": [Range()], "inverse": [Range()]}, workdir=tmp_path)
    part = data.split(0.8, seed=1)
    holding = part[0] if 45 in part[0]._selection else part[1]
    with pytest.raises(CalibrationError, match=r": sample 45, tensor y\)"):
        observe(model, holding, {"y": [Range()]}, workdir=tmp_path)


def test_a_bad_sample_of_a_fixed_batch_is_one_of_several(tmp_path):
    proto = builders.mlp()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 4
    x = builders.samples(12, 16)
    x[6] = np.nan
    model, data = prepared(proto, {"x": x}, tmp_path)
    with pytest.raises(CalibrationError, match="one of the samples 4 to 7, tensor h"):
        observe(model, data, {"h": [Range()]}, workdir=tmp_path)


@pytest.mark.parametrize("name", ["t", "outer", "nothing", ""])
def test_what_is_no_tensor_of_the_main_graph_is_refused(tmp_path, name):
    arrays = {"x": builders.samples(1, 2, 8), "flag": np.array([True])}
    model, data = prepared(builders.branch(), arrays, tmp_path)
    with pytest.raises(UsageError, match="main graph"):
        observe(model, data, {name: [Range()]}, workdir=tmp_path)
    wanted = {"y": [Range()]}
    observe(model, data, wanted, workdir=tmp_path)
    assert wanted["y"][0].low < wanted["y"][0].high


def test_an_initializer_that_is_also_an_input_is_no_tensor(tmp_path):
    model, data = prepared(builders.as_old(builders.mlp()), {"x": builders.samples(4, 16)}, tmp_path)
    with pytest.raises(UsageError, match="tensor w1"):
        observe(model, data, {"w1": [Range()]}, workdir=tmp_path)


def test_no_samples(tmp_path):
    proto = builders.mlp()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model, data = prepared(proto, {"x": builders.samples(3, 16)}, tmp_path)
    with pytest.raises(CalibrationError, match=r"fewer than the model's batch \(calibration\.npz\)"):
        observe(model, data, {"h": [Range()]}, workdir=tmp_path)


def test_what_the_model_refuses_is_a_data_error(tmp_path):
    model, data = prepared(builders.encoder(), {"ids": np.full((2, 3), 99)}, tmp_path)
    with pytest.raises(DataError, match=r"calibration\.npz"):
        observe(model, data, {"n": [Range()]}, workdir=tmp_path)


def test_one_and_two_threads_give_the_same_bytes(shared, tmp_path, monkeypatch):
    from real_data import snips_calibration

    model = load(shared / "models/snips_transformer.onnx")
    data = Batches(snips_calibration(shared / "data"), signature(model).inputs).take(64)
    names = [node.inputs[0].name for node in model.graph if node.op_type == "MatMul"]
    settings = MODULE.runtime.SessionSettings
    states = []
    for threads in (1, 2, 2):
        monkeypatch.setattr(
            MODULE.runtime, "SessionSettings", lambda *, n=threads, **kw: settings(**{**kw, "threads": n})
        )
        wanted = {name: (Histogram(), Channels(-1), Rows(50)) for name in names}
        observe(model, data, wanted, workdir=tmp_path)
        states.append([{k: v.tobytes() for k, v in s.state().items()} for held in wanted.values() for s in held])
    assert states[0] == states[1] == states[2]


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from onnx import helper
sys.path.insert(0, {tests!r})
import builders
from onnxcomp.activations import Channels, Histogram, Rows, observe
from onnxcomp.data import Batches
from onnxcomp.data.sources import Source
from onnxcomp.model import load, signature

proto = builders.model(
    [
        helper.make_node("Conv", ["x", "k1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["y"]),
    ],
    [builders.value("x", "batch", 3, 32, 32)],
    [builders.value("y", "batch", 16, 1, 1)],
    [builders.weight("k1", 16, 3, 3, 3)],
)
folder = Path({folder!r})
model = load(builders.save(proto, folder / "m.onnx"))
count = int(sys.argv[1])
shards = lambda: ({{"x": builders.samples(64, 3, 32, 32, seed=i)}} for i in range(count // 64))
data = Batches(Source("generated", shards), signature(model).inputs)
wanted = {{name: (Histogram(), Channels(1), Rows(64)) for name in ("c1", "r1")}}
observe(model, data, wanted, workdir=folder)
assert wanted["c1"][0].counts.sum() == count * 16 * 32 * 32
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """8,192 samples hold 1 GiB of observed tensors."""
    script = PEAK.format(tests=str(Path(__file__).parent.parent), folder=str(tmp_path))
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, timeout=400)
    few, many = (int(run([sys.executable, "-c", script, str(count)]).stdout) for count in (512, 8192))
    assert many / few < 1.3
