"""Tables of embeddings: int8 by column, dequantized behind the lookup."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize_file

ROWS, COLUMNS = 200, 24
INT64 = TensorProto.INT64
BOTH = pytest.mark.parametrize("step", [QuantizeDynamic, QuantizeStatic])

node, value, weight = helper.make_node, builders.value, builders.weight


def table(*shape, name="table"):
    """Columns whose largest values lie up to 2^8 apart."""
    array = numpy_helper.to_array(weight(name, *(shape or (ROWS, COLUMNS))))
    spread = np.exp2(np.linspace(-4, 4, array.shape[-1], dtype=np.float32))
    return numpy_helper.from_array(array * spread, name)


def lookup(*, nodes=(), outputs=(), held=(), ids=("n", 7), stored=None):
    """ids -> Gather -> e -> MatMul -> y, and more."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="embed"),
        node("MatMul", ["e", "w"], ["y"], name="fc"),
        *nodes,
    ]
    stored = stored or table()
    columns = stored.dims[-1]
    middle = stored.dims[1:-1]
    inputs = [value("ids", *ids, dtype=INT64)]
    return builders.model(
        nodes,
        inputs,
        [value("y", *ids, *middle, 16), *outputs],
        [stored, weight("w", columns, 16), *held],
    )


def run(proto, step, tmp_path, **options):
    """(effect, graph afterwards, its path)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    shape = [d.dim_value or 64 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    ids = np.random.default_rng(1).integers(0, ROWS, shape)
    record = optimize_file(path, tmp_path / "o.onnx", [step(**options)], data={"ids": ids}, allow_larger=True)
    return record.passes[0].effect, onnx.load(tmp_path / "o.onnx").graph


def tensors(graph):
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def lookups(graph):
    return [n for n in graph.node if n.op_type == "Gather"]


def behind(graph, gather):
    """The only node that reads what was looked up."""
    (user,) = [n for n in graph.node if gather.output[0] in n.input]
    return user


def skipped(effect):
    return {entry["node"] for entry in effect["skipped"]}


@BOTH
@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (ROWS, 3, COLUMNS)])
def test_int8_by_column_and_dequantized_behind_the_lookup(shape, step, tmp_path):
    stored = table(*shape)
    effect, graph = run(lookup(stored=stored), step, tmp_path)
    assert skipped(effect) == set()
    (gather,) = lookups(graph)
    restore = behind(graph, gather)
    assert restore.op_type == "DequantizeLinear"
    assert restore.output[0] == "e"
    held = tensors(graph)
    array = numpy_helper.to_array(stored)
    scale = np.abs(array).reshape(-1, COLUMNS).max(axis=0) / np.float32(127)
    assert np.array_equal(held[restore.input[1]], scale)
    numbers = held[gather.input[0]]
    assert numbers.dtype == np.int8
    assert np.array_equal(numbers, np.rint(array / scale))
    assert not any(a.dtype == np.float32 and a.shape == shape for a in held.values())


@BOTH
def test_rows_are_those_of_the_table_within_half_a_step(step, tmp_path):
    _, graph = run(lookup(outputs=[value("e", "n", 7, COLUMNS)]), step, tmp_path)
    assert [o.name for o in graph.output] == ["y", "e"]
    ids = np.arange(ROWS - 4).reshape(-1, 7)
    found = runtime.open_session(tmp_path / "o.onnx").run({"ids": ids})["e"]
    array = numpy_helper.to_array(table())
    step_of_table = np.abs(array).max(axis=0) / 127
    # static quantization gives out what the int8 product reads
    step_of_product = (array.max() - array.min()) / 255 if step is QuantizeStatic else 0
    assert np.all(np.abs(found - array[ids]) <= (step_of_table + step_of_product) * 0.5001)


@BOTH
def test_a_table_taller_than_one_slice(step, tmp_path):
    stored = table(40_000, 8)
    _, graph = run(lookup(stored=stored), step, tmp_path)
    array = numpy_helper.to_array(stored)
    wanted = np.rint(array / (np.abs(array).max(axis=0) / np.float32(127)))
    assert np.array_equal(tensors(graph)[lookups(graph)[0].input[0]], wanted)


@BOTH
def test_several_lookups_share_one_table(step, tmp_path):
    more = [node("Gather", ["table", "one"], ["f"], name="again")]
    held = [numpy_helper.from_array(np.array(3, np.int64), "one")]
    proto = lookup(nodes=more, outputs=[value("f", COLUMNS)], held=held)
    # a constant index would be folded into a constant row
    proto.graph.initializer.remove(held[0])
    proto.graph.input.append(value("one", dtype=INT64))
    path = builders.save(proto, tmp_path / "m.onnx")
    data = {"ids": np.arange(64 * 7).reshape(64, 7) % ROWS, "one": np.arange(64)}
    optimize_file(path, tmp_path / "o.onnx", [step()], data=data, allow_larger=True)
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert len({n.input[0] for n in lookups(graph)}) == 1
    assert [behind(graph, n).op_type for n in lookups(graph)] == ["DequantizeLinear"] * 2
    row = runtime.open_session(tmp_path / "o.onnx").run({"ids": data["ids"], "one": np.array(3)})["f"]
    array = numpy_helper.to_array(table())
    assert np.all(np.abs(row - array[3]) <= np.abs(array).max(axis=0) / 127 * 0.5001)


@BOTH
@pytest.mark.parametrize("case", ["given out", "used as a factor"])
def test_a_table_that_is_needed_in_float_stays(case, step, tmp_path):
    if case == "given out":
        proto = lookup(outputs=[value("table", ROWS, COLUMNS)])
        excluded = ()
    else:  # the product stays in float, and the table with it
        product = node("MatMul", ["y", "table"], ["f"], name="scores")
        proto = lookup(nodes=[product], outputs=[value("f", "n", 7, 16)], stored=table(16, 16))
        proto.graph.initializer[1].CopyFrom(weight("w", 16, 16))
        excluded = ("scores",)
    path = builders.save(proto, tmp_path / "m.onnx")
    ids = np.arange(64 * 7).reshape(64, 7) % 16
    options = {"data": {"ids": ids}, "allow_larger": True}
    record = optimize_file(path, tmp_path / "o.onnx", [step(exclude=excluded)], **options)
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert lookups(graph)[0].input[0] == "table"
    assert tensors(graph)["table"].dtype == np.float32
    assert "embed" in skipped(record.passes[0].effect)


@BOTH
def test_an_excluded_lookup_stays(step, tmp_path):
    effect, graph = run(lookup(), step, tmp_path, exclude=("embed",))
    assert effect["skipped"] == [{"node": "embed", "reason": "excluded by the user"}]
    assert tensors(graph)["table"].dtype == np.float32


@BOTH
@pytest.mark.parametrize("number", [0, 1e-40, 1e-45])
def test_a_column_of_zeros_or_too_small_numbers_becomes_zeros(number, step, tmp_path):
    array = numpy_helper.to_array(table()).copy()
    array[:, 5] = number
    _, graph = run(lookup(stored=numpy_helper.from_array(array, "table")), step, tmp_path)
    (gather,) = lookups(graph)
    held = tensors(graph)
    assert not held[gather.input[0]][:, 5].any()
    scale = held[behind(graph, gather).input[1]]
    assert np.all(np.isfinite(scale) & (scale > 0))
    assert scale[5] == 1


@BOTH
def test_names_that_are_taken(step, tmp_path):
    """fairseq, for one, calls a factor behind a table `..._scale`."""
    more = [
        node("Mul", ["y", "table_scale"], ["e_found"], name="embed_DequantizeLinear"),
        node("Add", ["e_found", "table_quantized"], ["f"], name="add"),
    ]
    held = [weight("table_scale", 16), weight("table_quantized", 16)]
    effect, _ = run(lookup(nodes=more, outputs=[value("f", "n", 7, 16)], held=held), step, tmp_path)
    assert effect["quantized_weights"] == 2


def test_the_same_bytes_again(tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(lookup(), QuantizeDynamic, tmp_path / name)
        made.append((tmp_path / name / "o.onnx").read_bytes())
    assert made[0] == made[1]
