"""Files, folders, functions and noise become shards; what is damaged, hostile or misspelt a typed error."""

from __future__ import annotations

import io
import pickle
import random
import sys
import types
import zipfile

import numpy as np
import pytest

from onnxcomp.data import Source, open_source
from onnxcomp.data.sources import from_arrays, load_attribute
from onnxcomp.errors import DataError, LimitError, OnnxcompError, OutputError, UsageError
from onnxcomp.model import InputSpec

ONE = (InputSpec("x", "float32", ("batch", 4)),)
TWO = (InputSpec("ids", "int64", ("batch", "seq")), InputSpec("mask", "bool", ("batch", "seq")))


def rows(start, count):
    return np.arange(start * 4, (start + count) * 4, dtype=np.float32).reshape(count, 4)


def npy_bytes(header, data=b"\0" * 64):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def member(path, data, name="x.npy", **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, data)
    return path


def read(spec, inputs=ONE, **options):
    return [dict(shard) for shard in open_source(spec, inputs, **options)]


@pytest.fixture
def module(tmp_path):
    """Write FILE.py with this text; its name is unique, since files are modules too."""

    def write(text):
        path = tmp_path / f"data_{tmp_path.name}.py"
        path.write_text("import numpy as np\n" + text)
        return path

    yield write
    sys.modules.pop(f"data_{tmp_path.name}", None)


def test_npz_gives_every_array_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(0, 3), labels=np.arange(3))
    (shard,) = read(tmp_path / "a.npz")
    assert list(shard) == ["x", "labels"]
    np.testing.assert_array_equal(shard["x"], rows(0, 3))


def test_npy_is_named_after_the_only_input_and_mapped_not_read(tmp_path):
    np.save(tmp_path / "a.npy", rows(0, 3))
    (shard,) = read(str(tmp_path / "a.npy"))
    assert isinstance(shard["x"], np.memmap)
    assert shard["x"].mode == "r"
    np.testing.assert_array_equal(shard["x"], rows(0, 3))


def test_npy_is_refused_for_two_inputs_with_their_names(tmp_path):
    np.save(tmp_path / "a.npy", rows(0, 3))
    with pytest.raises(DataError, match="this one has 2") as error:
        read(tmp_path / "a.npy", TWO)
    assert "ids, mask" in error.value.hint


def test_a_folder_gives_its_shards_in_the_order_of_their_names(tmp_path):
    np.savez(tmp_path / "c.npz", x=rows(5, 1))
    np.save(tmp_path / "b.npy", rows(2, 3))
    np.savez(tmp_path / "a.npz", x=rows(0, 2))
    (tmp_path / "README.md").write_text("not data")
    assert [len(shard["x"]) for shard in read(tmp_path)] == [2, 3, 1]
    np.testing.assert_array_equal(np.concatenate([shard["x"] for shard in read(tmp_path)]), rows(0, 6))


def test_a_folder_is_read_shard_by_shard(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(0, 2))
    (tmp_path / "b.npz").write_bytes(b"damaged")
    shards = iter(open_source(tmp_path, ONE))
    assert len(next(shards)["x"]) == 2
    with pytest.raises(DataError, match=r"b\.npz"):
        next(shards)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.npz or \.npy"):
        read(tmp_path)


def test_a_file_s_function_returns_one_dictionary(module):
    path = module("def fn():\n    return {'x': [[1, 2], [3, 4]]}\n")
    (shard,) = read(f"{path}:fn")
    np.testing.assert_array_equal(shard["x"], [[1, 2], [3, 4]])


def test_a_file_s_function_yields_dictionaries_again_and_again(module):
    source = open_source(f"{module('def fn():' + YIELDS)}:fn", ONE)
    for _ in range(2):
        assert [shard["x"].tolist() for shard in source] == [[[0]], [[1]], [[2]]]


YIELDS = """
    for i in range(3):
        yield {'x': np.array([[i]])}
"""


def test_a_module_s_function_and_its_attributes(monkeypatch):
    fake = types.ModuleType("fake_data")
    fake.inner = types.SimpleNamespace(fn=lambda: {"x": np.ones((2, 4))}, table={"x": np.zeros((3, 4))})
    monkeypatch.setitem(sys.modules, "fake_data", fake)
    assert read("fake_data:inner.fn")[0]["x"].shape == (2, 4)
    assert read("fake_data:inner.table")[0]["x"].shape == (3, 4)


