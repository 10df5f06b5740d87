import numpy as np
import pytest

from onnxcomp.bench.feeds import Feeds, check_same_inputs, make_feeds, shape_numbers
from onnxcomp.errors import DataError, UsageError
from onnxcomp.model import InputSpec, Signature

OPEN = (InputSpec("x", "float32", ("N", 4)),)
FIXED = (InputSpec("x", "float32", (2, 4)),)


def test_noise_by_default():
    feeds = make_feeds(None, OPEN, batch=3)
    assert feeds.random
    assert feeds.samples == 3
    assert len(feeds.arrays) == 16
    assert feeds.to_json() == {"source": "random:16", "random": True, "distinct": 16, "shapes": {"x": [3, 4]}}
    assert not np.array_equal(feeds.arrays[0]["x"], feeds.arrays[1]["x"])


def test_data_is_cut_into_whole_batches(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(40, dtype=np.float32).reshape(10, 4), labels=np.arange(10))
    feeds = make_feeds(tmp_path / "d.npz", OPEN, batch=4)
    assert (len(feeds.arrays), feeds.samples, feeds.random) == (2, 4, False)
    assert set(feeds.arrays[0]) == {"x"}
    with pytest.raises(DataError, match="10 samples, not 16"):
        make_feeds(tmp_path / "d.npz", OPEN, batch=16)


def test_a_fixed_batch_is_kept_or_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((10, 4), np.float32))
    for data in (None, tmp_path / "d.npz"):
        assert make_feeds(data, FIXED, batch=1).samples == 2
        assert make_feeds(data, FIXED, batch=2).samples == 2
        with pytest.raises(UsageError, match="fixed at 2"):
            make_feeds(data, FIXED, batch=8)


def test_at_most_64(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((100, 4), np.float32))
    assert len(make_feeds(tmp_path / "d.npz", OPEN, batch=1).arrays) == 64


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (InputSpec("y", "float32", ("N", 4)), "only one of the models has an input 'x'"),
        (InputSpec("x", "float16", ("N", 4)), "float32 in one model and float16"),
        (InputSpec("x", "float32", ("N", 5)), r"shapes \[N, 4\] and \[N, 5\]"),
        (InputSpec("x", "float32", ("N", 4, 1)), "shapes"),
    ],
)
def test_models_with_different_inputs_are_refused(other, text):
    with pytest.raises(UsageError, match=text):
        check_same_inputs(Signature(OPEN, ()), Signature((other,), ()), names=("a", "b"))


def test_symbols_may_differ():
    other = (InputSpec("x", "float32", ("batch", None)),)
    check_same_inputs(Signature(OPEN, ()), Signature(other, ()), names=("a", "b"))
    check_same_inputs(Signature(OPEN, ()), Signature(FIXED, ()), names=("a", "b"))


def test_the_batch_has_one_size_wherever_it_stands():
    inputs = (InputSpec("x", "float32", ("N", 4)), InputSpec("state", "float32", (2, "N", 3)))
    shapes = make_feeds(None, inputs, batch=5).to_json()["shapes"]
    assert shapes == {"x": [5, 4], "state": [2, 5, 3]}
    assert make_feeds(None, inputs, batch=1, sizes={"N": 3}).to_json()["shapes"]["state"] == [2, 3, 3]


def test_feeds_of_the_same_shapes_have_the_same_number():
    lengths = [np.zeros((1, n), np.float32) for n in (4, 6, 4, 6, 9)]
    feeds = Feeds(tuple({"x": array} for array in lengths), 1, "texts", False)
    assert shape_numbers(feeds.arrays) == (0, 1, 0, 1, 4)
