"""Run a function in a supervised child process, so that no model can take the caller down.

A legal model can kill ORT (`LayerNormalization(x, scale, "")`), a hostile one can run for ever or
eat all memory. `isolated` turns each of these into a typed error; the caller lives. The child is
started afresh (never forked: ORT's threads do not survive it), has no standard input, writes its
prints to stderr, and dies with its parent. It leads a process group of its own, so that what it has
started dies with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import psutil

from onnxcomp.errors import LimitError, OnnxcompError, UsageError, WorkerCrashError, WorkerTimeoutError

T = TypeVar("T")

_POLL = 0.05  # seconds between looks at the child's memory
_GRACE = 5.0  # seconds for clean-up after an interruption
_HEADER = struct.Struct("<Q")
_BOOT = "import sys; sys.path[:] = {path!r}; from onnxcomp import worker; worker._child({fd})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What a worker may use.

    Attributes:
        memory_bytes: resident memory of the worker and its children; None: 80 % of what is free.
        seconds: wall time; None: no limit.
        stall_seconds: wall time without a progress message; None: no limit.
    """

    memory_bytes: int | None = None
    seconds: float | None = None
    stall_seconds: float | None = 900.0


class RemoteError(Exception):
    """An unexpected exception in the worker (a bug); its text holds the worker's traceback."""


def isolated(
    fn: Callable[..., T],
    *args: Any,
    limits: WorkerLimits | None = None,
    on_progress: Callable[[str, float | None], None] | None = None,
    **kwargs: Any,
) -> T:
    """Call `fn(*args, **kwargs)` in a child process and return its result.

    Args:
        fn: a module-level function that can be imported (not from `__main__`).
        *args: its positional arguments; they and the result must be picklable.
        **kwargs: its keyword arguments.
        limits: see `WorkerLimits`.
        on_progress: called with (text, fraction or None) for every `report` in the child.

    Raises what `fn` raises if it is an OnnxcompError; WorkerCrashError (a signal),
    WorkerTimeoutError, LimitError (memory); RemoteError for anything unexpected.
    """

    def heard(_index: int, text: str, fraction: float | None) -> None:
        if on_progress is not None:
            on_progress(text, fraction)

    (result,) = side_by_side([functools.partial(fn, *args, **kwargs)], limits=limits, on_progress=heard)
    return result


def side_by_side(
    calls: Sequence[functools.partial[T]],
    *,
    limits: WorkerLimits | None = None,
    on_progress: Callable[[int, str, float | None], None] | None = None,
) -> list[T]:
    """Make each call in a child process of its own, all at the same time; their results in order.

    Args:
        calls: `functools.partial`s of functions as `isolated` takes them.
        limits: what all of them together may use.
        on_progress: called with (index of the call, text, fraction or None) for every `report`.

    The first that fails ends the others. Raises as `isolated` does.
    """
    for call in calls:
        if getattr(call.func, "__module__", "") == "__main__":
            hint = "move it to a module"
            raise UsageError("a worker cannot import a function of the main script", where=call.func, hint=hint)
    limits = limits or WorkerLimits()
    tasks = [pickle.dumps(call) for call in calls]
    children: list[_Child] = []
    try:
        with _terminate_as_interrupt():
            for index, task in enumerate(tasks):
                children.append(_start(task, "" if len(tasks) == 1 else f"process {index + 1} of {len(tasks)}"))
            return _supervise(children, limits, on_progress)
    except BaseException:
        _stop(children)
        raise
    finally:
        for child in children:
            _bury(child)


def report(text: str, fraction: float | None = None) -> None:
    """Tell the parent how far the work is; outside of a worker it does nothing.

    Args:
        text: what is being done.
        fraction: done share in [0, 1], if known.
    """
    if _reporter is not None:
        _reporter("progress", (text, fraction))


_reporter: Callable[[str, Any], None] | None = None


