"""Publishing: the output appears whole or not at all, whatever fails or dies on the way."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import builders
import numpy as np
import onnxruntime as ort
import pytest

from onnxcomp.errors import (
    GateError,
    InvalidModelError,
    OnnxcompError,
    OutputError,
    UsageError,
    from_os_error,
)
from onnxcomp.model import fingerprint, load, publish, record_path, refuse_target, write_file, write_to

STAGE = ".onnxcomp-stage-"
module = sys.modules[publish.__module__]


def accept(path):
    """A check that every file passes."""


def note(made):
    return json.dumps(made.to_json()).encode()


def snapshot(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def consistent(out):
    """Whether the record beside an output is about this very output."""
    recorded = json.loads(record_path(out).read_bytes())
    return recorded == json.loads(note(fingerprint(out)))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return builders.save(builders.mlp(), folder / "m.onnx")


@pytest.fixture
def other(tmp_path):
    return builders.save(builders.cnn(), tmp_path / "in/other.onnx")


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_a_model_and_its_record(source, home):
    out = home / "o.onnx"
    made = publish(load(source), out, verify=accept, inputs=(source,), record=note)
    assert names(home) == ["o.onnx", "o.onnx.record.json"]
    assert made == fingerprint(out)
    assert record_path(out) == home / "o.onnx.record.json"
    assert consistent(out)
    x = builders.samples(4, 16)
    wanted, found = (ort.InferenceSession(p).run(None, {"x": x})[0] for p in (source, out))
    np.testing.assert_array_equal(found, wanted)


def test_no_record_unless_asked(source, home):
    publish(load(source), home / "o.onnx", verify=accept)
    assert names(home) == ["o.onnx"]


def test_the_check_sees_the_whole_file_before_anybody_else(source, home):
    seen = []

    def verify(path):
        seen.append(fingerprint(path))
        assert not (home / "o.onnx").exists()

    made = publish(load(source), home / "o.onnx", verify=verify, external_above=0)
    assert [(s.sha256, s.bytes, s.external) for s in seen] == [(made.sha256, made.bytes, made.external)]


@pytest.mark.parametrize("external_above", [0, 1 << 30])
@pytest.mark.parametrize("error", [GateError("not good enough"), ValueError("a bug"), OSError(errno.EIO, "i/o")])
def test_a_failed_check_leaves_no_trace(source, other, home, error, external_above):
    def refuse(path):
        raise error

    wanted = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        publish(load(source), home / "o.onnx", verify=refuse, record=note, external_above=external_above)
    assert names(home) == []
    publish(load(other), home / "o.onnx", verify=accept, record=note, external_above=external_above)
    before = snapshot(home)
    with pytest.raises(wanted):
        publish(load(source), home / "o.onnx", verify=refuse, record=note, force=True, external_above=external_above)
    assert snapshot(home) == before
    assert names(home) == sorted(before)


def test_a_failed_record_leaves_no_trace(source, home):
    def fail(made):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        publish(load(source), home / "o.onnx", verify=accept, record=fail)
    assert names(home) == []


def test_errors_of_the_check_name_the_target(source, home):
    out = home / "o.onnx"

    def refuse(path):
        raise InvalidModelError("ORT cannot load it", where=f"{path}: node fc1", hint="look")

    with pytest.raises(InvalidModelError) as error:
        publish(load(source), out, verify=refuse)
    assert error.value.where == f"{out}: node fc1"
    assert error.value.hint == "look"


def test_an_existing_output_needs_force(source, other, home):
    out = home / "o.onnx"
    out.write_text("mine")
    record_path(out).write_text("mine too")
    before = snapshot(home)
    with pytest.raises(OutputError, match="exists") as error:
        publish(load(source), out, verify=accept, record=note)
    assert "--force" in error.value.hint
    assert snapshot(home) == before
    publish(load(source), out, verify=accept, record=note, force=True)
    assert consistent(out)
    publish(load(other), out, verify=accept, record=note, force=True)
    assert set(load(out).graph.initializers) == set(load(other).graph.initializers)
    assert consistent(out)
    assert names(home) == ["o.onnx", "o.onnx.record.json"]


def no_link(*args, **kwargs):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [False, True])
def test_an_output_that_appears_meanwhile_is_kept(source, home, monkeypatch, links):
    out = home / "o.onnx"
    if not links:
        monkeypatch.setattr(os, "link", no_link)

    def meanwhile(path):
        out.write_text("theirs")
        record_path(out).write_text("theirs too")

    with pytest.raises(OutputError, match="exists"):
        publish(load(source), out, verify=meanwhile, record=note, external_above=0)
    assert snapshot(home) == {"o.onnx": b"theirs", "o.onnx.record.json": b"theirs too"}


@pytest.mark.parametrize("content", [b"", b"text", b"\x18\0\0\0ORTM" + bytes(20), b"\xff" * 30])
def test_force_replaces_anything(source, home, content):
    out = home / "o.onnx"
    out.write_bytes(content)
    publish(load(source), out, verify=accept, force=True)
    assert fingerprint(out).bytes == out.stat().st_size > 1000


def test_force_replaces_a_link_not_its_target(source, home, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for target in (precious, tmp_path / "dangling"):
        out = home / "o.onnx"
        out.symlink_to(target)
        with pytest.raises(OutputError, match="exists"):
            publish(load(source), out, verify=accept)
        publish(load(source), out, verify=accept, force=True)
        assert not out.is_symlink()
        out.unlink()
    assert precious.read_text() == "precious"


def test_input_and_output_must_differ(source, tmp_path, home, monkeypatch):
    before = snapshot(source.parent)
    (home / "link.onnx").symlink_to(source)
    (home / "folder").symlink_to(source.parent)
    os.link(source, home / "hard.onnx")
    monkeypatch.chdir(source.parent)
    same = (source, Path("m.onnx"), source.parent / "../in/m.onnx")
    for out in (*same, home / "link.onnx", home / "folder/m.onnx", home / "hard.onnx"):
        for force in (False, True):
            with pytest.raises(UsageError, match="same file"):
                publish(load(source), out, verify=accept, force=force, inputs=(source,))
    with pytest.raises(UsageError, match="same file"):
        publish(load(source), source, verify=accept, force=True, inputs=(Path("m.onnx"),))
    assert snapshot(source.parent) == before


def test_external_data_of_the_input_is_not_overwritten(source, home):
    path = builders.externalize(builders.mlp(), source.parent)
    data = source.parent / "weights.data"
    before = data.read_bytes()
    (home / "link").symlink_to(data)
    for out in (data, home / "link"):
        with pytest.raises(UsageError, match="external data of the input"):
            publish(load(path), out, verify=accept, force=True, inputs=(path,))
    assert data.read_bytes() == before


def test_targets_that_cannot_be(source, home):
    model = load(source)
    (home / "file").write_text("x")
    cases = {
        home: "is a folder",
        home / "none/o.onnx": "does not exist",
        home / "file/o.onnx": "does not exist",
        home / ("x" * 300): "too long",
    }
    for out, message in cases.items():
        for force in (False, True):
            with pytest.raises(OutputError, match=message):
                publish(model, out, verify=accept, force=force)
    with pytest.raises(OutputError, match="too long"):
        refuse_target(home / ("x" * 300), force=False, inputs=(source,))
    assert names(home) == ["file"]


@pytest.mark.parametrize("external_above", [0, 1 << 30])
def test_the_same_model_gives_the_same_bytes(source, home, tmp_path, external_above):
    for out in (home / "o.onnx", tmp_path / "o.onnx"):
        publish(load(source), out, verify=accept, external_above=external_above)
    again = {n: c for n, c in snapshot(tmp_path).items() if n.startswith("o.")}
    assert snapshot(home) == again
    publish(load(home / "o.onnx"), home / "o.onnx", verify=accept, force=True, external_above=external_above)
    assert snapshot(home) == again


def test_large_weights_go_into_a_file_named_by_its_content(source, home):
    out = home / "o.onnx"
    made = publish(load(source), out, verify=accept, record=note, external_above=0)
    [(name, digest, size)] = made.external
    data = home / name
    assert hashlib.sha256(data.read_bytes()).hexdigest() == digest
    assert name == f"o.{digest[:16]}.data"
    assert made.bytes == out.stat().st_size + size
    assert names(home) == [name, "o.onnx", "o.onnx.record.json"]
    assert consistent(out)
    back, model = load(out), load(source)
    for key, held in model.graph.initializers.items():
        np.testing.assert_array_equal(back.graph.initializers[key].const_value.numpy(), held.const_value.numpy())
    placed = {v.const_value.location: v.const_value.offset % 4096 for v in external_values(back)}
    assert placed == {name: 0}
    x = builders.samples(4, 16)
    wanted, found = (ort.InferenceSession(p).run(None, {"x": x})[0] for p in (source, out))
    np.testing.assert_array_equal(found, wanted)


def external_values(model):
    held = (v for graph in model.graphs() for v in graph.initializers.values())
    return [v for v in held if hasattr(v.const_value, "location")]


def test_small_tensors_and_models_below_the_threshold_stay_inside(source, home):
    total = sum(v.const_value.nbytes for v in load(source).graph.initializers.values())
    publish(load(source), home / "a.onnx", verify=accept, external_above=total)
    publish(load(source), home / "b.onnx", verify=accept, external_above=total - 1)
    assert [n.split(".")[0] for n in names(home) if n.endswith(".data")] == ["b"]
    assert {v.name for v in external_values(load(home / "b.onnx"))} == {"w1", "w2"}


def test_the_model_in_memory_stays_as_it_is(source, home):
    model = load(source)
    before = {n: v.const_value for n, v in model.graph.initializers.items()}
    publish(model, home / "o.onnx", verify=accept, external_above=0)
    assert {n: v.const_value for n, v in model.graph.initializers.items()} == before


def test_weights_of_subgraphs_and_other_models_go_along(home, tmp_path):
    branch = builders.branch()
    inner = next(a.g for a in branch.graph.node[0].attribute if a.g.initializer)
    inner.initializer[0].CopyFrom(builders.weight("inner", 8, 64))
    first = publish(load(builders.save(branch, tmp_path / "b.onnx")), home / "b.onnx", verify=accept, external_above=0)
    assert {v.name for v in external_values(load(home / "b.onnx"))} == {"inner"}
    again = publish(load(home / "b.onnx"), home / "c.onnx", verify=accept, external_above=0)
    assert [e[1:] for e in again.external] == [e[1:] for e in first.external]
    inside = publish(load(home / "c.onnx"), home / "d.onnx", verify=accept)
    assert inside.external == ()


def test_an_overwritten_output_drops_only_its_own_data(source, other, home):
    kept = ["o.data", "o.0123456789abcdef.txt", "p.0123456789abcdef.data", "o.0123456789ABCDEF.data"]
    for name in kept:
        (home / name).write_text("not yours")
    out = home / "o.onnx"
    [(first, *_)] = publish(load(source), out, verify=accept, external_above=0).external
    [(second, *_)] = publish(load(other), out, verify=accept, external_above=0, force=True).external
    assert first != second
    assert names(home) == sorted([*kept, second, "o.onnx"])
    publish(load(other), out, verify=accept, external_above=0, force=True)
    assert names(home) == sorted([*kept, second, "o.onnx"])
    publish(load(source), out, verify=accept, force=True)
    assert names(home) == sorted([*kept, "o.onnx"])


def test_data_that_the_old_output_did_not_name_by_content_is_kept(home):
    out = builders.externalize(builders.mlp(), home).rename(home / "o.onnx")
    publish(load(out), out, verify=accept, force=True)
    assert names(home) == ["o.onnx", "weights.data"]


def test_data_that_the_input_shares_with_the_old_output_is_kept(source, other, home):
    out, copy = home / "o.onnx", home / "copy.onnx"
    [(data, *_)] = publish(load(source), out, verify=accept, external_above=0).external
    copy.write_bytes(out.read_bytes())
    publish(load(other), out, verify=accept, force=True, inputs=(copy,))
    assert names(home) == ["copy.onnx", data, "o.onnx"]
    assert fingerprint(copy).external


def test_the_input_folder_is_never_written(source, home):
    path = builders.externalize(builders.mlp(), source.parent)
    (source.parent / "model-inferred.onnx").write_text("precious")
    before, stamp = snapshot(source.parent), source.parent.stat().st_mtime_ns
    source.parent.chmod(0o500)
    try:
        for i, above in enumerate((0, 1 << 30)):
            publish(load(path), home / f"o{i}.onnx", verify=accept, inputs=(path,), record=note, external_above=above)
    finally:
        source.parent.chmod(0o700)
    assert snapshot(source.parent) == before
    assert source.parent.stat().st_mtime_ns == stamp


def test_nothing_is_written_elsewhere(source, home, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    publish(load(source), home / "o.onnx", verify=accept, record=note, external_above=0)
    assert names(elsewhere) == []


def test_too_little_free_space_is_known_before_writing(source, home, monkeypatch):
    usage = module.shutil.disk_usage(home)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OutputError, match=r"disk is full: \d+ bytes are needed") as error:
        publish(load(source), home / "o.onnx", verify=accept)
    assert error.value.where == str(home)
    assert names(home) == []


def test_a_graph_that_cannot_be_written_is_typed(source, home):
    model = load(source)
    model.graph[0].replace_input_with(0, model.graph.outputs[0])
    with pytest.raises(InvalidModelError, match="cannot be written"):
        write_to(model, home, "o")


def test_other_files_follow_the_same_rules(home):
    out = home / "report.html"
    write_file(out, b"one")
    with pytest.raises(OutputError, match="exists"):
        write_file(out, b"two")
    assert out.read_bytes() == b"one"
    write_file(out, b"two", force=True)
    assert snapshot(home) == {"report.html": b"two"}
    assert names(home) == ["report.html"]


@pytest.mark.parametrize("force", [False, True])
def test_all_is_on_the_disk_before_the_model_takes_its_name(source, other, home, monkeypatch, force):
    out, log = home / "o.onnx", []
    if force:
        publish(load(other), out, verify=accept, record=note)
    fsync, move = os.fsync, module._move

    def syncing(fd):
        fsync(fd)
        log.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))  # noqa: PTH115, PTH119

    def moving(path, target, **options):
        log.append("move")
        assert record_path(out).is_file()
        assert list(home.glob("*.data"))
        move(path, target, **options)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(module, "_move", moving)
    publish(load(source), out, verify=accept, record=note, external_above=0, force=force)
    assert log == ["draft.data", "o.onnx", "o.onnx.record.json", "out", "move", "out"]


class Fault:
    """Makes the n-th call of some functions fail, and counts them."""

    def __init__(self, monkeypatch, number, code=errno.ENOSPC):
        self.count, self._number, self._code = 0, number, code
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "link"), (module.tempfile, "mkdtemp")):
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))
        monkeypatch.setattr(Path, "rename", self._wrap(Path.rename))
        monkeypatch.setattr(Path, "open", self._wrap_open(Path.open))

    def _wrap(self, function):
        def wrapped(*args, **kwargs):
            self.strike()
            return function(*args, **kwargs)

        return wrapped

    def _wrap_open(self, function):
        def wrapped(path, mode="r", **kwargs):
            if "w" not in mode:
                return function(path, mode, **kwargs)
            self.strike()
            return Writer(function(path, mode, **kwargs), self)

        return wrapped

    def strike(self):
        self.count += 1
        if self.count == self._number:
            raise OSError(self._code, os.strerror(self._code))


class Writer:
    """A file whose writes can fail."""

    def __init__(self, file, fault):
        self._file, self._fault = file, fault

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._fault.strike()
        return self._file.write(data)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("external_above", [0, 1 << 30])
@pytest.mark.parametrize("replacing", [False, True])
def test_every_failing_call_in_turn(source, other, home, monkeypatch, replacing, external_above, code):
    out, model = home / "o.onnx", load(source)
    if replacing:
        publish(load(other), out, verify=accept, record=note, external_above=external_above)
    before = snapshot(home)
    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            fault = Fault(patch, number, code)
            try:
                publish(model, out, verify=accept, record=note, force=replacing, external_above=external_above)
            except OutputError as error:
                failed = error
            else:
                failed = None
        if failed is None and fault.count < number:
            break
        if failed is None:
            assert consistent(out)  # a failing hard link has a substitute
            for name in names(home):
                (home / name).unlink()
            for name, content in before.items():
                (home / name).write_bytes(content)
            continue
        assert failed.message == from_os_error(OSError(code, os.strerror(code)), out).message
        assert STAGE not in failed.where
        assert snapshot(home) == before, number
        assert names(home) == sorted(before), number
    assert number > 10
    assert consistent(out)
    assert not replacing or not set(before) & set(snapshot(home)) - {"o.onnx", "o.onnx.record.json"}


@pytest.mark.parametrize("force", [False, True])
def test_a_file_system_without_hard_links(source, other, home, monkeypatch, force):
    out = home / "o.onnx"
    if force:
        publish(load(other), out, verify=accept, record=note)
    monkeypatch.setattr(os, "link", no_link)
    publish(load(source), out, verify=accept, record=note, force=force)
    assert consistent(out)
    assert set(load(out).graph.initializers) == set(load(source).graph.initializers)


def limited(path, out, limit, external_above):
    """In a child: publish with a limit on the size of files; exit code 8 means OutputError."""
    model = load(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        publish(model, out, verify=accept, record=note, force=True, external_above=external_above)
    except OutputError as error:
        os._exit(8 if "file size limit" in error.message else 1)
    os._exit(0)


def dying(path, out, number, external_above):
    """In a child: publish, and die by SIGKILL at the n-th operation on files; 'open' counts too."""
    model = load(path)
    fsync, counted = os.fsync, itertools.count(1)

    def strike(event, *_):
        if event.startswith(("open", "os.", "shutil.", "tempfile.", "fcntl.")) and next(counted) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def syncing(fd):
        strike("os.fsync")
        fsync(fd)
        strike("os.fsync")

    os.fsync = syncing
    sys.addaudithook(strike)
    publish(model, out, verify=accept, record=note, force=True, external_above=external_above)
    os._exit(0)


def publishing(path, out, force, barrier):
    """In a child: publish together with others; exit code 8 means OutputError."""
    model = load(path)
    barrier.wait(60)
    try:
        for _ in range(5):
            publish(model, out, verify=accept, record=note, force=force, inputs=(path,), external_above=0)
    except OnnxcompError as error:
        os._exit(error.code)
    os._exit(0)


@pytest.fixture(scope="module")
def children():
    """Children forked from a small server that has imported everything, not from this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "builders", "onnxruntime", "onnxcomp.model", "test_publish"])
    return context


