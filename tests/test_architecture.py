"""The layers of the package, its light imports, its public names and its files, read from the sources."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import onnxcomp

PACKAGE = ROOT / "onnxcomp"

#: a module may import only what stands above it; the libraries are those it may import beside the standard ones
LAYERS: dict[str, set[str]] = {
    "__version__": set(),
    "errors": set(),
    "callable": set(),
    "documents": set(),
    "settings": {"onnxruntime"},
    "model": {"onnx", "onnx_ir", "google", "numpy"},
    "data": {"numpy"},
    "inspect": {"onnx_ir", "numpy"},
    "runtime": {"onnxruntime", "numpy"},
    "worker": {"psutil"},
    "devices": {"pynvml"},
    "memory": set(),
    "replicas": {"numpy", "onnxruntime"},
    "activations": {"onnx_ir", "numpy"},
    "evaluate": {"numpy", "scipy"},
    "passes.base": {"onnx_ir"},
    "explain": {"onnx_ir"},
    "passes.probe": {"onnx_ir", "numpy"},
    "passes.batchnorm": {"onnx_ir", "numpy"},
    "passes.fusions": {"onnx_ir", "numpy"},
    "passes.distill": {"onnx_ir"},
    "passes.fuse": {"onnx_ir"},
    "passes.rewrites": {"onnx_ir", "numpy"},
    "passes.rules": {"onnxscript"},
    "passes.simplify": {"onnx_ir", "onnxscript"},
    "passes.cast": {"onnx_ir", "numpy", "onnx"},
    "passes.adapters": {"onnx_ir", "numpy", "onnx"},
    "passes.opset": {"onnx_ir", "onnxscript"},
    "passes.prune": {"onnx_ir", "numpy", "scipy", "zstandard"},
    "passes.quantize": {"onnx_ir", "numpy", "onnxruntime"},
    "passes.share": {"onnx_ir", "numpy", "scipy", "threadpoolctl"},
    "passes": set(),
    "speed": {"numpy"},
    "check": {"onnx_ir", "numpy"},
    "stages": {"onnx_ir", "numpy"},
    "record": set(),
    "pipeline": {"onnx_ir", "numpy"},
    "sensitivity": {"onnx_ir", "numpy"},
    "recipe": {"pydantic"},
    "pytorch": {"torch", "transformers", "onnx_ir", "numpy", "safetensors"},
    "pack": {"onnx_ir", "onnxruntime", "numpy", "psutil"},
    "bench": {"onnxruntime", "onnx_ir", "numpy", "psutil", "scipy"},
    "plan": {"numpy"},
    "shrink": {"optuna", "numpy"},
    "report": {"rich", "jinja2", "markupsafe", "matplotlib", "numpy"},
    "doctor": {"onnx_ir", "numpy", "psutil"},
    "demo": {"onnxcomp_models", "safetensors", "numpy"},
    "cli": {"click", "rich"},
    "__init__": set(),
    "__main__": set(),
}

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "scipy", "numpy", "matplotlib", "optuna", "pydantic")


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(dotted: str) -> str:
    """'passes.quantize.static' -> 'passes.quantize': the longest layer that the name starts with."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LAYERS:
            return ".".join(parts[:length])
    return dotted


def imports(path: Path) -> Iterator[str]:
    """Every module or name that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = node.module.startswith("onnxcomp") and _is_module(full)
                yield full if found or node.module == "onnxcomp" else node.module


def _is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def own_layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return layer_of(".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts))


def test_every_module_has_a_layer() -> None:
    assert {own_layer(path) for path in sources()} == set(LAYERS) - {"__version__"}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_above(path: Path) -> None:
    order = list(LAYERS)
    mine = own_layer(path)
    for name in imports(path):
        top = name.split(".")[0]
        if top == "onnxcomp":
            theirs = layer_of(name.removeprefix("onnxcomp").lstrip(".") or "__init__")
            assert theirs in LAYERS, f"{path} imports {name}"
            assert order.index(theirs) <= order.index(mine), f"{mine} imports {theirs}, which stands below it"
        elif top not in sys.stdlib_module_names:
            assert top in LAYERS[mine], f"{mine} imports {top}"


def test_a_violation_is_seen(tmp_path: Path) -> None:
    """The test's own eyes: a name, a module and a function-local import are all found."""
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from onnxcomp import pipeline\ndef f():\n    from onnxcomp.cli.shell import Json\n    import torch.nn\n"
    )
    assert sorted(imports(bad)) == ["onnxcomp.cli.shell", "onnxcomp.pipeline", "torch.nn"]


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import onnxcomp; dir(onnxcomp)",
        "from onnxcomp.cli import main\ntry: main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0",
        "from onnxcomp.cli import main\ntry: main(['--version'])\nexcept SystemExit as stop: assert stop.code == 0",
        "import onnxcomp.errors, onnxcomp.worker",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_after(code) & set(HEAVY) == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert "numpy" in loaded_after("import numpy")


def test_torch_stays_out_of_everything_but_export() -> None:
    modules = [
        f"onnxcomp.{layer}" for layer in LAYERS if not layer.startswith("__") and layer not in ("pytorch", "demo")
    ]
    assert "torch" not in loaded_after(f"import {', '.join(modules)}")


def test_the_public_names_are_importable() -> None:
    assert sorted(onnxcomp.__all__) == dir(onnxcomp)
    for name in onnxcomp.__all__:
        assert getattr(onnxcomp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        onnxcomp.quantise  # noqa: B018 - the access is the test


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    names = {alias.name for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert names | {"__version__"} == set(onnxcomp.__all__)


def test_every_all_is_importable() -> None:
    for path in sources():
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if dotted == "onnxcomp.__main__":
            continue
        module = importlib.import_module(dotted)
        missing = [n for n in getattr(module, "__all__", []) if not hasattr(module, n)]
        assert not missing, f"{dotted}: {missing}"


def test_the_wheel_holds_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    found |= {
        ".".join(("onnxcomp_models", *p.parent.relative_to(ROOT / "models").parts)).rstrip(".")
        for p in (ROOT / "models").rglob("__init__.py")
    }
    assert listed == found


def test_every_extra_is_pinned() -> None:
    """What `scripts/environment` may install has one version, torch the CPU build's."""
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lines if line and line[0] != "#")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {name.split("[")[0].split(">")[0].split("<")[0].split("=")[0] for name in wanted} - {"onnxcomp"}
    assert names - set(pins) == set()
    assert pins["torch"] == "2.13.0"


def test_the_top_level_is_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top == {
        *("onnxcomp", "tests", "models", "scripts", ".ci", ".github", ".gitignore"),
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
        *("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    }


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450


def test_there_are_no_drawers_for_anything() -> None:
    names = {part for path in sources() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "helper", "common_utils", "misc", "manager", "engine"}