def test_a_function_is_asked_for_one_shard_at_a_time(monkeypatch):
    made = []

    def fn():
        for i in range(3):
            made.append(i)
            yield {"x": rows(i, 1)}

    fake = types.ModuleType("fake_data")
    fake.fn = fn
    monkeypatch.setitem(sys.modules, "fake_data", fake)
    source = open_source("fake_data:fn", ONE)
    assert made == []
    for count, _ in enumerate(source, start=1):
        assert made == list(range(count))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("    return [1, 2]", "gave a int"),
        ("    return 7", "failed: TypeError"),
        ("    raise RuntimeError('no disk')", "failed: RuntimeError: no disk"),
        ("    yield {'x': np.ones(1)}\n    raise KeyError('lost')", "failed: KeyError: 'lost'"),
    ],
)
def test_a_function_that_fails_is_a_data_error_that_names_it(module, body, text):
    path = module(f"def fn():\n{body}\n")
    with pytest.raises(DataError, match=text) as error:
        read(f"{path}:fn")
    assert f"{path}:fn" in error.value.where


def test_a_failing_function_s_line_is_named(module):
    path = module("def fn():\n    return 1 / 0\n")
    with pytest.raises(DataError) as error:
        read(f"{path}:fn")
    assert error.value.where.endswith(f"{path}:3")


def test_our_own_errors_pass_through_a_function(module):
    path = module("from onnxcomp.errors import LimitError\ndef fn():\n    raise LimitError('enough')\n")
    with pytest.raises(LimitError, match="enough"):
        read(f"{path}:fn")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("nowhere.py:fn", "no such file"),
        ("json:nonsense", "'json' has no 'nonsense'"),
        ("json:loads.nonsense", "has no 'loads.nonsense'"),
        ("no_such_module_at_all:fn", "cannot import 'no_such_module_at_all'"),
        ("../relative:fn", "cannot be imported: TypeError"),
        (":fn", "not of the form"),
        ("json:", "not of the form"),
        ("json", "not of the form"),
    ],
)
def test_a_target_that_is_not_there_is_a_usage_error(target, text):
    with pytest.raises(UsageError, match=text):
        load_attribute(target)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("x = 1 +", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module", "cannot import 'no_such_mo"),
    ],
)
def test_a_file_that_cannot_be_imported_is_a_usage_error(module, body, text):
    with pytest.raises(UsageError, match=text):
        load_attribute(f"{module(body)}:fn")


def test_a_file_named_as_a_known_module_does_not_replace_it(tmp_path):
    import json

    (tmp_path / "json.py").write_text("fn = 7\n")
    assert load_attribute(f"{tmp_path / 'json.py'}:fn") == 7
    assert sys.modules["json"] is json


def test_noise_is_one_whole_run_per_sample():
    source = open_source("random:3", TWO, batch=2, sizes={"seq": 5})
    assert source.random
    shards = list(source)
    assert [shard["ids"].shape for shard in shards] == [(1, 2, 5)] * 3
    assert {shard["ids"].dtype for shard in shards} == {np.dtype(np.int64)}
    assert {shard["mask"].dtype for shard in shards} == {np.dtype(bool)}
    assert {int(v) for shard in shards for v in shard["ids"].flat} == {0, 1}


