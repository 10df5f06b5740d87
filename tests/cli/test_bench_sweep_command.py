"""`bench --scenario sweep --tune-out`: how the options arrive, and the file that is written and taken again."""

from __future__ import annotations

import json

import builders
import pytest

from onnxcomp.cli import work
from onnxcomp.cli.bench import command
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import DataError, OutputError, UsageError


@pytest.fixture
def model(tmp_path):
    return str(builders.save(builders.mlp(), tmp_path / "m.onnx"))


@pytest.fixture
def passed(monkeypatch):
    """What the command line hands to the worker."""
    seen = {}
    document = {"results": [], "comparison": [], "trust": {"grade": "good", "reasons": []}, "warnings": ["other host"]}

    def take(self, fn, *args, **kwargs):
        seen.update(kwargs)
        return document

    monkeypatch.setattr(Shell, "work", take)
    return seen


def test_options_arrive(passed, capsys):
    command.main(
        ["m.onnx", "--scenario", "sweep", "--shape", "seq=32", "--shape", "n=2", "--shape", "seq=128", "--threads", "2",
         "--spinning", "off", "--optimization", "basic", "--tune-out", "s.json"],
        prog_name="bench", standalone_mode=False,
    )  # fmt: skip
    assert passed["sizes"] == {"seq": [32, 128], "n": 2}
    assert passed["threads"] == (2,)
    assert (passed["spinning"], passed["optimization"]) == ("off", ("basic",))
    assert passed["tune_out"] == "s.json"
    assert passed["seconds"] == 120
    assert "warning: other host" in capsys.readouterr().err
    command.main(["m.onnx", "--settings", "s.json"], prog_name="bench", standalone_mode=False)
    assert (passed["settings"], passed["threads"], passed["seconds"]) == ("s.json", None, 20)


def test_a_file_is_tuned_written_and_taken(model, tmp_path):
    path = tmp_path / "s.json"
    out = work.bench([model], scenario="sweep", batch=[1, 2], seconds=0.3, tune_out=str(path))
    assert {r["batch"] for r in out["results"]} == {1, 2}
    assert out["tuning"]["file"] == str(path)
    written = json.loads(path.read_text())
    assert written["schema"] == "onnxcomp/settings/1"
    assert written["model"]["sha256"] == out["models"][0]["sha256"]
    with pytest.raises(OutputError):
        work.bench([model], scenario="sweep", seconds=0.3, tune_out=str(path))

    written.update(threads=2, arena=False, host={**written["host"], "onnxruntime": "1.0"})
    path.write_text(json.dumps(written))
    out = work.bench([model], settings=str(path), seconds=0.1)
    assert out["results"][0]["threads"] == 2
    assert out["session"]["arena"] is False
    assert "tuned on another host" in out["warnings"][0]


def test_what_goes_wrong_with_files(model, tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"schema": "onnxcomp/settings/1", "arenas": false}')
    with pytest.raises(DataError) as error:
        work.bench([model], settings=str(path), seconds=0.1)
    assert error.value.hint == "did you mean 'arena'?"
    with pytest.raises(UsageError, match="does not go with a baseline"):
        work.bench([model], scenario="sweep", tune_out=str(tmp_path / "t.json"), baseline=str(path))
