"""Samples are checked against the model's inputs and cut to its batches, none lost, none repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.data import Batches, Source
from onnxcomp.data.sources import from_arrays
from onnxcomp.errors import DataError, UsageError
from onnxcomp.model import InputSpec


def spec(*shape, name="x", dtype="float32"):
    return InputSpec(name, dtype, shape)


OPEN = [spec("batch", 4)]
PAIR = [spec("batch", 4), spec("batch", "seq", name="ids", dtype="int64")]


def rows(count, start=0, width=4):
    return np.arange(start * width, (start + count) * width, dtype=np.float32).reshape(count, width)


def sharded(*counts, **more):
    """Rows 0, 1, 2 ... in shards of these counts, each with its labels."""
    starts = np.cumsum([0, *counts])
    return from_arrays(
        [
            {"x": rows(count, start), "labels": np.arange(start, start + count), **more}
            for start, count in zip(starts, counts, strict=False)
        ]
    )


def labels(batches):
    return [batch.labels.tolist() for batch in batches]


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    batch_size=st.integers(1, 12),
    selection=st.none() | st.sets(st.integers(0, 44)),
)
def test_all_batches_together_are_the_samples(counts, batch_size, selection):
    total = sum(counts)
    kept = np.arange(total) if selection is None else np.array(sorted(s for s in selection if s < total), np.int64)
    batches = Batches(sharded(*counts), OPEN, batch_size=batch_size, selection=None if selection is None else kept)
    made = list(batches)
    assert [x for batch in made for x in batch.labels] == kept.tolist()
    if made:
        np.testing.assert_array_equal(np.concatenate([batch.feeds["x"] for batch in made]), rows(total)[kept])
        assert batches.samples == len(kept)
    assert all(1 <= batch.samples == len(batch.feeds["x"]) <= batch_size for batch in made)
    assert [batch.start for batch in made] == np.cumsum([0, *(batch.samples for batch in made)])[:-1].tolist()
    assert batches.left_out == 0


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5), size=st.integers(1, 5))
def test_a_fixed_batch_is_always_full_and_what_is_left_out_is_counted(counts, size):
    batches = Batches(sharded(*counts), [spec(size, 4)], batch_size=32)
    made = list(batches)
    assert {len(batch.feeds["x"]) for batch in made} <= {size}
    assert batches.left_out == sum(count % size for count in counts)
    assert sum(batch.samples for batch in made) + batches.left_out == sum(counts)
    for batch in made:
        assert batch.start == batch.labels[0]
        np.testing.assert_array_equal(batch.feeds["x"], rows(size, batch.start))


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda c: sum(c) > 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_a_split_covers_everything_once_and_neither_part_is_empty(counts, share, seed):
    batches = Batches(sharded(*counts), OPEN)
    first, second = batches.split(share, seed=seed)
    got = [sorted(x for batch in part for x in batch.labels) for part in (first, second)]
    assert sorted(got[0] + got[1]) == list(range(sum(counts)))
    assert got[0]
    assert got[1]
    assert (first.samples, second.samples) == (len(got[0]), len(got[1]))
    again = batches.split(share, seed=seed)
    assert labels(again[0]) == labels(first)


def test_a_split_is_drawn_by_its_seed_and_share():
    batches = Batches(sharded(40), OPEN, batch_size=100)
    first, _ = batches.split(0.25, seed=0)
    other, _ = batches.split(0.25, seed=1)
    assert first.samples == 10
    assert labels(first) != labels(other)
    assert labels(first) != [list(range(10))]
    assert labels(first) == [sorted(labels(first)[0])]


def test_parts_can_be_split_again():
    first, rest = Batches(sharded(10, 10), OPEN, batch_size=100).split(0.5)
    second, third = rest.split(0.5)
    parts = [sorted(x for found in labels(part) for x in found) for part in (first, second, third)]
    assert sorted(x for part in parts for x in part) == list(range(20))
    assert [len(part) for part in parts] == [10, 5, 5]


def test_parts_keep_the_batch_size():
    assert {batch.samples for batch in Batches(sharded(12), OPEN, batch_size=2).split(0.5)[0]} == {2}


def test_one_sample_cannot_be_split():
    with pytest.raises(DataError, match="too few samples"):
        Batches(sharded(1), OPEN).split(0.5)


def test_take_gives_the_first_samples_of_all_or_of_a_part():
    batches = Batches(sharded(3, 4), OPEN, batch_size=100)
    assert labels(batches.take(5)) == [[0, 1, 2], [3, 4]]
    assert batches.take(5).samples == 5
    assert batches.take(99).samples == 7
    part, _ = Batches(sharded(7), OPEN, batch_size=100).split(0.5)
    assert labels(part.take(2)) == [labels(part)[0][:2]]


def test_a_batch_of_one_is_fed_one_by_one():
    batches = Batches(sharded(3), [spec(1, 4)], batch_size=32)
    assert [batch.feeds["x"].tolist() for batch in batches] == [[row] for row in rows(3).tolist()]


def test_one_more_axis_means_whole_inputs():
    inputs = [spec(1, 4), spec(2, 1, 4, name="state"), spec(name="rate")]
    arrays = {"x": rows(3)[:, None], "state": np.ones((3, 2, 1, 4), np.float32), "rate": np.arange(3, dtype=np.float32)}
    made = list(Batches(arrays, inputs))
    assert [{name: array.shape for name, array in batch.feeds.items()} for batch in made] == [
        {"x": (1, 4), "state": (2, 1, 4), "rate": ()}
    ] * 3
    assert [float(batch.feeds["rate"]) for batch in made] == [0, 1, 2]
    assert all(isinstance(array, np.ndarray) for batch in made for array in batch.feeds.values())


def test_whole_inputs_stand_beside_rows_of_a_batch_of_one():
    arrays = {"x": rows(3), "state": np.ones((3, 2, 1), np.float32)}
    for inputs in ([spec(1, 4), spec(2, 1, name="state")], [spec("n", 4), spec(2, 1, name="state")]):
        made = list(Batches(arrays, inputs))
        assert [(b.feeds["x"].shape, b.feeds["state"].shape) for b in made] == [((1, 4), (2, 1))] * 3


def test_whole_inputs_do_not_stand_beside_a_larger_fixed_batch():
    arrays = {"x": rows(4), "state": np.ones((4, 2, 1), np.float32)}
    with pytest.raises(DataError, match="fixed at 2") as error:
        list(Batches(arrays, [spec(2, 4), spec(2, 1, name="state")]))
    assert "one more axis" in error.value.hint


def test_different_fixed_batches_are_refused():
    with pytest.raises(DataError, match=r"different fixed batch sizes \(2, 1\)") as error:
        list(Batches({"x": rows(2), "y": rows(2)}, [spec(2, 4), spec(1, 4, name="y")]))
    assert "y" in error.value.where


def test_strings_stay_arrays_of_objects():
    inputs = [spec(name="one", dtype="string"), spec("n", name="many", dtype="string")]
    arrays = {"one": np.array(["a", "b"]), "many": np.array([["c", "d"], ["e", "f"]], object)}
    made = list(Batches(arrays, inputs))
    assert [(b.feeds["one"].item(), b.feeds["many"].tolist()) for b in made] == [("a", ["c", "d"]), ("b", ["e", "f"])]
    assert {array.dtype for b in made for array in b.feeds.values()} == {np.dtype(object)}


def test_feeds_are_contiguous():
    (batch,) = Batches({"x": np.asfortranarray(rows(3))}, OPEN)
    assert batch.feeds["x"].flags.c_contiguous


def test_labels_are_cut_as_the_samples_are():
    batches = Batches(sharded(5), OPEN, batch_size=2)
    assert batches.labelled
    assert labels(batches) == [[0, 1], [2, 3], [4]]
    assert all("labels" not in batch.feeds for batch in batches)


def test_without_labels_there_are_none():
    batches = Batches({"x": rows(5)}, OPEN)
    assert not batches.labelled
    assert {batch.labels for batch in batches} == {None}
    assert not Batches(from_arrays([]), OPEN).labelled


@pytest.mark.parametrize(
    ("have", "want"),
    [(np.int32, "int64"), (np.uint8, "int8"), (np.int64, "uint16"), (np.uint64, "int64"), (np.int64, "int64")],
)
def test_integers_are_cast_where_nothing_is_lost(have, want):
    array = np.array([0, 1, 127], have)
    (batch,) = Batches({"x": array}, [spec("n", dtype=want)])
    assert batch.feeds["x"].dtype == np.dtype(want)
    assert batch.feeds["x"].tolist() == [0, 1, 127]


@pytest.mark.parametrize(
    ("array", "want"),
    [
        (np.array([128]), "int8"),
        (np.array([-1]), "uint8"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array([-129]), "int8"),
    ],
)
def test_integers_out_of_range_are_refused(array, want):
    with pytest.raises(DataError, match=f"beyond the range of {want}") as error:
        list(Batches({"x": array}, [spec("n", dtype=want)]))
    assert error.value.where == "arrays: x"


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("int64", "float32"),
        ("float32", "int64"),
        ("bool", "int64"),
        ("int64", "bool"),
        ("object", "float32"),
        ("<U3", "float32"),
    ],
)
def test_nothing_else_is_cast(have, want):
    with pytest.raises(DataError, match=f"takes {want}, the array holds {have}") as error:
        list(Batches({"x": np.zeros((2, 4)).astype(have)}, [spec("n", 4, dtype=want)]))
    assert f"astype('{want}')" in error.value.hint


def test_numbers_are_not_strings():
    with pytest.raises(DataError, match="takes strings, the array holds float32"):
        list(Batches({"x": rows(2)}, [spec("n", 4, dtype="string")]))


def test_a_type_that_is_no_array_is_refused():
    with pytest.raises(DataError, match="numpy has no type sequence"):
        list(Batches({"x": rows(2)}, [InputSpec("x", "sequence", None)]))


@pytest.mark.parametrize(
    ("arrays", "text", "hint"),
    [
        ({"idz": rows(2), "x": rows(2)}, "no input 'idz'", "did you mean 'ids'?"),
        ({"nonsense": rows(2)}, "no input 'nonsense'", "its inputs are: x, ids"),
        ({"x": rows(2)}, "no array for the input 'ids'", "there are: x"),
        ({}, "no array for the input 'x'", "there are: none"),
    ],
)
def test_names_are_checked(arrays, text, hint):
    batches = Batches(arrays, PAIR)
    for use in (list, lambda b: b.samples):
        with pytest.raises(DataError, match=text) as error:
            use(batches)
        assert error.value.hint == hint


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (rows(2).reshape(2, 2, 2, 1), r"the input has 2 axes \[batch, 4\], the array 4"),
        (rows(2)[:, 0], r"the input has 2 axes \[batch, 4\], the array 1"),
        (rows(2, width=5), "axis 1 has size 5, the input takes 4"),
        (rows(2).reshape(1, 4, 2), "axis 2 has size 2, the input takes 4"),
    ],
)
def test_shapes_are_checked(array, text):
    with pytest.raises(DataError, match=text) as error:
        list(Batches({"x": array}, OPEN))
    assert error.value.where.startswith("arrays: x")


def test_axes_without_a_size_take_any():
    (batch,) = Batches({"x": np.zeros((2, 7, 3), np.float32)}, [spec(None, None, "any")])
    assert batch.feeds["x"].shape == (2, 7, 3)


def test_an_unknown_rank_takes_any_array_by_its_first_axis():
    made = list(Batches({"x": np.zeros((3, 7, 3), np.float32)}, [InputSpec("x", "float32", None)], batch_size=2))
    assert [batch.feeds["x"].shape for batch in made] == [(2, 7, 3), (1, 7, 3)]


def test_different_numbers_of_samples_are_refused():
    with pytest.raises(DataError, match="different numbers of samples") as error:
        list(Batches({"x": rows(3), "ids": np.zeros((2, 5), np.int64)}, PAIR))
    assert error.value.where == "arrays: x: 3, ids: 2"
    with pytest.raises(DataError, match="labels: 2"):
        list(Batches({"x": rows(3), "labels": np.zeros(2)}, OPEN))


def test_a_scalar_has_no_samples():
    with pytest.raises(DataError, match="without a sample axis"):
        list(Batches({"x": np.float32(1)}, [spec()]))


@pytest.mark.parametrize("source", [{"x": rows(0)}, from_arrays([]), from_arrays([{"x": rows(0)}, {"x": rows(0)}])])
def test_no_samples_are_refused(source):
    with pytest.raises(DataError, match="no samples"):
        _ = Batches(source, OPEN).samples


def test_an_empty_npy_has_no_samples(tmp_path):
    np.save(tmp_path / "a.npy", rows(0))
    with pytest.raises(DataError, match="no samples"):
        _ = Batches(tmp_path / "a.npy", OPEN).samples


def test_a_model_without_inputs_takes_no_data():
    with pytest.raises(DataError, match="no inputs"):
        list(Batches({}, []))


def test_a_batch_holds_at_least_one_sample():
    with pytest.raises(UsageError, match="at least 1"):
        Batches({"x": rows(2)}, OPEN, batch_size=0)


def test_noise_is_refused_where_quality_is_judged():
    noise = Batches("random:4", OPEN)
    with pytest.raises(DataError, match="calibration needs real data, not random:4"):
        noise.require_real("calibration")
    for part in (*noise.split(0.5), noise.take(2)):
        with pytest.raises(DataError, match="accuracy needs real data"):
            part.require_real("accuracy")
    Batches({"x": rows(2)}, OPEN).require_real("calibration")


def test_noise_is_fed_at_the_batch_size():
    batches = Batches("random:3:1", [spec("batch", "seq")], batch_size=2, sizes={"seq": 5})
    assert [batch.feeds["x"].shape for batch in batches] == [(2, 5)] * 3
    assert batches.samples == 3


def test_a_fingerprint_is_stable_and_sees_every_change():
    def of(**arrays):
        return Batches(arrays, [spec("n", 4, name=name) for name in arrays if name != "labels"]).fingerprint()

    x = rows(3)
    changed = x.copy()
    changed[2, 3] = np.nextafter(changed[2, 3], 0)
    first = of(x=x, labels=np.arange(3))
    assert first == of(labels=np.arange(3), x=np.asfortranarray(x))
    assert len(first) == 64
    others = [
        of(x=changed, labels=np.arange(3)),
        of(x=x, labels=np.array([0, 2, 1])),
        of(x=x, labels=np.arange(3, dtype=np.int32)),
        of(x=x),
        of(y=x, labels=np.arange(3)),
        of(x=x[:2], labels=np.arange(2)),
        of(x=x[::-1], labels=np.arange(3)),
        of(x=x.view(np.int32), labels=np.arange(3)),
        of(x=x.reshape(3, 2, 2), labels=np.arange(3)),
    ]
    assert len({first, *others}) == len(others) + 1


def test_a_fingerprint_is_of_the_selected_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(6))
    np.savez(tmp_path / "b.npz", x=rows(2))
    whole, two = Batches(tmp_path / "a.npz", OPEN), Batches(tmp_path / "b.npz", OPEN)
    assert whole.take(2).fingerprint() == two.fingerprint() != whole.fingerprint()
    assert whole.to_json() == {"source": str(tmp_path / "a.npz"), "samples": 6, "sha256": whole.fingerprint()}


def test_strings_count_in_a_fingerprint():
    def of(*texts):
        return Batches({"x": np.array(texts, object)}, [spec("n", dtype="string")]).fingerprint()

    assert of("a", "b") == of("a", "b") != of("ab", "")


def test_shards_are_asked_for_when_they_are_needed():
    made = []

    def shards():
        for i in range(3):
            made.append(i)
            yield {"x": rows(2, 2 * i)}

    batches = iter(Batches(Source("lazy", shards), OPEN, batch_size=1))
    assert made == []
    for shard in range(3):
        for _ in range(2):
            next(batches)
            assert made == list(range(shard + 1))


def test_a_mapped_npy_is_cut_without_being_read_whole(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", rows(100))
    batch = next(iter(Batches(tmp_path / "a.npy", OPEN, batch_size=10)))
    assert isinstance(batch.feeds["x"].base, np.memmap)
    np.testing.assert_array_equal(batch.feeds["x"], rows(10))


def test_a_folder_of_shards_is_one_stream(tmp_path):
    np.savez(tmp_path / "0.npz", x=rows(3), labels=np.arange(3))
    np.savez(tmp_path / "1.npz", x=rows(4, 3), labels=np.arange(3, 7))
    batches = Batches(tmp_path, OPEN, batch_size=2)
    assert batches.samples == 7
    assert labels(batches) == [[0, 1], [2], [3, 4], [5, 6]]