def start(context, function, *args):
    child = context.Process(target=function, args=args)
    child.start()
    return child


def finish(child):
    child.join(120)
    with contextlib.closing(child):
        return child.exitcode


@pytest.mark.parametrize("external_above", [0, 1 << 30])
def test_a_full_disk_in_a_child(source, other, home, children, external_above):
    out = home / "o.onnx"
    publish(load(other), out, verify=accept, record=note, external_above=external_above)
    before = snapshot(home)
    for limit in (0, 1, 100, 1000, 2000):
        assert finish(start(children, limited, source, out, limit, external_above)) == 8
        assert snapshot(home) == before
        assert names(home) == sorted(before)
    assert finish(start(children, limited, source, out, 1 << 20, external_above)) == 0
    assert consistent(out)


@pytest.mark.slow
@pytest.mark.parametrize("external_above", [0, 1 << 30])
def test_killed_at_every_moment(source, other, home, children, external_above):
    out = home / "o.onnx"
    publish(load(other), out, verify=accept, record=note, external_above=external_above)
    before = snapshot(home)
    old = fingerprint(out).sha256
    publish(load(source), out, verify=accept, record=note, force=True, external_above=external_above)
    after, new = snapshot(home), fingerprint(out).sha256
    states = []
    for number in itertools.count(1):
        for name in names(home):
            (home / name).unlink()
        for name, content in before.items():
            (home / name).write_bytes(content)
        code = finish(start(children, dying, source, out, number, external_above))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        states.append(fingerprint(out).sha256)
        recorded = json.loads(record_path(out).read_bytes())["sha256"]
        assert recorded in {old, new}
        publish(load(source), out, verify=accept, record=note, force=True, external_above=external_above)
        assert not list(home.glob(STAGE + "*")), number
        assert after.items() <= snapshot(home).items()
        assert set(snapshot(home)) <= {*after, *before}  # data of the old output may stay, and harms nobody
        for unborn in home.glob(".onnxcomp-new-*"):
            assert [p.stat().st_size for p in unborn.iterdir()] in ([], [0])
            module.shutil.rmtree(unborn)
    assert len(states) >= 30
    assert states == sorted(states, key=[old, new].index)
    assert {old, new} == set(states)


