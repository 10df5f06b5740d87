"""The snips model: its words, its training, its command, what its card states."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from onnxcomp_models import command as shared_command
from onnxcomp_models import snips
from onnxcomp_models.snips import __main__ as command
from onnxcomp_models.snips import words
from onnxcomp_models.snips.model import VOCABULARY
from onnxcomp_models.snips.train import EPOCHS, hidden

from onnxcomp.errors import DataError

CARD = (ROOT / "models" / "snips" / "README.md").read_text()
LINES = [
    "play some jazz\tPlayMusic",
    "Play it again, please\tPlayMusic",
    "will it rain?\tGetWeather",
    "book a table\tBookRestaurant",
]


def write(folder, name, lines, header="text\tintent"):
    (folder / name).write_text("\n".join([header, *lines, ""]), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    write(place, words.TRAIN, LINES * 3)
    write(place, words.VALID, ["play rock, please\tPlayMusic", "rain\tGetWeather"])
    return place


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return snips.build()


def test_words_and_signs_are_tokens():
    assert words.tokens("Rate it 5/6, Café!  ") == ["rate", "it", "5", "/", "6", ",", "café", "!"]


def test_frequent_words_come_first_and_the_rest_is_cut(monkeypatch):
    assert words.vocabulary(["b c a", "c b", "c"]) == ("[padding]", "[unknown]", "c", "b", "a")
    monkeypatch.setattr(words, "VOCABULARY", 4)
    assert words.vocabulary(["b c a", "c b", "c"]) == ("[padding]", "[unknown]", "c", "b")
    assert words.vocabulary(["b a"])[2:] == ("a", "b")


def test_sentences_become_ids():
    ids = snips.encode(["jazz play", "rock play it"], ("[padding]", "[unknown]", "play", "jazz", "it"))
    np.testing.assert_array_equal(ids, [[3, 2, 0], [1, 2, 4]])
    assert ids.dtype == np.int64


def test_the_vocabulary_is_that_of_training(folder):
    found = snips.data(folder)
    assert "rock" not in found.words
    np.testing.assert_array_equal(found.valid_ids[0][:2], [found.words.index("play"), 1])
    assert found.train_ids.shape == (12, 5)
    assert found.train_labels.tolist()[:4] == [3, 3, 2, 1]
    assert found.valid_labels.tolist() == [3, 2]


@pytest.mark.parametrize("line", ["play jazz", "play jazz\tStopMusic", " \tPlayMusic", "play\tjazz\tPlayMusic"])
def test_a_wrong_line_is_named(folder, line):
    write(folder, words.TRAIN, [*LINES, line])
    with pytest.raises(DataError, match="line 6 is not"):
        snips.data(folder)


def test_files_without_sentences_are_refused(folder):
    write(folder, words.VALID, [])
    with pytest.raises(DataError, match="no sentences"):
        snips.data(folder)
    (folder / words.VALID).write_bytes(b"text\tintent\n\xff\xfe\tPlayMusic\n")
    with pytest.raises(DataError, match="cannot be read"):
        snips.data(folder)


@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (3, 7), (2, 300)])
def test_any_batch_and_length(network, batch, seq):
    assert not network.training
    assert network(torch.ones(batch, seq, dtype=torch.int64)).shape == (batch, 7)


def test_padding_has_no_influence(network):
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    padded = torch.nn.functional.pad(ids, (0, 4))
    torch.testing.assert_close(network(padded), network(ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(network(ids[1:, :2]), network(ids)[1:], atol=1e-5, rtol=0)


def test_nothing_but_padding_is_finite(network):
    assert network(torch.zeros(2, 4, dtype=torch.int64)).isfinite().all()


def test_the_order_of_words_counts(network):
    assert not torch.allclose(network(torch.tensor([[5, 6, 7]])), network(torch.tensor([[7, 6, 5]])), atol=1e-3)


def test_training_hides_one_word_in_ten():
    ids = torch.full((200, 60), 9)
    ids[:, 50:] = 0
    torch.manual_seed(0)
    made = hidden(ids)
    assert made.shape == (200, 50)
    assert set(made.unique().tolist()) == {1, 9}
    assert 0.08 < (made == 1).float().mean() < 0.12
    ids[:, 20:] = 0
    ids[3, :30] = 9
    made = hidden(ids)
    assert made.shape == (200, 30)
    assert (made[:3, 20:] == 0).all()


def test_words_are_hidden_in_arrays_too():
    ids = np.full((200, 60), 9)
    ids[:, 50:] = 0
    made = snips.hide_words({"ids": ids}, np.random.default_rng(0))["ids"]
    assert (made[:, 50:] == 0).all()
    assert set(np.unique(made)) == {0, 1, 9}
    assert 0.08 < (made[:, :50] == 1).mean() < 0.12
    assert (ids[:, :50] == 9).all()


def test_the_student_is_less_than_half_and_takes_the_same():
    whole, half = snips.build(), snips.student()
    sizes = [sum(p.numel() for p in net.parameters()) for net in (whole, half)]
    assert sizes[1] < 0.5 * sizes[0]
    assert not half.training
    assert half(torch.ones(2, 7, dtype=torch.int64)).shape == (2, 7)


def test_same_seed_same_weights(folder, one_thread):
    found = snips.data(folder)
    first, again, other = (snips.train(found, seed=seed, epochs=1).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_accuracy_counts_right_answers_over_batches():
    class Echo(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x, 4)

    assert snips.accuracy(Echo(), np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0]), batch=3) == 0.75


def test_the_command_writes_what_the_next_steps_read(folder, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    monkeypatch.setattr(shared_command, "CALIBRATION", 5)
    out = tmp_path / "deep" / "out"
    assert command.main(["--data", str(folder), "-o", str(out), "--epochs", "2", "--seed", "3"]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"accuracy [01]\.\d{4} \(\d of 2 validation sentences, seed 3\)\n", said.out)
    assert [line.split()[0] for line in said.err.splitlines()] == ["50%", "100%"]
    found = snips.data(folder)
    snips.build().load_state_dict(load_file(out / "weights.safetensors"))
    with np.load(out / "calibration.npz") as calibration, np.load(out / "test.npz") as test:
        assert list(calibration) == ["ids"]
        assert len(calibration["ids"]) == 5
        assert {tuple(row) for row in calibration["ids"]} <= {tuple(row) for row in found.train_ids}
        np.testing.assert_array_equal(test["ids"], found.valid_ids)
        np.testing.assert_array_equal(test["labels"], found.valid_labels)
    with np.load(out / "train.npz") as train:
        np.testing.assert_array_equal(train["ids"], found.train_ids)
        np.testing.assert_array_equal(train["labels"], found.train_labels)
    stored = json.loads((out / "vocabulary.json").read_text(encoding="utf-8"))
    assert stored == {"words": list(found.words), "intents": list(snips.INTENTS)}


def test_existing_outputs_are_refused_before_training(folder, tmp_path, capsys):
    (tmp_path / "vocabulary.json").write_text("mine")
    arguments = ["--data", str(folder), "-o", str(tmp_path), "--epochs", "1"]
    assert command.main(arguments) == 8
    said = capsys.readouterr()
    assert "exists" in said.err
    assert "--force" in said.err
    assert "epoch" not in said.err
    assert (tmp_path / "vocabulary.json").read_text() == "mine"
    assert command.main([*arguments, "--force"]) == 0
    assert (tmp_path / "vocabulary.json").read_text() != "mine"


def test_missing_data_is_an_error_with_its_source(tmp_path, capsys):
    assert command.main(["--data", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "snips_train.tsv" in said.err
    assert "hint: make snips_train.tsv" in said.err


@pytest.mark.parametrize("wrong", ["0", "-2", "many"])
def test_epochs_are_one_or_more(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--data", str(tmp_path), "-o", str(tmp_path), "--epochs", wrong])
    assert stopped.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_it_exports_with_open_batch_and_length(tmp_path):
    from onnxcomp.pytorch.export import export

    done = export(
        "onnxcomp_models.snips:build",
        tmp_path / "snips.onnx",
        inputs=["ids:int64[2,16]"],
        dynamic=["ids:0=batch", "ids:1=seq"],
        check_sizes=["batch=1,seq=1", "batch=4,seq=90"],
    )
    assert done.signature.inputs[0].shape == ("batch", "seq")
    assert len(done.parity) >= 6
    assert max(check.max_rel_error for check in done.parity) < 1e-5


def test_it_learns_from_real_sentences(shared, one_thread):
    found = snips.data(shared / "data" / "text")
    assert (len(found.train_labels), len(found.valid_labels)) == (13_784, 700)
    assert len(found.words) == VOCABULARY
    rows = np.random.default_rng(0).choice(len(found.train_labels), 2000, replace=False)
    few = dataclasses.replace(found, train_ids=found.train_ids[rows], train_labels=found.train_labels[rows])
    network = snips.train(few, epochs=1)
    assert snips.accuracy(network, found.valid_ids, found.valid_labels) > 0.6


def test_the_card_states_what_is_so():
    assert f"{sum(p.numel() for p in snips.build().parameters()):,}" in CARD
    assert f"{EPOCHS} epochs" in CARD
    rows = re.findall(r"^\| \d \| (\d+) of 700 \| ([\d.]+) %", CARD, re.MULTILINE)
    assert len(rows) >= 3
    for right, percent in rows:
        assert f"{int(right) / 7:.2f}" == percent
