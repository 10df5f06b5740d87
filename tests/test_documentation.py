"""What the documentation says is so: reference pages, commands, Python, links, exit codes."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess

import click
import pytest
from conftest import ROOT

import onnxcomp
from onnxcomp import errors
from onnxcomp.cli import VERBS, group

README = (ROOT / "README.md").read_text()
PAGES = sorted(
    path
    for pattern in ("*.md", "onnxcomp/**/*.md", "models/**/*.md", "scripts/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)

#: how the README calls each exit code
WORDS = {
    "ok": 0,
    "a bug of ours": 1,
    "usage": errors.UsageError.code,
    "bad input": errors.InvalidModelError.code,
    "unsupported": errors.UnsupportedError.code,
    "gate failed": errors.GateError.code,
    "limit": errors.LimitError.code,
    "the worker crashed": errors.WorkerCrashError.code,
    "input/output": errors.OutputError.code,
    "undecided": errors.UndecidedError.code,
    "interrupted": 130,
}


def reference():
    """The script that writes the reference pages."""
    spec = importlib.util.spec_from_file_location("reference_script", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(text, *languages):
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Every `onnxcomp VERB ...` of a page's shell blocks, as arguments; what commands print is left out."""
    shown = [line.removeprefix("$ ") for block in blocks(text, "console") for line in block.splitlines()[:1]]
    shown += [line for block in blocks(text, "sh", "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in shown if line.startswith("onnxcomp ")]


def parse(arguments):
    """Parse without running. Raises click.UsageError."""
    with click.Context(group, info_name="onnxcomp") as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        command.make_context(name, rest, parent=context)


def is_public(module, name):
    found = importlib.import_module(module)
    if name in getattr(found, "__all__", dir(found)):
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("page", ["onnxcomp/cli/README.md", "onnxcomp/passes/README.md"])
def test_reference_pages_are_up_to_date(page):
    assert (ROOT / page).read_text() == reference().pages()[ROOT / page], "run scripts/reference.py"


def test_every_verb_is_in_the_readmes_table():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", README, re.MULTILINE)
    assert sorted(verb for verb, _ in rows) == sorted(VERBS)


@pytest.mark.parametrize("arguments", [c for page in PAGES for c in commands(page.read_text())], ids=" ".join)
def test_every_command_parses(arguments):
    parse(arguments)


def test_commands_are_found_and_wrong_ones_are_refused():
    verbs = {arguments[0] for arguments in commands(README)}
    assert {"inspect", "quantize", "evaluate", "bench", "verify"} <= verbs
    for wrong in (["quantise", "m.onnx"], ["inspect", "m.onnx", "--verbos"], ["quantize", "m.onnx"]):
        with pytest.raises(click.UsageError):
            parse(wrong)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", README))))
def test_options_named_in_the_text_exist(option):
    context = click.Context(group, info_name="onnxcomp")
    known = {name for verb in VERBS for p in group.get_command(context, verb).params for name in p.opts}
    assert option in known


def test_python_compiles_and_uses_public_names_only():
    found = [(page, block) for page in PAGES for block in blocks(page.read_text(), "python")]
    assert any(page.name == "README.md" and page.parent == ROOT for page, _ in found)
    for page, block in found:
        tree = ast.parse(block, str(page))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "onnxcomp"
        }
        assert used <= set(onnxcomp.__all__), page
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(is_public(node.module, alias.name) for alias in node.names), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = page.parent / file if file else page
        assert where.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", where.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_scripts_named_in_the_readme_can_be_run():
    named = set(re.findall(r"scripts/[\w.]+", README))
    assert {"scripts/quickstart", "scripts/test", "scripts/check"} <= named
    for name in named:
        assert (ROOT / name).stat().st_mode & 0o111, name


def test_exit_codes_are_those_of_the_errors():
    sentence = re.search(r"exit code that a script can rely on:\s(.*?)\. ", README, re.DOTALL)[1]
    stated = {words.strip(): int(code) for code, words in re.findall(r"(\d+) ([a-z/ \n]+)", sentence)}
    assert {" ".join(words.split()): code for words, code in stated.items()} == WORDS
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.OnnxcompError)}
    assert codes | {0, 130} == set(WORDS.values())


def test_the_helps_exit_codes_are_those_of_the_readme():
    stated = {int(code) for code in re.findall(r"(\d+) [a-z]", group.epilog)}
    assert stated == set(WORDS.values()) - {130}


def test_extras_named_in_the_readme_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    paragraph = re.search(r"^Extras: (.*?)\n\n", README, re.DOTALL | re.MULTILINE)[1]
    named = set(re.findall(r"`(\w+)` \(", paragraph))
    assert len(named) >= 5
    assert named <= set(extras)


def test_readme_blocks_are_filled_by_the_script_alone():
    """An example is a console block with one command; the script replaces what stands below it."""
    spec = importlib.util.spec_from_file_location("bench_readme_script", ROOT / "scripts" / "bench_readme.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert len(script.BLOCK.findall(README)) == README.count("```console\n")
    assert script.filled(README, ["no such word"]) == README
    text = "before\n```console\n$ echo new\nold\nolder\n```\nafter\n```console\n$ false\n```\n"
    made = script.filled(text, ["echo"])
    assert made == "before\n```console\n$ echo new\nnew\n```\nafter\n```console\n$ false\n```\n"
    with pytest.raises(subprocess.CalledProcessError):
        script.filled(text, ["false"])
