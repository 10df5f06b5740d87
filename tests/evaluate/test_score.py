"""Metrics against labels; intervals that hold what they promise."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest

from onnxcomp.errors import DataError, UsageError
from onnxcomp.evaluate import evaluate, paired_drop, wilson


@pytest.fixture
def judged(tmp_path):
    """(model, data file) with labels that the model gets right in 90 of 100 samples."""
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    from onnxcomp.runtime import open_session

    x = builders.samples(100, 16)
    labels = open_session(path).run({"x": x})["y"].argmax(1)
    labels[:10] = (labels[:10] + 1) % 10
    data = tmp_path / "d.npz"
    np.savez(data, x=x, labels=labels)
    return path, data


def test_accuracy_with_its_interval(judged):
    found = evaluate(*judged)
    assert found.value.value == 0.9
    assert (found.value.low, found.value.high) == (wilson(90, 100).low, wilson(90, 100).high)
    assert found.samples == 100
    assert found.drop is None


def test_drop_against_itself_is_zero_but_not_certain(judged):
    found = evaluate(*judged, against=judged[0])
    assert found.drop.value == 0
    assert found.drop.low < 0 < found.drop.high < 0.02


@pytest.mark.parametrize("metric", ["top5", "f1"])
def test_other_class_metrics(judged, metric):
    found = evaluate(*judged, metric=metric, against=judged[0])
    assert 0.5 < found.value.low <= found.value.value <= found.value.high <= 1
    assert found.drop.value == 0


def test_mse_is_lower_better(tmp_path):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    from onnxcomp.runtime import open_session

    x = builders.samples(50, 16)
    data = tmp_path / "d.npz"
    np.savez(data, x=x, labels=open_session(path).run({"x": x})["y"] + 0.5)
    found = evaluate(path, data, metric="mse")
    assert found.value.value == pytest.approx(0.25, rel=1e-4)
    assert not found.higher_is_better


def test_own_metric_from_a_file(judged, tmp_path):
    source = tmp_path / "metric.py"
    source.write_text("def right(outputs, labels):\n    return (outputs['y'].argmax(1) == labels) * 1.0\n")
    found = evaluate(*judged, metric=f"{source}:right", against=judged[0])
    assert found.value.value == pytest.approx(0.9)
    assert found.drop.value == 0


def test_own_metric_must_give_one_score_per_sample(judged, tmp_path):
    source = tmp_path / "bad_metric.py"
    source.write_text("def one(outputs, labels):\n    return 0.5\n")
    with pytest.raises(DataError, match="one score per sample"):
        evaluate(*judged, metric=f"{source}:one")


def test_refusals(judged, tmp_path):
    path, _ = judged
    np.savez(tmp_path / "bare.npz", x=builders.samples(4, 16))
    with pytest.raises(DataError, match="labels"):
        evaluate(path, tmp_path / "bare.npz")
    with pytest.raises(UsageError, match="acuracy") as error:
        evaluate(*judged, metric="acuracy")
    assert "accuracy" in error.value.hint
    with pytest.raises(UsageError, match="no output"):
        evaluate(*judged, output="nope")


def test_wilson_covers():
    """A proportion of 0.97 at n = 150, the size of real test sets: at least 93 % of intervals hold it."""
    hits = np.random.default_rng(0).binomial(150, 0.97, 2000)
    held = [wilson(int(h), 150) for h in hits]
    assert np.mean([i.low <= 0.97 <= i.high for i in held]) > 0.93


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.03, 0.0), (0.1, 0.05)])
def test_paired_drop_covers(lost, won):
    """Discordant pairs as rare as they are between a model and its int8 copy."""
    generator = np.random.default_rng(1)
    truth, held = lost - won, []
    for _ in range(1500):
        kind = generator.choice(4, 200, p=[0.9 - lost - won, lost, won, 0.1])
        reference, candidate = (kind == 0) | (kind == 1), (kind == 0) | (kind == 2)
        found = paired_drop(reference, candidate)
        held.append(found.low <= truth <= found.high)
    assert 0.92 < np.mean(held) <= 1.0


def test_paired_is_narrower_than_apart():
    generator = np.random.default_rng(2)
    reference = generator.random(500) < 0.9
    candidate = reference.copy()
    candidate[:3] = ~candidate[:3]
    drop = paired_drop(reference, candidate)
    alone = wilson(int(reference.sum()), 500)
    assert drop.high - drop.low < 0.5 * (alone.high - alone.low)


def test_magika_reaches_the_published_accuracy(shared, tmp_path):
    import real_data

    arrays, _ = real_data.samples("magika_standard_v3_3", shared)
    np.savez(tmp_path / "d.npz", **arrays)
    found = evaluate(shared / "models/magika_standard_v3_3.onnx", tmp_path / "d.npz")
    assert found.value.value == pytest.approx(150 / 154)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_one_number_per_sample_is_no_class(tmp_path, metric):
    """The largest of one score is always the first: every model would look equal to every other."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)],
        "one",
        [builders.value("x", "n", 4)],
        [builders.value("y", "n", 1)],
    )
    sets = [onnx.helper.make_opsetid("", 13)]
    path = builders.save(onnx.helper.make_model(graph, opset_imports=sets, ir_version=8), tmp_path / "m.onnx")
    data = tmp_path / "d.npz"
    np.savez(data, x=builders.samples(20, 4), labels=np.zeros(20, np.int64))
    with pytest.raises(UsageError, match="one score per class"):
        evaluate(path, data, metric=metric)
