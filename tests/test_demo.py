"""The main job, short: two epochs, three seconds of benchmark."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from onnxcomp import demo as demos
from onnxcomp.errors import OutputError, UnsupportedError
from onnxcomp.runtime import open_session

GATES = {"reference", "passed", "passed, not certain", "failed"}
#: samples per run of `evaluate`, unless told
_BATCH = 32

VERDICTS = {"faster", "slower", "equivalent", "undecided"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, result, lines) of a demo in a folder that holds an earlier one's files."""
    place = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    place.mkdir(parents=True)
    for name in ("digits.onnx", "digits-static-int8.onnx", "demo.json", "report.html", "test.npz", "notes.txt"):
        (place / name).write_text("old")
    lines = []
    result = demos.demo(place, epochs=2, seconds=3, seed=3, on_step=lines.append)
    return place, result, lines


def test_every_file_is_new_and_no_litter_is_left(done):
    place, result, _ = done
    names = {path.name for path in place.iterdir()}
    models = {Path(row["path"]).name for row in result["models"]}
    records = {f"{name}.record.json" for name in models - {"digits.onnx"}}
    data = {"digits.safetensors", "calibration.npz", "test.npz"}
    assert names == models | records | data | {"demo.json", "report.html", "notes.txt"}
    assert [path.name for path in place.iterdir() if path.read_bytes() == b"old"] == ["notes.txt"]


def test_the_first_row_is_the_reference_and_the_others_are_smaller(done):
    place, result, _ = done
    first, *others = result["models"]
    assert (first["name"], first["gate"], first["drop"], first["speedup"]) == ("float32", "reference", None, None)
    assert others
    for row in result["models"]:
        path = Path(row["path"])
        assert path.parent == place
        assert row["bytes"] == path.stat().st_size
        assert row["size_ratio"] == pytest.approx(row["bytes"] / first["bytes"])
        assert [i.name for i in open_session(path).signature.inputs] == ["image"]
    assert all(row["size_ratio"] < 1 for row in others)


def test_every_candidate_is_a_row_or_a_refusal_with_its_reason(done):
    _, result, _ = done
    tried = [name for name, _ in demos.CANDIDATES]
    rows = [row["name"] for row in result["models"][1:]]
    refused = [entry["name"] for entry in result["refused"]]
    assert sorted(rows + refused) == sorted(tried)
    assert all(entry["reason"] for entry in result["refused"])


def test_accuracy_is_that_of_the_held_out_samples(done):
    place, result, _ = done
    with np.load(place / "test.npz") as held_out:
        images, labels = held_out["image"], held_out["labels"]
    assert len(labels) == result["training"]["test"] == 599
    for row in result["models"]:
        session = open_session(row["path"])
        # the ranges of dynamic int8 are those of the batch: batches of another size may give other answers
        parts = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        scores = np.concatenate([next(iter(session.run({"image": part}).values())) for part in parts])
        assert row["score"]["value"] == pytest.approx(np.mean(scores.argmax(1) == labels))
        assert row["score"]["low"] < row["score"]["value"] < row["score"]["high"]
        assert row["samples"] == 599
    assert result["training"]["accuracy"] == pytest.approx(result["models"][0]["score"]["value"])


def test_calibration_never_sees_the_held_out_samples(done):
    place, _, _ = done
    with np.load(place / "calibration.npz") as used, np.load(place / "test.npz") as held_out:
        assert used.files == ["image"]
        assert len(used["image"]) == 1198
        seen = {image.tobytes() for image in used["image"]}
        assert not any(image.tobytes() in seen for image in held_out["image"])


def test_gates_follow_the_paired_drop(done):
    _, result, _ = done
    reference = result["models"][0]["score"]["value"]
    for row in result["models"][1:]:
        drop = row["drop"]
        assert drop["value"] == pytest.approx(reference - row["score"]["value"])
        assert drop["low"] <= drop["value"] <= drop["high"]
        if drop["value"] > result["max_drop"]:
            assert row["gate"] == "failed"
        else:
            assert row["gate"] == ("passed" if drop["high"] <= result["max_drop"] else "passed, not certain")


def test_speedups_are_those_of_the_benchmark(done):
    _, result, _ = done
    found = {entry["candidate"]: entry for entry in result["bench"]["comparison"]}
    assert set(found) == {row["path"] for row in result["models"][1:]}
    for row in result["models"][1:]:
        assert row["verdict"] in VERDICTS
        assert (row["speedup"], row["verdict"]) == (found[row["path"]]["speedup"], found[row["path"]]["verdict"])


