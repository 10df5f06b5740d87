"""Within a budget: the ruined node stays in float, the rest is quantized, and the record says why."""

from __future__ import annotations

import builders
import graphs
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp import documents, runtime
from onnxcomp.errors import AccuracyGateError, DataError, NoEffectError, UsageError
from onnxcomp.passes import CorrectBias, QuantizeDynamic, QuantizeStatic, Simplify
from onnxcomp.pipeline import optimize_file, verify
from onnxcomp.sensitivity import quantize_within


@pytest.fixture
def model(tmp_path):
    return builders.save(graphs.chain("second"), tmp_path / "m.onnx")


def labelled(path, count=300):
    x = graphs.rows(600)[-count:]
    return {"x": x, "labels": np.argmax(runtime.open_session(path).run({"x": x})["y"], axis=1)}


def within(path, tmp_path, step, **options):
    wanted = {"eval": labelled(path), "max_drop": 0.06, "data": {"x": graphs.rows()}, **options}
    return quantize_within(path, tmp_path / "o.onnx", [step], **wanted, allow_larger=True)


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic(op_types=("MatMul",))])
def test_only_the_ruined_node_stays_in_float(model, tmp_path, step):
    record = within(model, tmp_path, step)
    effect = record.passes[0].effect
    found = effect["search"]
    assert effect["quantized_weights"] == 2
    (excluded,) = found["excluded"]
    assert (excluded["node"], excluded["module"]) == ("second", "body.second")
    assert excluded["damage"] > 0.5
    assert excluded["bytes_lost"] == graphs.WIDTH**2 * 3
    assert excluded["drop_if_quantized"] > 0.3
    assert found["low"] <= found["drop"] <= found["high"]
    assert found["drop"] <= found["max_drop"] == 0.06
    assert found["complete"]
    assert [len(t["excluded"]) for t in found["tried"]] == [0, 1]
    assert [t["fits"] for t in found["tried"]] == [False, True]
    assert found["ranking"][0]["node"] == "second"
    (skipped,) = effect["skipped"]
    assert skipped["node"] == "second"
    assert "quantized too, the drop would be" in skipped["reason"]
    names = {t.name for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    assert "second.weight" in names
    assert not {"first.weight", "third.weight"} & names
    written = documents.read(tmp_path / "o.onnx.record.json")
    assert written["passes"][0]["effect"]["search"] == found
    assert written["passes"][0]["options"]["step"] == step.name
    verify(tmp_path / "o.onnx")


def test_a_model_that_bears_int8_needs_no_ranking(tmp_path):
    path = builders.save(graphs.chain(), tmp_path / "m.onnx")
    found = within(path, tmp_path, QuantizeDynamic()).passes[0].effect["search"]
    assert (found["excluded"], found["ranking"], len(found["tried"])) == ([], [], 1)


def test_two_ruined_nodes(tmp_path):
    path = builders.save(graphs.chain("first", "third"), tmp_path / "m.onnx")
    found = within(path, tmp_path, QuantizeDynamic()).passes[0].effect["search"]
    assert sorted(n["node"] for n in found["excluded"]) == ["first", "third"]
    assert all(n["drop_if_quantized"] > 0.06 for n in found["excluded"])


def test_nothing_is_written_when_nothing_fits(model, tmp_path):
    with pytest.raises(AccuracyGateError, match=r"candidates keeps accuracy within -0\.5") as failure:
        within(model, tmp_path, QuantizeDynamic(), max_drop=-0.5)
    assert "body.second" in failure.value.where
    assert not (tmp_path / "o.onnx").exists()


def test_without_labels_fidelity_judges(model, tmp_path):
    record = within(model, tmp_path, QuantizeDynamic(), eval={"x": graphs.rows(200)}, max_drop=0.1)
    found = record.passes[0].effect["search"]
    assert found["metric"] == "agreement"
    assert [n["node"] for n in found["excluded"]] == ["second"]


def test_a_metric_where_less_is_better(model, tmp_path):
    x = graphs.rows(200)
    wanted = {"x": x, "labels": runtime.open_session(model).run({"x": x})["y"]}
    found = within(model, tmp_path, QuantizeDynamic(), eval=wanted, metric="mse", max_drop=0.05)
    found = found.passes[0].effect["search"]
    assert [n["node"] for n in found["excluded"]] == ["second"]
    assert 0 < found["drop"] <= 0.05 < found["tried"][0]["drop"]


def test_without_data_the_judging_samples_rank_and_the_record_says_so(model, tmp_path):
    record = within(model, tmp_path, QuantizeDynamic(), data=None)
    assert [n["node"] for n in record.passes[0].effect["search"]["excluded"]] == ["second"]
    assert any("samples that judge" in note.reason for note in record.passes[0].notes)


def test_other_passes_run_too_and_the_drop_is_from_the_input(model, tmp_path):
    options = {"eval": labelled(model), "max_drop": 0.06, "data": {"x": graphs.rows()}}
    steps = [Simplify(), QuantizeDynamic()]
    record = quantize_within(
        model, tmp_path / "o.onnx", steps, **options, allow_larger=True, allow_no_effect=("simplify",)
    )
    assert [p.name for p in record.passes] == ["simplify", "quantize-within"]


def test_the_users_own_exclusions_are_kept(model, tmp_path):
    record = within(model, tmp_path, QuantizeDynamic(exclude=("body.first",)))
    effect = record.passes[0].effect
    assert [n["node"] for n in effect["search"]["excluded"]] == ["second"]
    assert effect["quantized_weights"] == 1


def test_one_quantization_is_needed(model, tmp_path):
    with pytest.raises(UsageError, match="one quantization"):
        within(model, tmp_path, Simplify())


def test_noise_does_not_judge(model, tmp_path):
    with pytest.raises(DataError, match="real data"):
        within(model, tmp_path, QuantizeDynamic(), eval="random:8")


def test_nothing_to_quantize_is_told_as_ever(model, tmp_path):
    with pytest.raises(NoEffectError, match="0 of 3 weights"):
        within(model, tmp_path, QuantizeDynamic(op_types=("LSTM",)))


def with_biases(*ruined):
    """The chain with a bias behind each matrix."""
    proto = graphs.chain(*ruined)
    for node in list(proto.graph.node):
        if node.op_type == "MatMul":
            name = node.name
            add = helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [node.output[0]], name=f"{name}.add")
            node.output[0] = f"{name}.product"
            proto.graph.node.insert(list(proto.graph.node).index(node) + 1, add)
            proto.graph.initializer.append(builders.weight(f"{name}.bias", graphs.WIDTH))
    return proto