def test_noise_depends_on_its_seed_alone():
    first, again, zero, other = (
        np.concatenate([s["x"] for s in read(t)]) for t in ("random:4:7", "random:4:7", "random:4", "random:4:8")
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(zero, np.concatenate([s["x"] for s in read("random:4:0")]))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert first.dtype == np.float32


def test_noise_is_the_same_at_every_pass():
    source = open_source("random:2", ONE)
    for left, right in zip(source, source, strict=True):
        np.testing.assert_array_equal(left["x"], right["x"])


def test_noise_for_strings_and_fixed_axes():
    inputs = (InputSpec("text", "string", (2, 1)), InputSpec("scalar", "float64", ()))
    (shard,) = read("random:1", inputs, batch=9)
    assert shard["text"].shape == (1, 2, 1)
    assert shard["text"].dtype == object
    assert shard["scalar"].shape == (1,)


@pytest.mark.parametrize("text", ["random:", "random:x", "random:-1", "random:1:2:3", "random:1:y", "random:²"])
def test_noise_of_a_wrong_form_is_a_usage_error(text):
    with pytest.raises(UsageError, match="not of the form"):
        open_source(text, ONE)


def test_no_noise_is_refused():
    with pytest.raises(DataError, match="no samples"):
        open_source("random:0", ONE)


@pytest.mark.parametrize(
    ("inputs", "sizes", "text", "hint"),
    [
        (TWO, {}, r"axis 1 of the input is symbolic \('seq'\)", "--shape seq=N"),
        (TWO, {"seq": 2, "sek": 2}, "no input has a symbolic axis 'sek'", None),
        ((InputSpec("x", "float32", None),), {}, "rank is unknown", "give --data"),
        ((InputSpec("x", "float32", (1, None)),), {}, "axis 1", "--shape NAME=N"),
    ],
)
def test_noise_needs_every_size(inputs, sizes, text, hint):
    with pytest.raises(UsageError, match=text) as error:
        open_source("random:1", inputs, sizes=sizes)
    assert hint is None or hint in error.value.hint


def test_files_are_not_noise(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(0, 3))
    assert not open_source(tmp_path / "a.npz", ONE).random


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_missing_file_is_an_output_error(tmp_path, name):
    with pytest.raises(OutputError, match="no such file"):
        read(tmp_path / name)


def test_what_is_no_data_is_named_as_such(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"unknown kind of data '\.csv'"):
        read(tmp_path / "a.csv")
    with pytest.raises(DataError, match="no such data"):
        read(tmp_path / "nothing")


class Evil:
    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


def test_pickles_are_never_read(tmp_path):
    objects = np.array([Evil(), None], object)
    np.savez(tmp_path / "objects.npz", x=objects)
    np.save(tmp_path / "objects.npy", objects)
    for name in ("pickled.npz", "pickled.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match="not a readable numpy file"):
            read(path)


def test_an_array_of_objects_is_named_as_the_reason(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}, None], object))
    with pytest.raises(DataError) as error:
        read(tmp_path / "objects.npz")
    assert "never read" in error.value.hint


def test_an_npz_bomb_is_a_limit(tmp_path):
    path = member(tmp_path / "bomb.npz", bytes(65 << 20), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(LimitError, match="unfolds to 68157440 bytes"):
        read(path)


def test_a_bomb_in_many_members_is_a_limit(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(14):
            archive.writestr(f"{i}.npy", bytes(5 << 20))
    with pytest.raises(LimitError, match="bomb"):
        read(tmp_path / "bomb.npz")


def test_small_constant_arrays_are_no_bomb(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((10_000, 4), np.float32))
    assert read(tmp_path / "zeros.npz")[0]["x"].shape == (10_000, 4)


def test_large_uncompressed_arrays_are_no_bomb(tmp_path):
    np.savez(tmp_path / "large.npz", x=np.zeros((66 << 16, 4), np.float32))
    assert len(read(tmp_path / "large.npz")[0]["x"]) == 66 << 16


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ("(10000000000000,)", LimitError),
        ("(1" + "0" * 30 + ",)", DataError),
        ("(-1,)", DataError),
        ("(99,)", DataError),
    ],
)
def test_a_header_that_lies_about_its_size_is_typed(tmp_path, shape, error):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    with pytest.raises(error):
        read(member(tmp_path / "a.npz", npy_bytes(header)))
    (tmp_path / "a.npy").write_bytes(npy_bytes(header))
    with pytest.raises(DataError):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("data", [b"", b"PK", b"nonsense" * 100], ids=["empty", "magic", "nonsense"])
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_damaged_file_is_a_data_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_random_damage_never_escapes_untyped(tmp_path, save):
    buffer = io.BytesIO()
    save(buffer, np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    whole, generator = buffer.getvalue(), random.Random(0)
    path = tmp_path / ("a.npz" if whole.startswith(b"PK") else "a.npy")
    refused = []
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 2, 5])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged[: generator.choice([len(damaged), generator.randrange(len(damaged))])])
        try:
            read(path)
        except OnnxcompError as error:
            refused.append(error)
    assert len(refused) > 500
    assert {error.code for error in refused} <= {3, 6}
    assert all(path.name in error.where for error in refused)


def test_arrays_in_memory_are_one_shard_or_several():
    assert [len(shard["x"]) for shard in from_arrays({"x": rows(0, 3)})] == [3]
    source = from_arrays(iter([{"x": rows(0, 1)}, {"x": rows(1, 2).tolist()}]))
    assert isinstance(source, Source)
    for _ in range(2):
        assert [shard["x"].shape for shard in source] == [(1, 4), (2, 4)]