def test_killed_before_the_first_output(source, home, children):
    out = home / "o.onnx"
    for number in (8, 16, 24, 32):
        assert finish(start(children, dying, source, out, number, 0)) == -signal.SIGKILL
        if out.exists():
            assert consistent(out)
        publish(load(source), out, verify=accept, record=note, force=True, external_above=0)
        assert consistent(out)
        assert len(snapshot(home)) == 3
        assert not list(home.glob(STAGE + "*"))
        for name in snapshot(home):
            (home / name).unlink()


def test_a_folder_whose_owner_lives_is_left_alone(source, other, home):
    seen = []

    def verify(path):
        publish(load(other), home / "second.onnx", verify=accept)
        seen.append(path.exists())

    publish(load(source), home / "first.onnx", verify=verify)
    assert seen == [True]
    assert names(home) == ["first.onnx", "second.onnx"]


def test_litter_is_swept_and_young_folders_are_left(source, home):
    for name, owned in ((STAGE + "dead", True), (STAGE + "half-removed", False), (".onnxcomp-new-old", True)):
        (home / name).mkdir()
        (home / name / "m.onnx").write_text("x")
        if owned:
            (home / name / "owner").touch()
    os.utime(home / ".onnxcomp-new-old", (0, 0))
    (home / ".onnxcomp-new-young").mkdir()
    publish(load(source), home / "o.onnx", verify=accept)
    assert names(home) == [".onnxcomp-new-young", "o.onnx"]


