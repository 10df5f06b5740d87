"""Local Hugging Face folders: which class, which inputs, and what is never loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
import torch_modules
import zoo

from onnxcomp import worker
from onnxcomp.errors import DataError, UnsupportedError, UsageError
from onnxcomp.pytorch import export
from onnxcomp.pytorch.huggingface import load
from onnxcomp.pytorch.target import resolve

installed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """family -> folder that save_pretrained has written."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = tmp_path_factory.mktemp("saved")
    for name in ("bert", "gpt2", "vit"):
        zoo.randomised(name).save_pretrained(place / name)
    return place


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """Loading keeps transformers off the network by variables, which must not stay."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def folder(tmp_path, **config):
    """A folder that is complete but for what `config` says."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"], **config}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


@installed
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_the_class_and_the_weights_are_those_saved(name, saved):
    module, _ = load(saved / name)
    expected = zoo.randomised(name)
    assert type(module) is type(expected)
    assert not any(part.training for part in module.modules())
    state = module.state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(state[key], tensor), key


@installed
@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("bert", [(name, "int64", (2, 16)) for name in ("input_ids", "attention_mask", "token_type_ids")]),
        ("gpt2", [(name, "int64", (2, 16)) for name in ("input_ids", "attention_mask")]),
        ("vit", [("pixel_values", "float32", (2, 3, 32, 32))]),
    ],
)
def test_inputs_have_names_types_and_open_axes(name, inputs, saved):
    _, found = load(saved / name)
    assert [(one.name, one.dtype, one.shape) for one in found] == inputs
    text = {0: "batch", 1: "seq"}
    assert [dict(one.dims) for one in found] == [{0: "batch"} if name == "vit" else text] * len(inputs)


@installed
def test_ids_are_words_and_masks_are_lengths(saved):
    ids, mask = load(saved / "gpt2")[1]
    values = ids.make({"batch": 200, "seq": 60}, 1)
    assert set(np.unique(values)) <= set(range(100)) - {1, 2}
    assert len(np.unique(values)) > 16
    lengths = mask.make({"batch": 200, "seq": 9}, 1)
    assert set(lengths.sum(1)) == set(range(1, 10))
    assert (np.diff(lengths, axis=1) <= 0).all()


@installed
def test_a_decoder_gives_the_logits_of_all_positions_and_no_cache(saved):
    subject = resolve(str(saved / "gpt2"), [], [], None)
    assert subject.outputs == ("logits",)
    feeds = {one.name: one.make({"batch": 3, "seq": 7}, 0) for one in subject.inputs}
    (eager,), (captured,) = subject.eager(feeds), subject.captured(feeds)
    assert eager.shape == (3, 7, 100)
    np.testing.assert_allclose(captured, eager, rtol=1e-4, atol=1e-4)


@installed
def test_inputs_and_axes_may_be_chosen(saved):
    subject = resolve(str(saved / "bert"), ["input_ids:int64[1,9]"], ["input_ids:1=words"], None)
    assert [(one.name, one.shape, dict(one.dims)) for one in subject.inputs] == [("input_ids", (1, 9), {1: "words"})]


@installed
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_chosen_inputs_are_still_ids_and_masks(dtype, saved):
    """Ids of 0 and 1 alone would be compared otherwise, and masks with holes."""
    specs = [f"input_ids:{dtype}[5,30]", f"attention_mask:{dtype}[5,30]"]
    subject = resolve(str(saved / "gpt2"), specs, ["input_ids:1=seq", "attention_mask:1=seq"], None)
    ids, mask = (one.traced() for one in subject.inputs)
    assert ids.dtype == mask.dtype == np.dtype(dtype)
    assert ids.shape == mask.shape == (5, 30)
    vocabulary = zoo.randomised("gpt2").config.vocab_size
    assert ids.min() >= 0
    assert ids.max() < vocabulary
    assert len(np.unique(ids)) > 8
    assert set(np.unique(mask)) == {0, 1}
    assert (mask[:, 0] == 1).all()
    assert (np.diff(mask, axis=1) <= 0).all()
    feeds = {one.name: one.make({"seq": 7}, 1) for one in subject.inputs}
    assert len(np.unique(feeds["input_ids"])) > 8
    np.testing.assert_allclose(subject.captured(feeds)[0], subject.eager(feeds)[0], rtol=1e-4, atol=1e-4)


@installed
def test_chosen_ids_must_be_integers(saved):
    with pytest.raises(UsageError, match="'input_ids' holds int64") as caught:
        resolve(str(saved / "bert"), ["input_ids:float32[2,9]"], [], None)
    assert caught.value.hint == "give input_ids:int64[2,9]"


@installed
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"architectures": ["NoSuchModel"]}, UnsupportedError, "no class 'NoSuchModel'"),
        ({"architectures": None}, UnsupportedError, "no class 'None'"),
        ({"architectures": 3}, UnsupportedError, "no class 'None'"),
        ({"architectures": ["BertTokenizer"]}, UnsupportedError, "no class 'BertTokenizer'"),
        ({"architectures": ["__name__"]}, UnsupportedError, "no class '__name__'"),
        ({}, DataError, "cannot be loaded"),
    ],
)
def test_folders_that_transformers_cannot_load(change, error, text, tmp_path):
    with pytest.raises(error, match=text) as caught:
        load(folder(tmp_path, **change))
    assert str(tmp_path) in caught.value.where


@installed
def test_weights_of_another_shape_are_refused(saved, tmp_path):
    place = shutil.copytree(saved / "bert", tmp_path / "m")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))
    with pytest.raises(DataError, match="cannot be loaded"):
        load(place)


@installed
def test_missing_weights_are_refused_not_made_up(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    place = shutil.copytree(saved / "bert", tmp_path / "m")
    state = load_file(place / "model.safetensors")
    dropped = next(name for name in state if name.endswith("query.weight"))
    save_file({k: v for k, v in state.items() if k != dropped}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"1 parameters .*query\.weight"):
        load(place)


@installed
def test_encoder_decoders_are_refused(tmp_path):
    import transformers

    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="input_ids"):
        load(tmp_path)


def test_code_of_the_folder_is_never_run(tmp_path):
    place = folder(tmp_path, auto_map={"AutoModel": "modeling.Model"})
    (place / "modeling.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    with pytest.raises(UnsupportedError, match="code of its own") as caught:
        load(place)
    assert "file.py:attr" in caught.value.hint
    assert not (tmp_path / "trace").exists()


def test_pickled_weights_are_never_loaded(tmp_path):
    place = folder(tmp_path)
    (place / "model.safetensors").unlink()
    torch.save({"x": torch_modules.MakesFolder(tmp_path / "trace")}, place / "pytorch_model.bin")
    with pytest.raises(DataError, match="pickled weights are not loaded") as caught:
        load(place)
    assert "save_pretrained" in caught.value.hint
    assert not (tmp_path / "trace").exists()


def test_folders_without_a_configuration(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json") as caught:
        load(tmp_path)
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"null"])
def test_damaged_configurations(content, tmp_path):
    place = folder(tmp_path)
    (place / "config.json").write_bytes(content)
    with pytest.raises(DataError, match=r"config\.json"):
        load(place)


def test_without_transformers_it_says_so(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.raises(UnsupportedError, match="needs transformers") as caught:
        load(folder(tmp_path))
    assert "onnxcomp[hf]" in caught.value.hint


def test_a_refused_folder_leaves_no_output(tmp_path):
    in_process = mock.patch.object(worker, "isolated", lambda fn, job, **_: fn(job))
    with in_process, pytest.raises(DataError, match=r"no config\.json"):
        export(str(tmp_path), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
