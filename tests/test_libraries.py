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


def test_torchs_cuda_is_read_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert libraries.torch_cuda() is None
    for text, cuda in (("cuda: Optional[str] = '13.0'\nhip = None", "13.0"), ("cuda = None", None)):
        (package / "version.py").write_text("__version__ = '2.13.0'\n" + text)
        assert libraries.torch_cuda() == cuda


def test_a_provider_without_a_library_of_its_own_misses_none():
    assert libraries.missing("CPUExecutionProvider") is None


def test_this_build_has_no_cuda():
    import onnxruntime

    assert libraries.ort_cuda() == (getattr(onnxruntime, "cuda_version", "") or None)
