"""Whole layers taken out: those that the outputs miss least, measured, one after the other."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import real_data
from block_graphs import parsed, transformer
from onnx import TensorProto, helper

from onnxcomp.data import Batches
from onnxcomp.errors import AccuracyGateError, DataError, NoEffectError, UsageError
from onnxcomp.evaluate import compare, evaluate
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import PruneBlocks, Simplify
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.report.effects import effect as line
from onnxcomp.runtime import open_session


def samples(path, count=12, seq=5):
    shape = (count, seq, 8) if len(signature(load(path)).inputs[0].shape) == 3 else (count, 8)
    return {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}


def run(path, step, **options):
    """(what `optimize` gives, the samples)."""
    arrays = options.pop("arrays", None) or samples(path)
    data = Batches(arrays, signature(load(path)).inputs, batch_size=5)
    return optimize(path, [step], data=data), arrays


def answers(model, arrays, folder):
    session = open_session(write_to(model, folder, "answers"))
    return session.run(arrays)


@pytest.mark.parametrize("normalized", ["plain", "pre", "post"])
@pytest.mark.parametrize("unit", ["layer", "branch"])
def test_the_least_harmful_goes_and_its_error_is_the_models(normalized, unit, tmp_path):
    """The error beside each removed block is what the finished model really does, block by block."""
    path = builders.save(transformer(3, normalized=normalized), tmp_path / "m.onnx")
    for blocks in (1, 2):
        done, arrays = run(path, PruneBlocks(blocks=blocks, unit=unit))
        effect = done.passes[0].effect
        whole, cut = answers(load(path), arrays, tmp_path)["y"], answers(done.model, arrays, tmp_path)["y"]
        error = np.sqrt(np.sum((whole - cut).astype(np.float64) ** 2) / np.sum(whole.astype(np.float64) ** 2))
        assert effect["blocks"][-1]["error"] == pytest.approx(error, rel=1e-4)
        errors = [entry["error"] for entry in effect["ranking"]]
        assert errors == sorted(errors)
        assert len(errors) == (3 if unit == "layer" else 6)
        assert effect["blocks"][0]["error"] == errors[0]
    if normalized != "post":  # there each layer's sum is scaled to 1 again
        assert {node for b in effect["blocks"] for node in b["nodes"]} <= late_nodes(path)


def late_nodes(path):
    """Products with weights of the last two layers."""
    return {n.name for n in load(path).graph if any(v and v.name[1:] in ("a2", "f2", "a1", "f1") for v in n.inputs)}


def test_what_is_gone_is_counted(tmp_path):
    path = builders.save(transformer(2, normalized="pre"), tmp_path / "m.onnx")
    done, arrays = run(path, PruneBlocks())
    effect = done.passes[0].effect
    layer = 2 * 8 * 8 + 2 * 8 * 16 + 2 * 8
    assert effect["removed_parameters"] == effect["blocks"][0]["parameters"] == layer
    assert effect["parameters"] == 2 * layer + 24
    assert effect["blocks"][0]["macs"] == arrays["x"].shape[1] * (2 * 8 * 8 + 2 * 8 * 16)
    assert effect["macs_ratio"] == pytest.approx((384 + 24) / (768 + 24), abs=1e-4)
    assert len(done.model.graph) == 2 * 5 + 1
    assert set(done.model.graph.initializers) == {f"{k}{t}0" for k in "udg" for t in "af"} | {"head"}
    assert line(effect).startswith("taken out, of 2 blocks: sf1 (error ")


def test_all_layers_can_go_one_after_the_other(tmp_path):
    path = builders.save(transformer(3, normalized="post"), tmp_path / "m.onnx")
    done, arrays = run(path, PruneBlocks(blocks=3))
    head = load(path).graph.initializers["head"].const_value.numpy()
    left = answers(done.model, arrays, tmp_path)["y"]
    assert len(done.model.graph) <= 4
    errors = [entry["error"] for entry in done.passes[0].effect["blocks"]]
    assert errors == sorted(errors)
    assert left.shape == (arrays["x"] @ head).shape
    with pytest.raises(UsageError, match="only 3 blocks"):
        run(path, PruneBlocks(blocks=4))


def test_an_outer_block_takes_inner_ones_along(tmp_path):
    proto = parsed(
        """(float[N,8] x) => (float[N,8] y) {
            a = MatMul (x, w)
            s = Add (x, a)
            b = MatMul (s, v)
            t = Add (s, b)
            y = Add (x, t)
        }""",
        w=(8, 8), v=(8, 8),
    )  # fmt: skip
    path = builders.save(proto, tmp_path / "m.onnx")
    for blocks in (1, 2):
        done, arrays = run(path, PruneBlocks(blocks=blocks))
        assert done.passes[0].effect["removed_parameters"] == 64 * blocks
        assert answers(done.model, arrays, tmp_path)["y"].shape == arrays["x"].shape
    with pytest.raises(UsageError, match="only 2 blocks"):
        run(path, PruneBlocks(blocks=3))


def test_an_output_keeps_its_name(tmp_path):
    proto = parsed("(float[N,8] x) => (float[N,8] y) { a = MatMul (x, w) y = Add (a, x) }", w=(8, 8))
    done, arrays = run(builders.save(proto, tmp_path / "m.onnx"), PruneBlocks())
    assert [n.op_type for n in done.model.graph] == ["Identity"]
    np.testing.assert_array_equal(answers(done.model, arrays, tmp_path)["y"], arrays["x"])


@pytest.mark.parametrize("opset", [7, 11])
def test_old_models_and_half_precision(opset, tmp_path):
    proto = parsed(
        """(float[N,8] x) => (float[N,8] y) {
            c = Cast <to=10> (x)
            a = MatMul (c, w)
            s = Add (a, c)
            y = Cast <to=1> (s)
        }""",
        opset=opset,
    )
    proto.graph.initializer.append(builders.numpy_helper.from_array(np.eye(8, dtype=np.float16), "w"))
    done, arrays = run(builders.save(proto, tmp_path / "m.onnx"), PruneBlocks())
    expected = arrays["x"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(answers(done.model, arrays, tmp_path)["y"], expected)
    assert done.passes[0].effect["blocks"][0]["error"] == pytest.approx(0.5)


def test_excluded_blocks_stay(tmp_path):
    path = builders.save(transformer(2, normalized="pre"), tmp_path / "m.onnx")
    last = run(path, PruneBlocks())[0].passes[0].effect["blocks"][0]
    done, _ = run(path, PruneBlocks(exclude=(last["nodes"][0],)))
    assert done.passes[0].effect["blocks"][0]["to"] != last["to"]
    assert [n.reason for n in done.passes[0].notes] == ["excluded"]
    with pytest.raises(UsageError, match="no node or module"):
        run(path, PruneBlocks(exclude=("nowhere",)))


def test_refusals(tmp_path):
    path = builders.save(transformer(1, normalized="pre"), tmp_path / "m.onnx")
    for key in ("blocks", "samples"):
        with pytest.raises(UsageError, match=f"{key} 0 is less than 1"):
            run(path, PruneBlocks(**{key: 0}))
    with pytest.raises(DataError, match="needs data"):
        optimize(path, [PruneBlocks()])
    noise = Batches("random:8", signature(load(path)).inputs, sizes={"S": 4})
    with pytest.raises(DataError, match="real data"):
        optimize(path, [PruneBlocks()], data=noise)
    plain = builders.save(builders.mlp(), tmp_path / "p.onnx")
    with pytest.raises(NoEffectError, match="no block can be removed"):
        run(plain, PruneBlocks(), arrays={"x": builders.samples(12, 16)})
    sides = parsed("(float[N,8] x) => (float[N,8] y) { a = MatMul (x, w) b = MatMul (x, v) y = Add (a, b) }",
                   w=(8, 8), v=(8, 8))  # fmt: skip
    with pytest.raises(NoEffectError, match="none is the value that both start from"):
        run(builders.save(sides, tmp_path / "s.onnx"), PruneBlocks())


def test_blocks_whose_loss_spoils_the_output_stay(tmp_path):
    """The root of a mean that is negative without the block."""
    text = "{ a = MatMul (x, w) s = Add (a, x) m = ReduceMean <axes=[1]> (s) y = Sqrt (m) }"
    path = builders.save(parsed(f"(float[N,8] x) => (float[N,1] y) {text}", w=-3 * np.eye(8)), tmp_path / "m.onnx")
    arrays = {"x": -np.ones((8, 8), np.float32)}
    with pytest.raises(AccuracyGateError, match="not finite"):
        run(path, PruneBlocks(), arrays=arrays)


def test_a_layer_that_a_body_reads(tmp_path):
    """The body of an If reads what leaves a block: it reads what enters it then."""
    then = helper.make_graph([helper.make_node("Relu", ["s"], ["t"])], "then", [], [builders.value("t", "n", 8)])
    other = helper.make_graph([helper.make_node("Neg", ["s"], ["u"])], "else", [], [builders.value("u", "n", 8)])
    proto = builders.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
            helper.make_node("Add", ["x", "a"], ["s"], name="sum"),
            helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other),
        ],
        [builders.value("x", "n", 8), builders.value("flag", "one", dtype=TensorProto.BOOL)],
        [builders.value("y", "n", 8)],
        [builders.weight("w", 8, 8)],
    )
    path = builders.save(proto, tmp_path / "m.onnx")
    feeds = {"x": builders.samples(1, 8), "flag": np.array([False])}
    done = optimize(path, [PruneBlocks()], data=Batches(feeds, signature(load(path)).inputs, batch_size=1))
    np.testing.assert_array_equal(answers(done.model, feeds, tmp_path)["y"], -feeds["x"])


def test_snips(shared, tmp_path):
    """Accuracy 98.43 %: a layer of two is gone, and a branch of four, judged on other sentences."""
    source, judge = shared / "models/snips_transformer.onnx", real_data.samples("snips_transformer", shared)[0]
    calibration = real_data.snips_calibration(shared / "data")
    reached = {}
    for unit in ("layer", "branch"):
        out = tmp_path / f"{unit}.onnx"
        record = optimize_file(source, out, [PruneBlocks(unit=unit)], data=calibration)
        effect = record.passes[0].effect
        reached[unit] = evaluate(out, judge_batches(source, judge)).value.value
        assert len(effect["ranking"]) == (2 if unit == "layer" else 4)
        assert effect["macs_ratio"] < (0.51 if unit == "layer" else 0.74)
    assert reached["layer"] >= 0.98
    assert reached["branch"] >= 0.983


def judge_batches(path, arrays):
    return Batches(arrays, signature(load(path)).inputs)


def test_resnet8(shared, tmp_path):
    """One residual branch; the two beside projections are refused."""
    source = shared / "models/mlperftiny_resnet8_cifar10.onnx"
    arrays = real_data.samples("mlperftiny_resnet8_cifar10", shared)[0]
    out = tmp_path / "o.onnx"
    record = optimize_file(source, out, [PruneBlocks()], data=arrays)
    effect = record.passes[0].effect
    assert [entry["node"] for entry in effect["refused"]] == ["add_1", "add_2"]
    assert effect["blocks"][0]["to"] == "activation_2_out"
    assert effect["removed_parameters"] == 4768
    compared = compare(source, out, judge_batches(source, arrays))
    assert compared.samples == 20


def test_tinybert_by_way_of_simplify(shared):
    source = shared / "models/tribuo_tinybert.onnx"
    arrays = real_data.samples("tribuo_tinybert", shared)[0]
    data = Batches(arrays, signature(load(source)).inputs)
    done = optimize(source, [Simplify(), PruneBlocks(unit="branch")], data=data, allow_no_effect=["simplify"])
    assert len(done.passes[1].effect["ranking"]) == 2
