"""Functions that the tests run in workers, which import them by name."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from onnxcomp import worker
from onnxcomp.errors import UnsafeModelError

STEP = 8 << 20


def add(a, b=0):
    return a + b


def refuse():
    raise UnsafeModelError("too deep", where="model.onnx: node n", hint="do not")


def trip():
    return Path("a").parents[7]


def give_unpicklable():
    return lambda: None


def run_out():
    raise MemoryError


def read_nothing():
    return ctypes.string_at(0)


def abort():
    os.abort()


def leave(code):
    os._exit(code)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_crash():
    if os.fork() == 0:
        time.sleep(600)
    read_nothing()


def extended(data):
    return data + b"end"


def grow(limit):
    """Up to `limit` bytes, step by step."""
    held = []
    while len(held) * STEP < limit:
        held.append(b"\1" * STEP)
        time.sleep(0.01)
    return "all of it"


def grow_in_a_child(limit):
    code = f"import worker_jobs; worker_jobs.grow({limit})"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    return "all of it"


def shout():
    sys.stdout.write("printed\n")
    os.write(1, b"written\n")
    subprocess.run([sys.executable, "-c", "print('inherited')"], check=True)


def surroundings():
    return {
        "stdin": sys.stdin.read(),
        "child_stdin": subprocess.run(["cat"], capture_output=True, check=True).stdout,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "telemetry": os.environ.get("ORT_DISABLE_TELEMETRY"),
        "config_from_model": os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL"),
    }


def in_lockstep(folder, steps):
    """Report each step, and wait until the parent has heard of it."""
    for step in range(steps):
        worker.report(f"step {step}", step / steps)
        while not (folder / f"step {step}").exists():
            time.sleep(0.005)
    return "done"


def count_up(steps):
    for step in range(steps):
        worker.report(str(step))


def hang(folder, deaf=False):
    """For ever, with a process of its own; their ids are in `pids`. Cleaned up: `cleaned` is there."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        (folder / "new").write_text(f"{os.getpid()} {other.pid}")
        (folder / "new").rename(folder / "pids")
        worker.report("hanging")
        while True:
            time.sleep(0.01)
    finally:
        (folder / "cleaned").touch()


def freeze():
    worker.report("freezing")
    os.kill(os.getpid(), signal.SIGSTOP)


def leave_a_process(folder):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "pids").write_text(str(other.pid))
    return other.pid


def ort_alone(path):
    """What a plain session does."""
    import onnxruntime

    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return "loaded"


def open_and_run(path, feeds, folder=None):
    """Our session; from another working directory where one is named."""
    from onnxcomp.runtime import open_session

    if folder is not None:
        os.chdir(folder)
    return open_session(path).run(feeds)
