"""The digits model: its data, its training, the accuracy that its card states."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from onnxcomp_models import digits

CARD = (ROOT / "models" / "digits" / "README.md").read_text()


@pytest.fixture(scope="module")
def found():
    return digits.data()


@pytest.fixture
def one_thread():
    """As the card says; on a busy machine two threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(**options):
    return digits.train(**options).state_dict()


def test_two_thirds_train_and_one_third_tests(found):
    assert found.train_images.shape == (1198, 1, 8, 8)
    assert found.test_images.shape == (599, 1, 8, 8)
    assert (len(found.train_labels), len(found.test_labels)) == (1198, 599)


def test_types_and_range(found):
    for images, labels in ((found.train_images, found.train_labels), (found.test_images, found.test_labels)):
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)
        assert (images.min(), images.max()) == (0, 1)
        assert set(labels) == set(range(10))


def test_every_class_is_split_alike(found):
    train, test = np.bincount(found.train_labels), np.bincount(found.test_labels)
    np.testing.assert_allclose(test, (train + test) / 3, atol=1)


def test_no_image_trains_and_tests(found):
    seen = {image.tobytes() for image in found.train_images}
    assert not any(image.tobytes() in seen for image in found.test_images)


def test_images_keep_their_labels(found):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {image.tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)}
    for images, labels in ((found.train_images, found.train_labels), (found.test_images, found.test_labels)):
        assert [known[(16 * image[0]).astype(float).tobytes()] for image in images] == labels.tolist()


def test_the_split_is_the_same_each_time(found):
    np.random.default_rng().random()
    again = digits.data()
    np.testing.assert_array_equal(again.test_images, found.test_images)
    np.testing.assert_array_equal(again.train_labels, found.train_labels)


def test_same_seed_same_weights(one_thread):
    first, again, other = weights(seed=4, epochs=1), weights(seed=4, epochs=1), weights(seed=5, epochs=1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_progress_and_mode_of_training(one_thread):
    heard = []
    network = digits.train(epochs=2, on_progress=lambda text, fraction: heard.append((text, fraction)))
    assert heard == [("training", 0.5), ("training", 1.0)]
    assert not network.training


def test_the_network_takes_any_batch():
    network = digits.build()
    assert not network.training
    for batch in (1, 5):
        assert network(torch.zeros(batch, 1, 8, 8)).shape == (batch, 10)


def test_accuracy_counts_right_answers():
    class Echo(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x.long(), 4)

    assert digits.accuracy(Echo(), np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])) == 0.75


@pytest.mark.slow
def test_the_default_recipe_learns(found, one_thread):
    network = digits.train()
    assert digits.accuracy(network, found.test_images, found.test_labels) >= 0.985


def test_the_card_states_what_is_so(found):
    parameters = sum(p.numel() for p in digits.build().parameters())
    for number in (parameters, len(found.train_labels)):
        assert f"{number:,}" in CARD
    assert f"{len(found.test_labels)} test" in CARD
    for seed, right, percent in re.findall(r"\| (\d) \| (\d+) of 599 \| ([\d.]+) %", CARD):
        assert f"{100 * int(right) / 599:.2f}" == percent, seed
    assert len(re.findall(r"^\| \d \|", CARD, re.MULTILINE)) >= 3