def test_eight_processes_from_one_input_to_eight_outputs(source, home, children):
    outs = [home / f"{i}/o.onnx" for i in range(4)] + [home / f"o{i}.onnx" for i in range(4)]
    for out in outs[:4]:
        out.parent.mkdir()
    barrier = children.Barrier(8)
    running = [start(children, publishing, source, out, True, barrier) for out in outs]
    assert [finish(child) for child in running] == [0] * 8
    assert all(consistent(out) for out in outs)
    assert len({out.read_bytes() for out in outs[:4]}) == 1
    assert len({fingerprint(out).external[0][1] for out in outs}) == 1
    assert not list(home.rglob(".*"))


def test_eight_processes_to_one_output(source, other, home, children):
    out, barrier = home / "o.onnx", children.Barrier(8)
    running = [start(children, publishing, (source, other)[i % 2], out, True, barrier) for i in range(8)]
    assert [finish(child) for child in running] == [0] * 8
    assert consistent(out)
    assert len(names(home)) == 3


def test_eight_processes_to_one_output_without_force(source, other, home, children):
    out, barrier = home / "o.onnx", children.Barrier(8)
    running = [start(children, publishing, (source, other)[i % 2], out, False, barrier) for i in range(8)]
    assert [finish(child) for child in running] == [8] * 8  # each fails at the latest in its second round
    assert consistent(out)
    assert len(names(home)) == 3


def test_pages_that_a_copy_reads_too_stay_mapped(tmp_path):
    """A copy that was written inline lives on until it is collected."""
    proto = builders.mlp(width=256)
    (tmp_path / "in").mkdir()
    model = load(builders.externalize(proto, tmp_path / "in"))
    views = [value.const_value.numpy() for value in model.graph.initializers.values()]
    path = write_to(model, tmp_path, "out", external_above=0)
    again = load(path).graph.initializers
    for view, value in zip(views, model.graph.initializers.values(), strict=True):
        np.testing.assert_array_equal(view, again[value.name].const_value.numpy())
        np.testing.assert_array_equal(view, value.const_value.numpy())
