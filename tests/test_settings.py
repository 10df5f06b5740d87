"""How a session runs, and the file that says so: what is written is read again, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import os
import re

import builders
import onnxruntime as ort
import pytest

import onnxcomp
from onnxcomp import documents, runtime
from onnxcomp.errors import DataError, OutputError, UsageError
from onnxcomp.settings import OPTIMIZERS, SessionSettings, SettingsFile, SettingsWarning, host, read_settings

FULL = SessionSettings(
    threads=3,
    optimization="extended",
    config={"session.intra_op.allow_spinning": "0"},
    disabled_optimizers=("ConstantFolding", "NchwcTransformer"),
    arena=False,
    mem_pattern=False,
)

#: what ORT runs in any case, whatever it is told to leave out
ALWAYS = {
    "CastFloat16Transformer",
    "EnsureUniqueDQForNodeUnit",
    "FuseFp16InitializerToFp32NodeTransformer",
    "MemcpyTransformer",
    "RemoveDuplicateCastTransformer",
}


@pytest.fixture
def written(tmp_path):
    """A settings file with these changes of its JSON."""

    def write(**changes):
        path = tmp_path / "settings.json"
        path.write_text(documents.to_text({**SettingsFile(settings=FULL, host=host.current()).to_json(), **changes}))
        return path

    return write


def test_what_is_written_is_read_again(written):
    path = written(model={"path": "m.onnx", "sha256": "ab", "bytes": 3}, measured={"verdict": "faster"}, notes=["a"])
    found = SettingsFile.read(path)
    assert found.settings == FULL == onnxcomp.read_settings(path)
    assert found.to_json() == json.loads(path.read_text())
    assert found.warnings(["ab"]) == []
    assert found.warnings(["cd"]) == ["the settings were tuned for another model: m.onnx"]


def test_a_file_written_by_hand_needs_only_what_differs(tmp_path):
    path = tmp_path / "own.json"
    path.write_text('{"schema": "onnxcomp/settings/1", "threads": 2}')
    assert SettingsFile.read(path) == SettingsFile(settings=SessionSettings(threads=2))


def test_settings_of_another_host_are_read_with_a_warning(written):
    elsewhere = dataclasses.replace(host.current(), onnxruntime="1.2.3").to_json()
    with pytest.warns(SettingsWarning, match=r"settings\.json: the settings were tuned on another host: .* 1\.2\.3"):
        assert read_settings(written(host=elsewhere)) == FULL


@pytest.mark.parametrize(
    ("changes", "error", "text", "hint"),
    [
        ({"schema": "onnxcomp/pack/1"}, DataError, "not a settings file", None),
        ({"thread": 2}, DataError, "unknown setting 'thread'", "did you mean 'threads'?"),
        ({"threads": "2"}, DataError, "'threads' must be a whole number", None),
        ({"threads": True}, DataError, "'threads' must be a whole number", None),
        ({"threads": -1}, UsageError, "must not be negative", None),
        ({"arena": 1}, DataError, "'arena' must be true or false", None),
        ({"config": {"session.intra_op.allow_spinning": 0}}, DataError, "'config' must be an object of texts", None),
        ({"config": {"session.intra_op.allow_spining": "0"}}, UsageError, "allow_spining", "did you mean 'session.int"),
        ({"disabled_optimizers": "ConstantFolding"}, DataError, "must be a list of texts", None),
        ({"disabled_optimizers": ["ConstFolding"]}, UsageError, "ORT would ignore it", "'ConstantFolding'?"),
        ({"host": {"machine": "x"}}, DataError, "origin is damaged", None),
        ({"model": "x"}, DataError, "origin is damaged", None),
    ],
)
def test_what_a_settings_file_must_not_say(written, changes, error, text, hint):
    with pytest.raises(error, match=re.escape(text)) as caught:
        read_settings(written(**changes))
    assert (hint or "") in (caught.value.hint or "")


def test_no_file(tmp_path):
    with pytest.raises(OutputError, match="no such file"):
        read_settings(tmp_path / "none.json")


def test_spinning_is_one_entry_of_the_configuration():
    plain = SessionSettings(config={"session.set_denormal_as_zero": "1"})
    assert plain.spinning
    quiet = plain.with_spinning(False)
    assert not quiet.spinning
    assert quiet.config["session.set_denormal_as_zero"] == "1"
    assert quiet.with_spinning(True) == plain


def test_memory_settings_reach_ort():
    for arena, mem_pattern in ((True, False), (False, True)):
        options = runtime.session_options(SessionSettings(arena=arena, mem_pattern=mem_pattern))
        assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (arena, mem_pattern)


def test_every_optimizer_that_ort_names_can_be_switched_off(tmp_path, capfd):
    options = ort.SessionOptions()
    options.log_severity_level = 1
    path = builders.save(builders.mlp(), tmp_path / "model.onnx")
    ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    seen = set(re.findall(r"GraphTransformer (\S+) modified", capfd.readouterr().err))
    assert "ConstantFolding" in seen
    assert seen - ALWAYS <= OPTIMIZERS
