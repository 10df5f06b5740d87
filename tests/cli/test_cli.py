"""The command line: contract keys, exit codes, one error line and one hint line, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import builders
import numpy as np
import pytest

from onnxcomp.cli import VERBS


def run(*arguments, **options):
    command = [sys.executable, "-m", "onnxcomp", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False, **options
    )


def ok(*arguments):
    """The JSON of a verb that must succeed."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == f"onnxcomp/{arguments[0]}/1"
    return document


def fails(code, *arguments, text=""):
    """(error object, stderr) of a verb that must fail with this exit code."""
    done = run(*arguments, "--json")
    assert done.returncode == code, (done.returncode, done.stderr)
    document = json.loads(done.stdout)
    assert document["schema"] == "onnxcomp/error/1"
    assert document["code"] == code
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    assert text in done.stderr
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and data that most tests read."""
    place = tmp_path_factory.mktemp("cli")
    builders.save(builders.mlp(width=256), place / "mlp.onnx")
    builders.save(builders.cnn(), place / "cnn.onnx")
    builders.save(builders.relu(), place / "relu.onnx")
    x = builders.samples(80, 16)
    from onnxcomp.runtime import open_session

    labels = open_session(place / "mlp.onnx").run({"x": x})["y"].argmax(1)
    np.savez(place / "labelled.npz", x=x, labels=labels)
    np.savez(place / "x.npz", x=x)
    np.savez(place / "wrong.npz", nonsense=x)
    np.savez(place / "shape.npz", x=builders.samples(8, 17))
    np.savez(place / "dtype.npz", x=x.astype(np.float64))
    np.savez(place / "empty.npz", x=x[:0])
    np.savez(place / "nan.npz", x=np.full_like(x, np.nan))
    return place


def test_help_lists_every_verb_and_each_has_help():
    text = " ".join(run("--help").stdout.split())
    for verb, line in VERBS.items():
        assert verb in text
        assert line.split(":")[0] in text
        helped = run(verb, "--help")
        assert helped.returncode == 0
        assert "--json" in helped.stdout
        assert "\\b" not in helped.stdout  # click's mark for lines that stay as they are
        assert "Usage: onnxcomp " + verb in helped.stdout


def test_unknown_verb_and_option():
    document = fails(2, "quantise", text="No such command")
    assert "quantize" in document["message"]
    fails(2, "inspect")
    fails(2, "inspect", "m.onnx", "--verbos", text="--verbos")


def test_version():
    assert run("--version").stdout.startswith("onnxcomp, version ")


def test_inspect(folder):
    document = ok("inspect", folder / "mlp.onnx")
    assert document["quantized"] == {"weights": 0, "of": 2}
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 16]}]
    assert "parameters" in run("inspect", folder / "mlp.onnx").stdout


def test_the_way_through(folder, tmp_path):
    """quantize, verify, compare, evaluate, report: what one verb writes, the next reads."""
    model, data, out = folder / "mlp.onnx", folder / "labelled.npz", tmp_path / "q.onnx"
    record = ok("quantize", model, "-o", out, "--mode", "static", "--data", data)
    assert record["passes"][0]["effect"]["quantized_weights"] == 2
    assert record["size_ratio"] < 0.5
    assert ok("verify", out)["ok"] is True
    assert ok("compare", model, out, "--data", data)["samples"] == 80
    score = ok("evaluate", out, "--data", data, "--against", model)
    assert score["drop"]["low"] <= score["drop"]["value"] <= score["drop"]["high"]
    page = tmp_path / "r.html"
    ok("report", f"{out}.record.json", "-o", page)
    html = page.read_text()
    assert "q.onnx" in html
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_optimize_prune_and_run(folder, tmp_path):
    assert ok("optimize", folder / "cnn.onnx", "-o", tmp_path / "o.onnx")["equivalence"] < 1e-5
    pruned = ok("prune", folder / "mlp.onnx", "-o", tmp_path / "p.onnx", "--structure", "none", "--sparsity", "0.7")
    assert pruned["passes"][0]["effect"]["label"] == "download size only"
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[pass]]\nname = "simplify"\n[[pass]]\nname = "prune-magnitude"\nsparsity = 0.3\n')
    done = ok("run", recipe, folder / "cnn.onnx", "-o", tmp_path / "r.onnx")
    assert [p["name"] for p in done["passes"]] == ["simplify", "prune-magnitude"]
    assert done["passes"][1]["options"]["sparsity"] == 0.3


def test_optimize_raises_an_opset(folder, tmp_path):
    done = ok("optimize", folder / "cnn.onnx", "-o", tmp_path / "o.onnx", "--opset", "20")
    assert ok("inspect", tmp_path / "o.onnx")["model"]["opset"]["ai.onnx"] == 20
    assert done["passes"][0]["name"] == "upgrade-opset"


def test_bench_one_and_two(folder):
    one = ok("bench", folder / "mlp.onnx", "--seconds", "1", "--seed", "1")
    assert one["comparison"] == []
    assert one["results"][0]["latency_ms"]["p50"]["value"] > 0
    two = ok("bench", folder / "mlp.onnx", folder / "mlp.onnx", "--seconds", "2", "--data", folder / "x.npz")
    assert two["comparison"][0]["verdict"] in ("equivalent", "undecided", "faster", "slower")
    assert two["trust"]["grade"] in ("good", "fair", "poor")


def test_doctor():
    document = ok("doctor")
    assert document["providers"]["cpu"] == "works"


def test_evaluate_gate(folder, tmp_path):
    model, data = folder / "mlp.onnx", folder / "labelled.npz"
    ok("prune", model, "-o", tmp_path / "p.onnx", "--structure", "none", "--sparsity", "0.95")
    fails(5, "evaluate", tmp_path / "p.onnx", "--data", data, "--against", model, "--max-drop", "0.5%", text="drop")
    ok("evaluate", model, "--data", data, "--against", model, "--max-drop", "0.05")
    fails(2, "evaluate", model, "--data", data, "--against", model, "--max-drop", "0.5", text="0.5%")
    fails(2, "evaluate", model, "--data", data, "--max-drop", "0.01", text="--against")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        (None, "truncated"),
    ],
    ids=["empty", "page", "lfs", "truncated"],
)
def test_not_a_model(content, text, folder, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes((folder / "mlp.onnx").read_bytes()[:900] if content is None else content)
    fails(3, "inspect", path, text=text)
    fails(3, "quantize", path, "-o", tmp_path / "o.onnx", "--mode", "dynamic", text=text)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_external_data_tricks(tmp_path):
    path = builders.externalize(builders.mlp(), tmp_path)
    ok("inspect", path)
    (tmp_path / "weights.data").rename(tmp_path / "elsewhere")
    fails(3, "inspect", path, text="missing")
    proto = builders.mlp()
    builders.point_outside(proto.graph.initializer[0], "../../etc/passwd", 0, 2048)
    fails(3, "inspect", builders.save(proto, path), text="outside the model's folder")


@pytest.mark.parametrize("data", ["wrong", "shape", "dtype", "empty", "nan"])
def test_bad_calibration_data(data, folder, tmp_path):
    arguments = ("--mode", "static", "--data", folder / f"{data}.npz")
    fails(3, "quantize", folder / "mlp.onnx", "-o", tmp_path / "o.onnx", *arguments, text=f"{data}.npz")
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_of_quantize(folder, tmp_path):
    base = ("quantize", folder / "mlp.onnx", "-o", tmp_path / "o.onnx")
    fails(2, *base, "--mode", "dynamic", "--exclude", "fc3", text="fc3")
    fails(2, *base, "--mode", "dynamic", "--op-types", "Matmul", text="MatMul")
    fails(2, *base, "--mode", "static", text="--data")
    fails(2, *base, "--mode", "dynamic", "--calibration", "minmax", text="--calibration")
    fails(5, "quantize", folder / "relu.onnx", "-o", tmp_path / "o.onnx", "--mode", "dynamic", text="0 of 0")
    fails(4, "bench", folder / "mlp.onnx", "--provider", "cuda", text="CUDAExecutionProvider")


def test_outputs_are_not_overwritten(folder, tmp_path):
    out = tmp_path / "o.onnx"
    out.write_text("mine")
    arguments = ("--structure", "none")
    fails(8, "prune", folder / "mlp.onnx", "-o", out, *arguments, text="exists")
    assert out.read_text() == "mine"
    ok("prune", folder / "mlp.onnx", "-o", out, *arguments, "--force")
    fails(2, "prune", out, "-o", out, *arguments, "--force", text="same file")
    fails(8, "prune", folder / "mlp.onnx", "-o", tmp_path / "no" / "o.onnx", *arguments, text="folder")


def test_recipe_typo(folder, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[pass]]\nname = "prune-magnitude"\nsparsty = 0.3\n')
    document = fails(2, "run", recipe, folder / "mlp.onnx", "-o", tmp_path / "o.onnx", text="sparsty")
    assert "sparsity" in document["hint"]


def test_the_killer_model(tmp_path):
    path = builders.save(builders.layer_norm_empty_bias(), tmp_path / "m.onnx")
    ok("inspect", path)
    ok("bench", path, "--seconds", "1")


def test_a_full_disk_is_said(folder, tmp_path):
    """The kernel refuses writes beyond a file size limit, as a full disk would."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from onnxcomp.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "prune", str(folder / "mlp.onnx"), "-o", str(tmp_path / "o.onnx")]
    done = subprocess.run([*command, "--structure", "none"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 8, done.stderr
    assert "file size limit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_time_and_memory_limits(folder, tmp_path):
    arguments = ("prune", folder / "mlp.onnx", "-o", tmp_path / "o.onnx", "--structure", "none")
    fails(6, *arguments, "--time-limit", "0.1", text="--time-limit")
    fails(6, *arguments, "--memory-limit", "20MB", text="--memory-limit")
    fails(2, *arguments, "--memory-limit", "lots", text="lots")


def test_debug_shows_the_traceback(tmp_path):
    done = run("inspect", tmp_path / "none.onnx", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode == 8


def test_quiet_is_quiet(folder, tmp_path):
    done = run("prune", folder / "mlp.onnx", "-o", tmp_path / "o.onnx", "--structure", "none", "--quiet")
    assert done.stderr == ""
    loud = run("prune", folder / "mlp.onnx", "-o", tmp_path / "p.onnx", "--structure", "none")
    assert "download size only" in loud.stderr


def test_control_characters_of_a_model_do_not_reach_the_terminal(tmp_path):
    proto = builders.mlp()
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "evil\x1b[2Jname"
    builders.point_outside(proto.graph.initializer[0], "../x", 0, 4)
    done = run("inspect", builders.save(proto, tmp_path / "m.onnx"))
    assert "\x1b" not in done.stderr
