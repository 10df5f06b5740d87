"""The whole search on real models: what wins holds, is made again byte for byte, and is not made twice."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import real_data

from onnxcomp import evaluate, pipeline
from onnxcomp.errors import DataError, OutputError, ProviderError, UsageError
from onnxcomp.recipe import Recipe
from onnxcomp.shrink import shrink
from onnxcomp.shrink.candidates import Candidate
from onnxcomp.shrink.ledger import Ledger
from onnxcomp.shrink.outcome import Outcome

OPTIONS = {"max_drop": 0.05, "passes": ["simplify", "fuse", "quantize-dynamic"], "tune": False, "time_budget": 200}


@pytest.fixture(scope="module")
def snips(shared, tmp_path_factory):
    """(model, data): the intent transformer with its labelled sentences."""
    folder = tmp_path_factory.mktemp("snips")
    arrays, real = real_data.samples("snips_transformer", shared)
    assert real
    np.savez(folder / "data.npz", **arrays)
    return shared / "models/snips_transformer.onnx", folder / "data.npz"


@pytest.fixture(scope="module")
def found(snips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found") / "out"
    heard = []
    result = shrink(*snips, folder, on_outcome=lambda outcome, left: heard.append(outcome), **OPTIONS)
    return result, folder, heard


def test_the_winner_is_smaller_faster_and_within_the_budget(found, snips):
    result, folder, _ = found
    assert result.best is not None
    out = json.loads((folder / "shrink.json").read_text())
    best = out["best"]
    assert (out["budget_met"], out["metric"], out["complete"]) == (True, "accuracy", True)
    assert best["size_ratio"] < 0.35
    assert best["speedup"]["verdict"] == "faster"
    assert best["drop"]["high"] <= 0.05
    score = evaluate(folder / "best.onnx", folder / "study/data/test", against=snips[0])
    assert best["score"]["value"] == score.value.value
    assert best["samples"] == out["samples"]["test"] == 210
    assert pipeline.verify(folder / "best.onnx").file.sha256 == best["sha256"]


def test_the_recipe_makes_the_same_bytes(found, snips, tmp_path):
    result, folder, _ = found
    recipe = Recipe.load(folder / "recipe.toml")
    record = pipeline.optimize_file(
        snips[0],
        tmp_path / "again.onnx",
        recipe.passes,
        data=folder / "study/data/calibration",
        allow_no_effect=recipe.allow_no_effect,
        calibration=recipe.calibration,
    )
    assert record.output.sha256 == result.best.timed.outcome.sha256


def test_a_resumed_search_makes_nothing_twice(found, snips, tmp_path):
    result, folder, heard = found
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    (copy / "shrink.json").unlink()
    again = []
    resumed = shrink(*snips, copy, resume=True, on_outcome=lambda outcome, left: again.append(outcome), **OPTIONS)
    # the seconds too: they were read, not measured
    assert [dataclasses.replace(one, path=None) for one in again] == [
        dataclasses.replace(one, path=None) for one in heard
    ]
    assert {one.path for one in again} == {one.path.replace(str(folder), str(copy)) for one in heard}
    assert resumed.best is not None
    assert resumed.best.timed.outcome.sha256 == result.best.timed.outcome.sha256


def test_another_budget_is_another_search(found, snips, tmp_path):
    _, folder, _ = found
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    with pytest.raises(DataError, match="another budget"):
        shrink(*snips, copy, resume=True, **{**OPTIONS, "max_drop": 0.06})
    with pytest.raises(OutputError, match="not empty"):
        shrink(*snips, copy, **OPTIONS)


def test_a_model_that_nothing_helps_is_said_to_be_so(shared, tmp_path):
    model = shared / "models/tract_xgboost_classifier_tree.onnx"
    np.savez(tmp_path / "d.npz", input=np.random.default_rng(0).standard_normal((400, 13)).astype(np.float32))
    result = shrink(model, tmp_path / "d.npz", tmp_path / "out", max_drop=0.05)
    out = result.to_json()
    assert (out["best"], out["budget_met"], out["tried"]) == (None, False, 1)
    assert "no candidate is smaller or faster" in out["why_none"]
    assert all("no matrix" in one["reason"] for one in out["left_out"])
    assert not (tmp_path / "out/best.onnx").exists()


def test_too_few_samples_are_told_before_anything_is_made(snips, tmp_path):
    with pytest.raises(DataError, match=r"cannot show a drop of accuracy within 0.001.*about 1,9\d\d do"):
        shrink(*snips, tmp_path / "out", max_drop=0.001)
    assert not (tmp_path / "out/study/candidates").exists()


def test_bad_requests_leave_no_folder(snips, tmp_path):
    model, data = snips
    with pytest.raises(UsageError, match="unknown minimize"):
        shrink(model, data, tmp_path / "out", max_drop=0.01, minimize="speed")
    with pytest.raises(UsageError, match="must be positive"):
        shrink(model, data, tmp_path / "out", max_drop=0.01, time_budget=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="unknown pass 'quantise-static'"):
        shrink(model, data, tmp_path / "out", max_drop=0.05, passes=["quantise-static"])
    with pytest.raises(ProviderError):
        shrink(model, data, tmp_path / "out", max_drop=0.05, provider="cuda")
    with pytest.raises(DataError, match=r"not enough samples|a run holds"):
        shrink(model, data, tmp_path / "out", max_drop=0.05, batch=5000)
    assert not (tmp_path / "out").exists()


def test_a_folder_loses_nothing_but_an_earlier_search(snips, tmp_path):
    model, data = snips
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="something else"):
        shrink(model, data, mine, force=True, max_drop=0.05)
    (mine / "shrink.json").write_text("{}")
    (mine / "study").mkdir()
    shutil.copy(model, mine / "best.onnx")
    for option in ("force", "resume"):
        with pytest.raises(UsageError, match="lies in the folder of the result"):
            shrink(mine / "best.onnx", data, mine, max_drop=0.05, **{option: True})
    assert (mine / "best.onnx").read_bytes() == model.read_bytes()
    with pytest.raises(DataError, match="cannot show a drop"):  # begun anew, and no further
        shrink(model, data, mine, force=True, max_drop=0.001)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert not (mine / "best.onnx").exists()


def test_the_ledger_keeps_what_is_known_and_is_about_one_thing(tmp_path):
    path, about = tmp_path / "journal.log", {"model": "a"}
    open_ledger = functools.partial(Ledger, path, files=tmp_path)
    failed = Outcome(Candidate("clean"), reason="no")
    open_ledger(about).write(Candidate("clean"), failed)
    again = open_ledger(about)
    assert again.known(Candidate("clean")) == failed
    assert again.known(Candidate("fused")) is None
    with pytest.raises(DataError, match="another model"):
        open_ledger({"model": "b"})
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "trunc')
    assert open_ledger(about).known(Candidate("clean")) == failed  # a write that a kill cut short
