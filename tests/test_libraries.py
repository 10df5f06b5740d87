"""CUDA's libraries from pip are loaded for the providers that need them, quietly and once."""

import sys

import pytest

from onnxcomp.settings import libraries


@pytest.fixture
def loaded(monkeypatch):
    import onnxruntime

    calls = []

    def load():
        calls.append("loaded")
        sys.stdout.write("Failed to load libcudnn")

    monkeypatch.setattr(onnxruntime, "preload_dlls", load, raising=False)
    libraries._preload.cache_clear()
    yield calls
    libraries._preload.cache_clear()


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_once_for_a_gpu_and_without_a_word(loaded, capsys, provider):
    for _ in range(2):
        libraries.preload([provider, "CPUExecutionProvider"])
    assert loaded == ["loaded"]
    assert capsys.readouterr().out == ""


def test_not_for_others(loaded):
    libraries.preload(["OpenVINOExecutionProvider", "CPUExecutionProvider"])
    assert loaded == []


def test_an_ort_without_the_function(loaded, monkeypatch):
    monkeypatch.setattr("onnxruntime.preload_dlls", None)
    libraries.preload(["CUDAExecutionProvider"])
