"""`onnxcomp plan`: one real plan of a small model; exit codes, tables and refusals without one."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import builders
import click
import pytest

from onnxcomp import documents
from onnxcomp.cli.plan import command
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import OnnxcompError
from onnxcomp.pack import triton
from onnxcomp.report import plans


def run(*arguments):
    """Exit code of a call in this process, and the error's words."""
    try:
        command.main(list(arguments), prog_name="plan", standalone_mode=False)
    except SystemExit as stop:
        return stop.code, ""
    except (OnnxcompError, click.UsageError) as error:
        return getattr(error, "code", 2), str(error)
    return 0, ""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A real plan of a small model, and where it was written."""
    folder = tmp_path_factory.mktemp("plan")
    model = builders.save(builders.mlp(), folder / "m.onnx")
    output = folder / "plan.json"
    asked = ("--rate", "120", "--slo-p99", "400", "--price-per-hour", "0.36", "--seconds", "8", "--seed", "1")
    done = subprocess.run(
        [sys.executable, "-m", "onnxcomp", "plan", str(model), *asked, "--no-pack", "--json", "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 9), done.stderr  # a machine that others load may be too busy to tell
    return json.loads(done.stdout), output


def test_a_real_plan_says_what_to_start_and_what_it_costs(planned):
    result, path = planned
    assert result["schema"] == "onnxcomp/plan/1"
    assert documents.read(path) == result
    (one,) = result["plans"]
    best = one["options"][one["best"]]
    assert best["need"]["machines"] == 1
    assert best["cost_per_million"]["value"] == pytest.approx(0.36e6 / (120 * 3600))
    assert best["cost_per_million_at_full_use"]["value"] < best["cost_per_million"]["value"]
    assert best["memory"]["pss_bytes"] > 10**7
    assert {"threads"} <= {option["kind"] for option in one["options"]} <= {"threads", "processes"}
    assert result["best"]["workers"] == best["need"]["workers_per_machine"] == triton.read_plan(path, 9).workers
    verified = best["verified"]
    assert (verified is None) <= (result["verdict"] == "undecided")  # no time: 8 seconds on a machine that others load
    if verified is not None:
        assert (verified["rate"], verified["verdict"]) == (120, result["verdict"])
        assert result["verdict"] != "met" or verified["p99_ms"]["high"] <= 400


def test_the_table_names_rates_costs_and_the_start(planned, capsys):
    plans.plan(planned[0])
    printed = capsys.readouterr().out
    for words in ("highest rate", "cost per million", "0.833 [0.833, ", "start", "intra_op_num_threads", "trust"):
        assert words in printed


@pytest.mark.parametrize(("verdict", "code"), [("met", 0), ("missed", 5), ("undecided", 9)])
def test_the_exit_code_is_the_verdict(planned, monkeypatch, capsys, verdict, code):
    result = copy.deepcopy(planned[0]) | {"verdict": verdict}
    (one,) = result["plans"]
    if verdict == "missed":
        nearest = {"slo_p99_ms": 12.5, "rate": 3.0, "configuration": "1 worker"}
        one.update(verdict="missed", reason="1 worker: a run alone takes 9 ms", best=None, nearest=nearest)
        one["options"][0].update(refused="a run alone takes 9 ms", need=None, highest_rate=None, verified=None)
        result["best"] = None
    monkeypatch.setattr(Shell, "work", lambda self, fn, *args, **kwargs: result)
    assert run("m.onnx", "--rate", "120", "--slo-p99", "5") == (code, "")
    printed = capsys.readouterr().out
    assert ("nearest: p99 within 12.5 ms at 3.0 requests a second of one machine" in printed) == (verdict == "missed")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rate", "0", "--slo-p99", "5"), "rate must be a positive number"),
        (("--rate", "5", "--slo-p99", "nan"), "slo_p99_ms must be a positive number"),
        (("--rate", "5", "--slo-p99", "5", "--seconds", "0"), "a positive time"),
        (("--rate", "5", "--slo-p99", "5", "--shape", "x"), "not of the form NAME=N"),
        (("--rate", "5"), "slo_p99"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(tmp_path, more, words):
    code, said = run(str(builders.save(builders.mlp(), tmp_path / "m.onnx")), *more)
    assert code == 2
    assert words in said


def test_an_output_that_exists_is_refused_before_anything_runs(tmp_path):
    model = builders.save(builders.mlp(), tmp_path / "m.onnx")
    (tmp_path / "plan.json").write_text("mine")
    code, said = run(str(model), "--rate", "5", "--slo-p99", "5", "-o", str(tmp_path / "plan.json"))
    assert (code, "the output exists" in said) == (8, True)
    assert (tmp_path / "plan.json").read_text() == "mine"


def test_a_missing_model_is_told(tmp_path):
    code, said = run(str(tmp_path / "no.onnx"), "--rate", "5", "--slo-p99", "5")
    assert (code, "no.onnx" in said) == (8, True)
