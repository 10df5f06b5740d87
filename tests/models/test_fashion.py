"""The fashion models: their files, their training, what their card states."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import re
import struct

import numpy as np
import pytest
import torch
from conftest import ROOT
from onnxcomp_models import fashion
from onnxcomp_models.fashion import __main__ as command
from onnxcomp_models.fashion import files
from onnxcomp_models.fashion import model as networks
from onnxcomp_models.fashion.train import EPOCHS, augmented

from onnxcomp.errors import DataError

CARD = (ROOT / "models" / "fashion" / "README.md").read_text()


def write_idx(path, array, magic):
    header = struct.pack(f">{array.ndim + 1}I", magic, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def images(count, seed=0, size=28):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    for split, count in (("train", 20), ("t10k", 8)):
        write_idx(place / f"{split}-images-idx3-ubyte.gz", images(count, count), 0x803)
        write_idx(place / f"{split}-labels-idx1-ubyte.gz", np.arange(count) % 10, 0x801)
    return place


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def real(shared):
    return fashion.data(shared / "data" / "fashion-mnist")


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_files_are_read_as_written(folder):
    found = fashion.data(folder)
    assert (found.train_images.shape, found.test_images.shape) == ((20, 1, 28, 28), (8, 1, 28, 28))
    assert (found.train_images.dtype, found.train_labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(np.round(found.train_images[:, 0] * 255), images(20, 20))
    np.testing.assert_array_equal(found.test_labels, np.arange(8))
    assert found.train_images.max() == 1


def test_a_missing_file_is_named_with_its_source(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz missing") as caught:
        fashion.data(folder)
    assert "zalandoresearch" in caught.value.hint
    assert "--download" in caught.value.hint


@pytest.mark.parametrize(
    ("array", "magic", "message"),
    [
        (np.arange(20) % 10, 0x801, "magic number 0x803"),
        (images(20, size=27), 0x803, "27 x 27 pixels"),
        (images(19), 0x803, "19 images, 20 labels"),
    ],
)
def test_other_content_is_refused(folder, array, magic, message):
    write_idx(folder / "train-images-idx3-ubyte.gz", array, magic)
    with pytest.raises(DataError, match=message):
        fashion.data(folder)


@pytest.mark.parametrize("keep", [0, 3, 10, 15, 16, 500])
def test_a_cut_file_is_refused(folder, keep):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:keep]))
    with pytest.raises(DataError, match=r"IDX|values"):
        fashion.data(folder)


@pytest.mark.parametrize("content", [b"<html>", gzip.compress(b"0" * 99)[:20]], ids=["page", "cut"])
def test_what_is_no_gzip_is_refused(folder, content):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="gzip"):
        fashion.data(folder)


@pytest.fixture
def published(folder, monkeypatch):
    """The made files as if their authors had published them."""
    monkeypatch.setattr(files, "SOURCE", folder.as_uri())
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files.FILES}
    monkeypatch.setattr(files, "FILES", sums)
    return folder


def test_download_fetches_what_is_missing(published, tmp_path):
    target = tmp_path / "new"
    target.mkdir()
    (target / "train-labels-idx1-ubyte.gz").write_bytes(b"mine")
    fashion.download(target)
    for name in files.FILES:
        expected = b"mine" if name == "train-labels-idx1-ubyte.gz" else (published / name).read_bytes()
        assert (target / name).read_bytes() == expected


def test_a_download_with_another_sum_is_not_kept(published, tmp_path):
    write_idx(published / "train-images-idx3-ubyte.gz", images(20, 5), 0x803)
    with pytest.raises(DataError, match="SHA-256"):
        fashion.download(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failed_download_says_what_to_do(published, tmp_path):
    (published / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="the download failed") as caught:
        fashion.download(tmp_path)
    assert "by hand" in caught.value.hint


def test_the_command_downloads_only_when_told(published, tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "new"), "-o", str(tmp_path / "out"), "--epochs", "1", "--student"]
    assert command.main(arguments) == 3
    assert not (tmp_path / "new").exists()
    assert command.main([*arguments, "--download"]) == 0
    assert re.fullmatch(r"accuracy 0\.\d{4} \(\d of 8 test images, seed 0\)\n", capsys.readouterr().out)


def test_the_command_trains_the_net_of_each_width(folder, tmp_path):
    from safetensors.numpy import load_file

    for option, builder in (([], fashion.build), (["--wide"], fashion.wide), (["--student"], fashion.student)):
        arguments = ["--data", str(folder), "-o", str(tmp_path), "--epochs", "1", "--force", *option]
        assert command.main(arguments) == 0
        stored = load_file(tmp_path / "weights.safetensors")
        assert {n: v.shape for n, v in stored.items()} == {n: v.shape for n, v in builder().state_dict().items()}
    with np.load(tmp_path / "test.npz") as test, np.load(tmp_path / "calibration.npz") as calibration:
        np.testing.assert_array_equal(test["labels"], np.arange(8))
        found = fashion.data(folder)
        np.testing.assert_array_equal(test["image"], found.test_images)
        assert list(calibration) == ["image"]
        np.testing.assert_array_equal(calibration["image"], found.train_images)


def test_the_command_writes_images_to_distill_on(folder, tmp_path):
    arguments = ["--data", str(folder), "-o", str(tmp_path), "--epochs", "1", "--student", "--unlabelled"]
    assert command.main([*arguments, "5"]) == 0
    with np.load(tmp_path / "train.npz") as train:
        assert list(train) == ["image"]
        assert train["image"].shape == (5, 1, 28, 28)
        every = {image.tobytes() for image in fashion.data(folder).train_images}
        assert {image.tobytes() for image in train["image"]} <= every
    (tmp_path / "weights.safetensors").unlink()
    (tmp_path / "calibration.npz").unlink()
    (tmp_path / "test.npz").unlink()
    assert command.main([*arguments, "5"]) == 8  # it exists
    with pytest.raises(SystemExit):
        command.main([*arguments, "0"])


def test_the_student_is_a_quarter_at_most_and_fits_blocked_kernels():
    assert 4 * parameters(fashion.student()) <= parameters(fashion.build())
    assert all(width % 16 == 0 for width in networks.WIDTHS + networks.WIDE_WIDTHS + networks.STUDENT_WIDTHS)


@pytest.mark.parametrize("builder", [fashion.build, fashion.wide, fashion.student])
def test_the_networks_take_any_batch(builder):
    network = builder()
    assert not network.training
    for batch in (1, 5):
        assert network(torch.zeros(batch, 1, 28, 28)).shape == (batch, 10)


def test_images_are_mirrored_and_moved_by_a_pixel():
    image = torch.arange(1.0, 31).reshape(1, 1, 5, 6)
    framed = torch.nn.functional.pad(image, (1, 1, 1, 1))
    moved = [framed[..., y : y + 5, x : x + 6] for y in range(3) for x in range(3)]
    expected = {tuple(v.flatten().tolist()) for m in moved for v in (m, m.flip(3))}
    torch.manual_seed(0)
    made = augmented(image.expand(400, -1, -1, -1))
    assert made.shape == (400, 1, 5, 6)
    assert {tuple(one.flatten().tolist()) for one in made} == expected


def test_same_seed_same_weights(folder, one_thread):
    found = fashion.data(folder)
    first, again, other = (
        fashion.train(found, builder=fashion.student, seed=seed, epochs=1).state_dict() for seed in (4, 4, 5)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_progress_and_mode_of_training(folder, one_thread):
    heard = []
    network = fashion.train(
        fashion.data(folder), builder=fashion.student, epochs=2, on_progress=lambda *said: heard.append(said)
    )
    assert [fraction for _, fraction in heard] == [0.5, 1.0]
    assert heard[0][0].startswith("training, epoch 1 of 2, loss ")
    assert not network.training


def test_sums_are_those_of_the_real_files(shared):
    for name, digest in files.FILES.items():
        content = (shared / "data" / "fashion-mnist" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name


def test_the_real_split(real):
    for labels, each in ((real.train_labels, 6000), (real.test_labels, 1000)):
        assert np.bincount(labels).tolist() == [each] * 10


def test_the_student_learns(real, one_thread):
    few = dataclasses.replace(real, train_images=real.train_images[:4000], train_labels=real.train_labels[:4000])
    network = fashion.train(few, builder=fashion.student, epochs=2)
    assert fashion.accuracy(network, real.test_images[:1000], real.test_labels[:1000]) > 0.6


def test_the_card_states_what_is_so():
    for network in (fashion.build(), fashion.wide(), fashion.student()):
        assert f"{parameters(network):,}" in CARD
    assert f"{EPOCHS} epochs" in CARD
    rows = re.findall(r"^\| \w+ \| \d \| ([\d,]+) of 10,000 \| ([\d.]+) %", CARD, re.MULTILINE)
    assert len(rows) >= 2
    for right, percent in rows:
        assert f"{int(right.replace(',', '')) / 100:.2f}" == percent
