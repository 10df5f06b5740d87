"""Noise stays within the tables that the graph looks ids up in: ORT refuses what lies beyond them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.bench import bench, ids
from onnxcomp.bench.feeds import make_feeds
from onnxcomp.data import Whole
from onnxcomp.model import InputSpec
from onnxcomp.pack import pack
from onnxcomp.runtime import open_session

SIZE = 7
TABLE = numpy_helper.from_array(np.arange(2 * SIZE, dtype=np.float32).reshape(SIZE, 2), "table")
NODE = helper.make_node


def number(value, name, dtype=np.int64):
    return numpy_helper.from_array(np.array(value, dtype), name)


def save(path, nodes, initializers=(), *, inputs=(("i", ["N"]),), dtype=TensorProto.INT64, functions=(), shape=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [TABLE, *initializers],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions), path)
    return path


def branch(name, nodes, output):
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def through(*nodes):
    return [*nodes, NODE("Gather", ["table", nodes[-1].output[0]], ["y"])]


def loop():
    """The ids are carried: body (i, go, ids) -> (go, ids, row)."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            NODE("Identity", ["go"], ["on"]),
            NODE("Identity", ["carried"], ["kept"]),
            NODE("Gather", ["table", "carried"], ["row"]),
        ],
        "body",
        [info("n", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("carried", TensorProto.INT64, None)],
        [
            info("on", TensorProto.BOOL, []),
            info("kept", TensorProto.INT64, None),
            info("row", TensorProto.FLOAT, None),
        ],
    )
    return [NODE("Loop", ["trips", "true", "i"], ["last", "y"], body=body)]


def conditional(*, inside):
    if inside:
        bodies = [branch(n, [NODE("Gather", ["table", "i"], [f"{n}_y"])], f"{n}_y") for n in ("yes", "no")]
        return [NODE("If", ["true"], ["y"], then_branch=bodies[0], else_branch=bodies[1])]
    bodies = [
        helper.make_graph(
            [NODE("Identity", ["i"], [f"{n}_i"])],
            n,
            [],
            [helper.make_tensor_value_info(f"{n}_i", TensorProto.INT64, None)],
        )
        for n in ("yes", "no")
    ]
    return [
        NODE("If", ["true"], ["j"], then_branch=bodies[0], else_branch=bodies[1]),
        NODE("Gather", ["table", "j"], ["y"]),
    ]


def function(*, inside):
    body = NODE("Gather", ["t", "a"], ["b"]) if inside else NODE("Identity", ["a"], ["b"])
    made = helper.make_function("own", "F", ["a", "t"], ["b"], [body], [helper.make_opsetid("", 17)])
    call = NODE("F", ["i", "table"], ["y" if inside else "j"], domain="own")
    return ([call] if inside else [call, NODE("Gather", ["table", "j"], ["y"])]), [made]


TRUE = number(True, "true", np.bool_)
CASES = {
    "gather": (through(NODE("Identity", ["i"], ["a"])), []),
    "cast and unsqueeze": (
        through(NODE("Cast", ["i"], ["a"], to=TensorProto.INT32), NODE("Unsqueeze", ["a", "axes"], ["b"])),
        [number([1], "axes")],
    ),
    "where": (
        through(NODE("Less", ["i", "zero"], ["low"]), NODE("Where", ["low", "zero", "i"], ["a"])),
        [number(0, "zero")],
    ),
    "added": (through(NODE("Add", ["two", "i"], ["a"])), [number(2, "two")]),
    "inside of if": (conditional(inside=True), [TRUE]),
    "out of if": (conditional(inside=False), [TRUE]),
    "carried by loop": (loop(), [TRUE, number(3, "trips")]),
    "gather in another axis": (
        [NODE("Gather", ["wide", "i"], ["y"], axis=-1)],
        [numpy_helper.from_array(np.zeros((2, SIZE), np.float32), "wide")],
    ),
    "dequantized table": (
        [NODE("DequantizeLinear", ["q", "scale"], ["t"]), NODE("Gather", ["t", "i"], ["y"])],
        [number(np.ones((SIZE, 2)), "q", np.int8), number(0.5, "scale", np.float32)],
    ),
    "transposed table": (
        [NODE("Transpose", ["wide"], ["t"]), NODE("Gather", ["t", "i"], ["y"])],
        [numpy_helper.from_array(np.zeros((2, SIZE), np.float32), "wide")],
    ),
    "smaller of two tables": (
        [
            NODE("Gather", ["large", "i"], ["a"]),
            NODE("Gather", ["table", "i"], ["b"]),
            NODE("Add", ["a", "b"], ["y"]),
        ],
        [numpy_helper.from_array(np.zeros((100, 2), np.float32), "large")],
    ),
}
WANTED = {"added": SIZE - 2}


@pytest.mark.parametrize("case", CASES)
def test_ids_stay_in_their_table_and_use_all_of_it(case, tmp_path):
    nodes, initializers = CASES[case]
    check(save(tmp_path / "m.onnx", nodes, initializers), WANTED.get(case, SIZE))


@pytest.mark.parametrize("inside", [True, False])
def test_through_a_local_function(tmp_path, inside):
    nodes, functions = function(inside=inside)
    check(save(tmp_path / "m.onnx", nodes, functions=functions), SIZE)


def check(path, size):
    session = open_session(path)
    inputs = session.signature.inputs
    whole = ids.whole_numbers([path], inputs)
    assert whole == {"i": Whole(below=size)}
    feeds = make_feeds("random:16", inputs, batch=8, whole=whole)
    for arrays in feeds.arrays:
        session.run(arrays)
    drawn = np.concatenate([arrays["i"] for arrays in feeds.arrays])
    assert (drawn.min(), drawn.max()) == (0, size - 1)


