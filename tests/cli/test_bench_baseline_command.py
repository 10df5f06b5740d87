"""`onnxcomp bench -o` and `--baseline`: what is stored, and the exit codes."""

from __future__ import annotations

import json

import builders
import pytest

from onnxcomp.cli import work
from onnxcomp.cli.bench import command
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import OutputError, UsageError

QUICK = {"seconds": 0.5, "max_runs": 200, "seed": 1}


@pytest.fixture
def model(tmp_path):
    return str(builders.save(builders.mlp(), tmp_path / "net.onnx"))


def test_a_stored_run_is_the_printed_object_and_a_baseline(model, tmp_path):
    path = str(tmp_path / "run.json")
    found = work.bench([model], output=path, **QUICK)
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept == {"schema": "onnxcomp/bench/1", **json.loads(json.dumps(found))}
    assert found["results"][0]["sessions"] == 20
    assert len(found["results"][0]["samples"]["per_session"]) == 20
    next_path = str(tmp_path / "next.json")
    gated = work.bench([model], baseline=path, output=next_path, tolerance=0.9, **QUICK)
    assert gated["baseline"]["path"] == path
    assert gated["baseline"]["tolerance"] == 0.9
    assert gated["baseline"]["verdict"] == "passed"
    assert json.loads((tmp_path / "next.json").read_text())["baseline"]["verdict"] == "passed"


def test_without_storing_one_session_is_measured_unless_more_are_asked_for(model):
    assert work.bench([model], **QUICK)["results"][0]["sessions"] == 1
    assert work.bench([model], sessions=3, **QUICK)["results"][0]["sessions"] == 3


def test_an_output_is_not_replaced_before_anything_runs(model, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("{}")
    with pytest.raises(OutputError, match="exists"):
        work.bench([str(tmp_path / "no.onnx")], output=str(path))
    with pytest.raises(UsageError, match="same file"):
        work.bench([model], output=str(path), baseline=str(path), force=True)
    work.bench([model], output=str(path), force=True, **QUICK)
    assert json.loads(path.read_text())["schema"] == "onnxcomp/bench/1"


def answer(verdict, slo=()):
    results = [{"slo": {"verdict": one}} for one in slo]
    return {"results": results, "comparison": [], "baseline": {"verdict": verdict}}


@pytest.mark.parametrize(
    ("verdict", "slo", "code"),
    [
        ("passed", (), 0),
        ("regression", (), 5),
        ("undecided", (), 9),
        ("undecided", ("missed",), 5),
        ("regression", ("undecided",), 5),
        ("passed", ("met",), 0),
    ],
)
def test_the_exit_code_is_the_worst_verdict_and_the_result_is_printed(monkeypatch, capsys, verdict, slo, code):
    monkeypatch.setattr(Shell, "work", lambda self, fn, *args, **kwargs: answer(verdict, slo))
    try:
        command.main(["net.onnx", "--baseline", "run.json", "--json"], standalone_mode=False)
        ended = 0
    except SystemExit as end:
        ended = end.code
    assert ended == code
    assert json.loads(capsys.readouterr().out)["baseline"]["verdict"] == verdict


def test_the_tolerance_is_a_share_or_percent(monkeypatch):
    seen = []
    monkeypatch.setattr(Shell, "work", lambda self, fn, *args, **kwargs: seen.append(kwargs) or answer("passed"))
    for options in ([], ["--tolerance", "5%"], ["--tolerance", "0.03"]):
        command.main(["net.onnx", "--baseline", "run.json", "--json", *options], standalone_mode=False)
    assert [one["tolerance"] for one in seen] == [0.02, 0.05, 0.03]