def biases(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name.endswith(".bias")}


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic()], ids=lambda step: step.name)
def test_biases_are_corrected_for_what_is_quantized_alone(step, tmp_path):
    path = builders.save(with_biases("second"), tmp_path / "m.onnx")
    options = {"data": {"x": graphs.rows()}, "allow_larger": True}
    budget = {"eval": labelled(path), "max_drop": 0.06}
    record = quantize_within(path, tmp_path / "o.onnx", [CorrectBias(), step], **budget, **options)
    (done,) = record.passes
    assert [n["node"] for n in done.effect["search"]["excluded"]] == ["second"]
    assert [entry["node"] for entry in done.effect["biases"]["layers"]] == ["first", "third"]
    assert (done.effect["biases"]["corrected"], done.effect["biases"]["of"]) == (2, 3)
    before, after = biases(path), biases(tmp_path / "o.onnx")
    np.testing.assert_array_equal(after["second.bias"], before["second.bias"])
    optimize_file(path, tmp_path / "c.onnx", [CorrectBias()], **options)
    corrected = biases(tmp_path / "c.onnx")
    assert not np.array_equal(corrected["second.bias"], before["second.bias"])
    for name in {"first.bias", "third.bias"} & set(after):  # static int8 stores them as integers
        np.testing.assert_allclose(after[name], corrected[name], atol=1e-6)
    assert documents.read(tmp_path / "o.onnx.record.json")["passes"][0]["options"]["biases"] == CorrectBias().options()