def test_the_conclusion_is_what_the_rows_say(done):
    _, result, _ = done
    fit = [row for row in result["models"] if row["gate"].startswith("passed")]
    if not fit:
        assert result["winner"] is None
        assert result["conclusion"] == "No candidate is within the budget; serve float32."
        return
    winner = next(row for row in fit if row["name"] == result["winner"])
    assert winner["name"].lower() in result["conclusion"].lower()
    assert f"{100 * winner['drop']['value']:.2f} points" in result["conclusion"]
    nothing_faster = "nothing is measurably faster" in result["conclusion"].lower()
    assert nothing_faster == all(row["verdict"] != "faster" for row in fit)


def test_the_document_is_the_result(done):
    place, result, _ = done
    document = json.loads((place / "demo.json").read_text())
    assert document.pop("schema") == "onnxcomp/demo/1"
    assert document == json.loads(json.dumps(result))


def test_the_page_shows_every_row_and_refusal(done):
    place, result, _ = done
    page = (place / "report.html").read_text()
    assert Path(result["report"]) == place / "report.html"
    for entry in (*result["models"], *result["refused"]):
        assert entry["name"] in page
    assert result["conclusion"] in page
    assert "<script" not in page


def test_the_export_was_proven_at_other_batch_sizes(done):
    _, result, lines = done
    sizes = {check["sizes"]["batch"] for check in result["export"]["parity"]}
    assert len(sizes) >= 4
    assert f"at {len(result['export']['parity'])} batch sizes" in lines[1]


def test_each_step_is_said(done):
    _, result, lines = done
    assert lines[0].startswith("trained in ")
    assert f"{result['training']['accuracy']:.2%} right" in lines[0]
    for line, (name, _) in zip(lines[2:], demos.CANDIDATES, strict=True):
        assert line.startswith(f"{name}: ")
    assert sum("refused" in line for line in lines) == len(result["refused"])


def test_the_readmes_python_works_on_the_demos_files(done, monkeypatch, capsys):
    place, _, _ = done
    monkeypatch.chdir(place.parent.parent)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert re.fullmatch(
        r"\d\.\d\dx smaller\naccuracy 0\.\d{4}, drop -?0\.\d{4} \[-?0\.\d{4}, -?0\.\d{4}\]\n", capsys.readouterr().out
    )


def row(name, *, gate="passed", verdict="equivalent", low=1.0, size=500, drop=0.001, half=0.001):
    return {
        "name": name,
        "gate": gate,
        "verdict": verdict,
        "bytes": size,
        "size_ratio": size / 1000,
        "samples": 600,
        "speedup": {"value": low + 0.1, "low": low, "high": low + 0.2},
        "drop": {"value": drop, "low": drop - half, "high": drop + half},
    }


REFERENCE = {**row("float32", gate="reference", size=1000), "drop": None, "speedup": None, "verdict": None}


@pytest.mark.parametrize(
    ("rows", "winner", "words"),
    [
        ([], None, "No candidate is within the budget; serve float32."),
        ([row("a", gate="failed", verdict="faster", low=9.0)], None, "serve float32."),
        (
            [row("small", size=200), row("quick", verdict="faster", low=1.2)],
            "quick",
            "Quick is 1.30 times faster and 2.00 times smaller than float32, at a drop of 0.10 points.",
        ),
        ([row("a", verdict="faster", low=1.2), row("b", verdict="faster", low=1.4)], "b", "B is 1.50 times faster"),
        (
            [row("big", size=900), row("small", size=250, verdict="slower")],
            "small",
            "Nothing is measurably faster than float32 on this machine; small is 4.00 times smaller, at a drop of 0.10",
        ),
        ([row("a", verdict="undecided", low=3.0)], "a", "Nothing is measurably faster"),
        ([row("a", verdict=None)], "a", "Nothing is measurably faster"),
        (
            [row("a", gate="passed, not certain", verdict="faster", drop=0.003, half=0.004)],
            "a",
            "(between -0.10 and 0.70; about 2,400 held-out samples would make it certain).",
        ),
        (
            [row("a", gate="passed, not certain", verdict="faster", drop=0.005, half=0.004)],
            "a",
            "at a drop of 0.50 points (between 0.10 and 0.90).",
        ),
    ],
)
def test_the_winner_is_the_fastest_within_the_budget(rows, winner, words):
    chosen = demos._choose([REFERENCE, *rows], 0.005)
    assert chosen["winner"] == winner
    assert words in chosen["conclusion"]


def test_missing_extras_are_named(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    absent = {"sklearn", "jinja2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(UnsupportedError, match="sklearn, jinja2") as caught:
        demos.demo(tmp_path / "out")
    assert "onnxcomp[demo]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    for place in (tmp_path / "out", tmp_path / "out" / "inner"):
        with pytest.raises(OutputError):
            demos.demo(place)
    assert (tmp_path / "out").read_text() == "mine"