def _stderr() -> int:
    """Where the child prints: never to the caller's stdout, which may be a JSON document."""
    if sys.stderr is None:
        return subprocess.DEVNULL
    try:
        return sys.stderr.fileno()
    except (OSError, AttributeError):
        return 2


@dataclasses.dataclass(frozen=True, eq=False)
class _Child:
    """A running child: its process, the pipe of its messages, and which one it is among several."""

    process: subprocess.Popen[bytes]
    results: IO[bytes]
    name: str
    buffer: bytearray = dataclasses.field(default_factory=bytearray)


def _start(task: bytes, name: str) -> _Child:
    read_fd, write_fd = os.pipe()
    results = os.fdopen(read_fd, "rb", buffering=0)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT.format(path=sys.path, fd=write_fd)],
            stdin=subprocess.PIPE,
            stdout=_stderr(),
            pass_fds=(write_fd,),
            process_group=0,
        )
    except BaseException:
        results.close()
        raise
    finally:
        os.close(write_fd)
    threading.Thread(target=_feed, args=(process, task), daemon=True).start()
    return _Child(process, results, name)


def _supervise(
    children: Sequence[_Child],
    limits: WorkerLimits,
    on_progress: Callable[[int, str, float | None], None] | None,
) -> list[Any]:
    memory_limit = limits.memory_bytes or int(psutil.virtual_memory().available * 0.8)
    start = heard = time.monotonic()
    answers: dict[int, Any] = {}
    while len(answers) < len(children):
        running = [(index, child) for index, child in enumerate(children) if index not in answers]
        ended = {index for index, child in running if child.process.poll() is not None}
        ready, _, _ = select.select([child.results for _, child in running], [], [], 0 if ended else _POLL)
        now = time.monotonic()
        for index, child in running:
            if child.results in ready:
                heard = now
                for kind, value in _read(child, memory_limit):
                    if kind == "progress":
                        if on_progress is not None:
                            on_progress(index, *value)
                        continue
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.process.wait(_GRACE)  # it has nothing left to do but leave
                    if kind != "result":
                        raise value if kind == "error" else RemoteError(value)
                    answers[index] = value
            elif index in ended:
                # a process that it forked still holds the pipe open
                raise _death(child, memory_limit)
        _check_limits(children, limits, memory_limit, since_start=now - start, silent=now - heard)
    return [answers[index] for index in range(len(children))]


def _check_limits(
    children: Sequence[_Child], limits: WorkerLimits, memory_limit: int, *, since_start: float, silent: float
) -> None:
    used = _held([child.process.pid for child in children])
    if used > memory_limit:
        raise LimitError(
            f"the worker used {used >> 20} MiB of memory, the limit is {memory_limit >> 20} MiB",
            hint="raise --memory-limit, use smaller batches, or a machine with more memory",
        )
    if limits.seconds is not None and since_start > limits.seconds:
        raise WorkerTimeoutError(f"the worker ran longer than {limits.seconds:g} s", hint="raise --time-limit")
    if limits.stall_seconds is not None and silent > limits.stall_seconds:
        raise WorkerTimeoutError(
            f"the worker made no progress for {limits.stall_seconds:g} s", hint="raise --time-limit"
        )


def _feed(child: subprocess.Popen[bytes], task: bytes) -> None:
    """Send the task; the pipe stays open, its end tells the child that the parent died."""
    if child.stdin is None:
        return
    with contextlib.suppress(OSError, ValueError):
        child.stdin.write(_HEADER.pack(len(task)) + task)
        child.stdin.flush()


def _read(child: _Child, memory_limit: int) -> Iterator[tuple[str, Any]]:
    """What the child's pipe holds, as far as whole messages are there."""
    piece = os.read(child.results.fileno(), 1 << 20)
    if not piece:
        raise _death(child, memory_limit)
    buffer = child.buffer
    buffer += piece
    while len(buffer) >= _HEADER.size:
        (size,) = _HEADER.unpack_from(buffer)
        if len(buffer) < _HEADER.size + size:
            return
        message = bytes(buffer[_HEADER.size : _HEADER.size + size])
        del buffer[: _HEADER.size + size]
        yield pickle.loads(message)


