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
from collections.abc import Callable, Iterator
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
    if getattr(fn, "__module__", "") == "__main__":
        raise UsageError("a worker cannot import a function of the main script", where=fn, hint="move it to a module")
    limits = limits or WorkerLimits()
    task = pickle.dumps((fn, args, kwargs))
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb", buffering=0) as results:
        child = subprocess.Popen(
            [sys.executable, "-c", _BOOT.format(path=sys.path, fd=write_fd)],
            stdin=subprocess.PIPE,
            stdout=_stderr(),
            pass_fds=(write_fd,),
            process_group=0,
        )
        os.close(write_fd)
        try:
            with _terminate_as_interrupt():
                result: T = _supervise(child, task, results, limits, on_progress)
                return result
        except BaseException:
            _stop(child)
            raise
        finally:
            if child.stdin is not None:
                with contextlib.suppress(OSError):
                    child.stdin.close()
            child.wait()
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)  # what it has started and left behind


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


def _supervise(
    child: subprocess.Popen[bytes],
    task: bytes,
    results: IO[bytes],
    limits: WorkerLimits,
    on_progress: Callable[[str, float | None], None] | None,
) -> Any:
    memory_limit = limits.memory_bytes or int(psutil.virtual_memory().available * 0.8)
    feeder = threading.Thread(target=_feed, args=(child, task), daemon=True)
    feeder.start()
    start = heard = time.monotonic()
    buffer = bytearray()
    while True:
        ended = child.poll() is not None
        ready, _, _ = select.select([results], [], [], 0 if ended else _POLL)
        now = time.monotonic()
        if ready:
            piece = os.read(results.fileno(), 1 << 20)
            if not piece:
                raise _death(child, memory_limit)
            buffer += piece
            heard = now
            for kind, value in _messages(buffer):
                if kind == "progress":
                    if on_progress is not None:
                        on_progress(*value)
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE)  # it has nothing left to do but leave
                if kind == "result":
                    return value
                raise value if kind == "error" else RemoteError(value)
        elif ended:
            # a process that it forked still holds the pipe open
            raise _death(child, memory_limit)
        used = _resident(child.pid)
        if used > memory_limit:
            raise LimitError(
                f"the worker used {used >> 20} MiB of memory, the limit is {memory_limit >> 20} MiB",
                hint="raise --memory-limit, use smaller batches, or a machine with more memory",
            )
        if limits.seconds is not None and now - start > limits.seconds:
            raise WorkerTimeoutError(f"the worker ran longer than {limits.seconds:g} s", hint="raise --time-limit")
        if limits.stall_seconds is not None and now - heard > limits.stall_seconds:
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


def _messages(buffer: bytearray) -> Iterator[tuple[str, Any]]:
    while len(buffer) >= _HEADER.size:
        (size,) = _HEADER.unpack_from(buffer)
        if len(buffer) < _HEADER.size + size:
            return
        message = bytes(buffer[_HEADER.size : _HEADER.size + size])
        del buffer[: _HEADER.size + size]
        yield pickle.loads(message)


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        with contextlib.suppress(psutil.Error):
            total += member.memory_info().rss
    return total


def _death(child: subprocess.Popen[bytes], memory_limit: int) -> OnnxcompError:
    code = child.wait()
    if code == -signal.SIGKILL:
        return LimitError(
            "the worker was killed, most likely by the system for lack of memory",
            where=f"limit {memory_limit >> 20} MiB",
            hint="free memory, use smaller batches, or a machine with more",
        )
    if code < 0:
        name = signal.Signals(-code).name
        return WorkerCrashError(
            f"the worker process died with {name}",
            hint="the model or the data crashes native code; your files are untouched",
        )
    return WorkerCrashError(f"the worker process ended early with exit code {code}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child: let it clean up first, then force it."""
    child.terminate()
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()


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
    signal.signal(signal.SIGTERM, _interrupt)
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
        fn, args, kwargs = pickle.loads(task)
        message = pickle.dumps(("result", fn(*args, **kwargs)))
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
