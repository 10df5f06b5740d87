"""Within a budget: the ruined node stays in float, the rest is quantized, and the record says why."""

from __future__ import annotations

import builders
import graphs
import numpy as np
import onnx
import pytest

from onnxcomp import documents, runtime
from onnxcomp.errors import AccuracyGateError, DataError, NoEffectError, UsageError
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic, Simplify
from onnxcomp.pipeline import verify
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