def _held(pids: Sequence[int]) -> int:
    """Memory of the processes and of all that they have started, in bytes.

    What they map from files is most often the same and counts once: the most that one of them maps.
    """
    private = mapped = 0
    found = list(pids)
    while found:
        pid = found.pop()
        with contextlib.suppress(psutil.Error):
            found += _started_by(pid)
            memory = psutil.Process(pid).memory_info()
            shared = getattr(memory, "shared", 0)
            private += memory.rss - shared
            mapped = max(mapped, shared)
    return private + mapped


def _started_by(pid: int) -> list[int]:
    """Children of a process; psutil must read every process of the machine for it, which takes 100 times as long."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return [child.pid for child in psutil.Process(pid).children()]
    return found


def _death(child: _Child, memory_limit: int) -> OnnxcompError:
    code = child.process.wait()
    if code == -signal.SIGKILL:
        return LimitError(
            "the worker was killed, most likely by the system for lack of memory",
            where=f"limit {memory_limit >> 20} MiB" + (f", {child.name}" if child.name else ""),
            hint="free memory, use smaller batches, or a machine with more",
        )
    if code < 0:
        name = signal.Signals(-code).name
        return WorkerCrashError(
            f"the worker process died with {name}",
            where=child.name or None,
            hint="the model or the data crashes native code; your files are untouched",
        )
    return WorkerCrashError(f"the worker process ended early with exit code {code}", where=child.name or None)


def _stop(children: Sequence[_Child]) -> None:
    """End the children: let them clean up first, then force them."""
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + _GRACE
    for child in children:
        try:
            child.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            child.process.kill()


def _bury(child: _Child) -> None:
    """Wait for the child's end, and end what it has started and left behind."""
    if child.process.stdin is not None:
        with contextlib.suppress(OSError):
            child.process.stdin.close()
    child.process.wait()
    with contextlib.suppress(OSError):
        os.killpg(child.process.pid, signal.SIGKILL)
    child.results.close()


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the work like Ctrl-C, so that the child is stopped and cleaned up too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _child(write_fd: int) -> None:
    """The child's main: read the task, run it, send the result."""
    global _reporter  # noqa: PLW0603 - one per process, set once
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # where memory ends, this process goes first, not the caller's
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    stdin = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    (size,) = _HEADER.unpack(_exactly(stdin, _HEADER.size))
    task = _exactly(stdin, size)
    orphaned = threading.Event()
    threading.Thread(target=_die_with_parent, args=(stdin, orphaned), daemon=True).start()
    lock = threading.Lock()

    def post(data: bytes) -> None:
        view = memoryview(_HEADER.pack(len(data)) + data)
        with lock:
            while view:
                view = view[os.write(write_fd, view) :]

    def tell(kind: str, value: Any) -> None:
        post(pickle.dumps((kind, value)))

    _reporter = tell
    try:
        signal.signal(signal.SIGTERM, _interrupt)  # before, there is nothing to clean up: the signal just ends it
        call = pickle.loads(task)
        message = pickle.dumps(("result", call()))
    except OnnxcompError as error:
        message = pickle.dumps(("error", error))
    except MemoryError:
        message = pickle.dumps(("error", LimitError("the worker ran out of memory", hint="use smaller batches")))
    except KeyboardInterrupt:
        if orphaned.is_set():
            os.killpg(0, signal.SIGKILL)
        os._exit(130)
    except Exception:  # noqa: BLE001 - the parent must hear of any bug
        message = pickle.dumps(("bug", traceback.format_exc()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the work is done and cleaned up
    post(message)
    sys.stdout.flush()
    sys.stderr.flush()
    # skip native destructors: a crash after the result is sent must not count
    os._exit(0)


def _exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            os._exit(1)
        data += piece
    return bytes(data)


def _die_with_parent(fd: int, orphaned: threading.Event) -> None:
    os.read(fd, 1)
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.killpg(0, signal.SIGKILL)
