"""Samples are divided once, the same way, and judged against answers that are kept."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from onnxcomp import evaluate, runtime
from onnxcomp.data import Batches
from onnxcomp.errors import DataError, UsageError
from onnxcomp.shrink import judging
from onnxcomp.shrink.splits import Splits, divide


@pytest.fixture
def model(tmp_path):
    return builders.save(builders.mlp(), tmp_path / "mlp.onnx")


@pytest.fixture
def worse(tmp_path):
    return builders.save(builders.mlp(width=24), tmp_path / "other.onnx")


def npz(path, count, *, seed=0, labels=True):
    arrays = {"x": builders.samples(count, 16, seed=seed)}
    if labels:
        arrays["labels"] = np.random.default_rng(seed).integers(0, 10, count)
    np.savez(path, **arrays)
    return path


def rows(folder):
    return np.concatenate([np.load(f)["x"] for f in sorted(folder.iterdir())])


def test_parts_are_disjoint_complete_and_the_same_each_time(tmp_path, model):
    data = npz(tmp_path / "d.npz", 100)
    made = divide(model, data, None, tmp_path / "one")
    assert made.samples == {"calibration": 50, "selection": 20, "test": 30}
    assert made.labelled
    parts = [rows(made.path(name)) for name in made.samples]
    together = np.concatenate(parts)
    assert {row.tobytes() for row in together} == {row.tobytes() for row in np.load(data)["x"]}
    again = divide(model, data, None, tmp_path / "two")
    assert all(np.array_equal(rows(made.path(n)), rows(again.path(n))) for n in made.samples)
    assert Splits.read(tmp_path / "one") == made


def test_shards_of_a_folder_are_divided_one_by_one(tmp_path, model):
    folder = tmp_path / "shards"
    folder.mkdir()
    for index in range(3):
        npz(folder / f"{index}.npz", 20, seed=index)
    made = divide(model, folder, None, tmp_path / "parts")
    assert sum(made.samples.values()) == 60
    assert len(rows(made.path("calibration"))) == made.samples["calibration"]
    assert len(list(made.path("test").iterdir())) == 3


def test_what_judges_is_divided_and_the_rest_calibrates(tmp_path, model):
    made = divide(model, npz(tmp_path / "d.npz", 9, labels=False), npz(tmp_path / "e.npz", 50, seed=1), tmp_path / "p")
    assert made.samples == {"calibration": 9, "selection": 20, "test": 30}


def test_a_resumed_run_must_have_the_same_samples(tmp_path, model):
    divide(model, npz(tmp_path / "d.npz", 40), None, tmp_path / "p")
    assert divide(model, npz(tmp_path / "d.npz", 40), None, tmp_path / "p").samples["test"] == 12
    with pytest.raises(DataError, match="not those of the interrupted run"):
        divide(model, npz(tmp_path / "d.npz", 41), None, tmp_path / "p")


def test_few_or_random_samples_are_refused(tmp_path, model):
    with pytest.raises(DataError, match="19 samples cannot be divided"):
        divide(model, npz(tmp_path / "d.npz", 19), None, tmp_path / "p")
    with pytest.raises(DataError, match="needs real data"):
        divide(model, "random:100", None, tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("metric", [None, "accuracy", "f1", "mse"])
def test_kept_answers_give_what_evaluate_gives(tmp_path, model, worse, metric):
    data = npz(tmp_path / "d.npz", 60) if metric != "mse" else tmp_path / "d.npz"
    if metric == "mse":
        np.savez(data, x=builders.samples(60, 16), labels=builders.samples(60, 10, seed=3))
    own = judging.record(model, data, metric, tmp_path / "kept")
    assert own.drop is not None
    assert own.drop.value == 0
    found = judging.judge(worse, model, data, tmp_path / "kept")
    wanted = evaluate(worse, data, metric=metric or "accuracy", against=model)
    assert found == wanted
    wide = judging.judge(worse, model, data, tmp_path / "kept", confidence=0.999)
    assert wide.drop.high > found.drop.high
    assert wide.value == found.value


def test_without_labels_the_input_is_the_measure(tmp_path, model, worse):
    data = npz(tmp_path / "d.npz", 60, labels=False)
    own = judging.record(model, data, None, tmp_path / "kept")
    assert (own.metric, own.value.value, own.drop.value) == ("agreement", 1.0, 0.0)
    found = judging.judge(worse, model, data, tmp_path / "kept")
    compared = evaluate.compare(model, worse, data)
    assert found.value == compared.agreement
    assert found.drop.value == pytest.approx(1 - compared.agreement.value)
    assert judging.record(model, data, "cosine", tmp_path / "cosine").value.value == 1.0
    alike = judging.judge(worse, model, data, tmp_path / "cosine")
    (output,) = compared.outputs.values()
    assert alike.value.value == pytest.approx(output.cosine_mean)
    assert alike.drop.low < alike.drop.value < alike.drop.high


def test_metrics_that_cannot_be_are_refused(tmp_path, model):
    with pytest.raises(DataError, match="f1 needs labels"):
        judging.record(model, npz(tmp_path / "d.npz", 40, labels=False), "f1", tmp_path / "kept")
    with pytest.raises(UsageError, match="unknown metric"):
        judging.record(model, npz(tmp_path / "e.npz", 40), "acuracy", tmp_path / "kept")


def test_the_kept_answers_are_those_of_the_input(tmp_path, model):
    data = npz(tmp_path / "d.npz", 40)
    judging.record(model, data, "accuracy", tmp_path / "kept")
    session = runtime.open_session(model)
    batch = next(iter(Batches(data, session.signature.inputs, batch_size=40)))
    (scores,) = session.run(batch.feeds).values()
    assert np.array_equal(np.load(tmp_path / "kept" / "predictions.npz")["chosen"], np.argmax(scores, axis=1))