def test_a_one_hot_code_spelt_out(tmp_path):
    nodes = [NODE("Equal", ["i", "classes"], ["hot"]), NODE("Cast", ["hot"], ["y"], to=TensorProto.FLOAT)]
    path = save(tmp_path / "m.onnx", nodes, [number(np.arange(5), "classes")], inputs=[("i", ["N", 1])])
    assert ids.whole_numbers([path], open_session(path).signature.inputs) == {"i": Whole(below=5)}


def test_a_switch_is_one_of_what_it_is_compared_with(tmp_path):
    """A sample rate, say: any other number takes a way through the model that its inputs do not fit."""
    rows = [branch(n, [NODE("Identity", [f"{n}_c"], [f"{n}_y"])], f"{n}_y") for n in ("yes", "no")]
    nodes = [
        NODE("Equal", ["i", "rate"], ["fast"]),
        NODE("If", ["fast"], ["y"], then_branch=rows[0], else_branch=rows[1]),
    ]
    constants = [number(16000, "rate"), number(1, "yes_c", np.float32), number(0, "no_c", np.float32)]
    path = save(tmp_path / "m.onnx", nodes, constants, inputs=[("i", [])])
    session = open_session(path)
    whole = ids.whole_numbers([path], session.signature.inputs)
    feeds = make_feeds(None, session.signature.inputs, batch=1, whole=whole)
    assert {int(arrays["i"]) for arrays in feeds.arrays} == {16000}
    assert session.run(feeds.arrays[0])["y"] == 1


def test_what_nothing_is_known_of_is_left_out(tmp_path):
    path = save(tmp_path / "m.onnx", [NODE("Cast", ["i"], ["y"], to=TensorProto.FLOAT)])
    assert ids.whole_numbers([path], open_session(path).signature.inputs) == {}


def test_the_smallest_table_of_all_models_counts(tmp_path):
    import bench_models

    paths = [bench_models.indexed(tmp_path / f"{size}.onnx", size=size) for size in (30, 10)]
    assert ids.whole_numbers(paths, open_session(paths[0]).signature.inputs) == {"i": Whole(below=10)}
    found = bench(paths[0], data="random:30", batch=40, seconds=0.05, max_runs=5)
    assert found.results[0].feeds.arrays[0]["i"].max() > 1


def test_a_pack_is_read_like_its_model(tmp_path):
    """Its weights have entries for their packed copies, of which onnx-ir warns."""
    wide = numpy_helper.from_array(np.ones((2, 600), np.float32), "wide")
    square = numpy_helper.from_array(np.ones((600, 600), np.float32), "square")
    nodes = [
        NODE("Gather", ["table", "i"], ["row"]),
        NODE("MatMul", ["row", "wide"], ["a"]),
        NODE("MatMul", ["a", "square"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [wide, square])
    inputs = open_session(path).signature.inputs
    pack(path, tmp_path / "pack", workers=2)
    (packed,) = [p for p in (tmp_path / "pack").rglob("*.onnx") if b"prepacked_0" in p.read_bytes()]
    assert ids.whole_numbers([packed], inputs) == {"i": Whole(below=SIZE)}


def test_masks_are_ones_before_zeros(tmp_path):
    spec = InputSpec("attention_mask", "int64", ("N", 12))
    whole = ids.whole_numbers([], [spec])
    assert whole == {"attention_mask": Whole(mask=True)}
    arrays = [a["attention_mask"] for a in make_feeds(None, (spec,), batch=5, whole=whole).arrays]
    lengths = np.concatenate([a.sum(axis=-1) for a in arrays])
    assert all(np.array_equal(a, np.sort(a, axis=-1)[..., ::-1]) for a in arrays)
    assert (lengths.min(), lengths.max()) == (1, 12)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "bool"])
def test_numbers_fit_their_type(dtype):
    spec = InputSpec("i", dtype, (50,))
    drawn = make_feeds(None, (spec,), batch=1, whole={"i": Whole(below=1 << 40)}).arrays[0]["i"]
    assert drawn.dtype == dtype
    assert drawn.min() >= 0
    assert drawn.max() > (0 if dtype == "bool" else 1)


KNOWN = {
    "magika_standard_v3_3": {"bytes": Whole(below=257)},
    "snips_transformer": {"ids": Whole(below=4449)},
    "tribuo_tinybert": {
        "input_ids": Whole(below=1656),
        "attention_mask": Whole(mask=True),
        "token_type_ids": Whole(below=2),
    },
}

#: sizes of symbolic axes that have no size of their own
SHAPES = {"tribuo_tinybert": {"sequence": 12}, "silero_vad_16k_op15": {"sequence": 576}}


def test_every_sample_model_runs_on_noise(shared):
    """All that ORT can open; each feed once."""
    count = 0
    for path in sorted((shared / "models").glob("*.onnx")):
        if path.stem == "superres_prepost_op18":
            continue  # custom operators
        session = open_session(path)
        inputs = session.signature.inputs
        whole = ids.whole_numbers([path], inputs)
        assert whole == KNOWN.get(path.stem, {})
        feeds = make_feeds("random:2", inputs, batch=1, sizes=SHAPES.get(path.stem), whole=whole)
        for arrays in feeds.arrays:
            session.run(arrays)
        count += 1
    assert count >= 21
