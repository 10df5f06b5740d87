"""The checks: each returns what it measured, or raises `SkippedError` with a reason, or any other error."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu_checks.nets import Nets

from onnxcomp import devices, doctor, memory, optimize_file
from onnxcomp.bench import bench, runner
from onnxcomp.errors import OnnxcompError, ProviderError
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic, QuantizeWeights
from onnxcomp.runtime import Session, SessionSettings, open_session

FULL_PRECISION = {"cuda": {"use_tf32": "0"}}


class SkippedError(Exception):
    """There is nothing here to check this with."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the checks run with: the provider ('cuda'; 'cpu' rehearses), nets, a folder, seconds of a measurement."""

    provider: str
    nets: Nets
    folder: Path
    seconds: float
    models: Sequence[Path]

    def rows(self, model: Path, **options: Any) -> list[dict[str, Any]]:
        """The results of a benchmark on the provider, as JSON."""
        options = {"seconds": self.seconds, **options}
        found = bench(model, provider=self.provider, **options).to_json(samples=False)
        json.dumps(found, allow_nan=False)
        return list(found["results"])

    def bench(self, model: Path, **options: Any) -> dict[str, Any]:
        """The first of them."""
        return self.rows(model, **options)[0]

    def open(self, model: Path, provider: str | None = None, **options: str) -> Session:
        """A session, in full precision where the provider has a choice."""
        chosen = {**FULL_PRECISION["cuda"], **options}
        return open_session(
            model, provider=provider or self.provider, settings=SessionSettings(provider_options={"cuda": chosen})
        )

    def needs_cuda(self) -> None:
        """Leave a check that no other provider can stand in for."""
        if self.provider != "cuda":
            raise SkippedError("only on CUDA")


def doctor_is_content(stage: Stage) -> str:
    """Drivers, libraries and builds."""
    found = doctor.examine()
    wrong = [f"{f.name}: {f.text}" for f in found.findings if not f.ok and f.name != "room"]
    assert not wrong, "; ".join(wrong)
    assert found.providers[stage.provider] == "works", found.providers
    return "; ".join(f.text for f in found.findings if f.name in ("gpus", "onnxruntime", "cuda versions"))


def latency(stage: Stage) -> str:
    """IO binding, inputs on the device; nodes really there."""
    row = stage.bench(stage.nets.teacher, batch=32)
    assert row["placement"]["providers"][stage.provider]["nodes"] > 0, row["placement"]
    return f"p50 {_p50(row)}, nodes {_shares(row['placement']['providers'])}, options {_options(row)}"


def transfers(stage: Stage) -> str:
    """Copies that count, beside IO binding."""
    with_copies, bound = (stage.bench(stage.nets.teacher, batch=256, bind=bind) for bind in (False, True))
    return f"batch 256: p50 {_p50(with_copies)} with the copies, {_p50(bound)} without"


def same_outputs_when_bound(stage: Stage) -> str:
    """Bound runs give what plain ones give, for each feed, and again."""
    session = stage.open(stage.nets.teacher)
    feeds = _feeds(stage, 4)
    calls = runner.runs(session, feeds, bind=True)
    for _ in range(2):
        for feed, call in zip(feeds, calls, strict=True):
            _near(runner.outputs(call())[0], session.run(feed)["y"], 1e-5)
    return f"{len(feeds)} feeds, twice"


def cuda_graph(stage: Stage) -> str:
    """Recorded once, replayed with each feed: the same outputs as without; and its latency."""
    stage.needs_cuda()
    plain, graph = stage.open(stage.nets.teacher), stage.open(stage.nets.teacher, enable_cuda_graph="1")
    assert graph.cuda_graph, "the option did not arrive"
    feeds = _feeds(stage, 4)
    for feed, call in zip(feeds, runner.runs(graph, feeds, bind=False), strict=True):
        _near(runner.outputs(call())[0], plain.run(feed)["y"], 1e-5)
    _near(runner.outputs(runner.runs(graph, feeds)[3]())[0], plain.run(feeds[0])["y"], 1e-5)
    row, usual = (stage.bench(stage.nets.teacher, batch=32, cuda_graph=graph) for graph in (True, False))
    assert row["placement"]["options"].get("enable_cuda_graph") == "1", row["placement"]["options"]
    return f"p50 {_p50(row)}, without {_p50(usual)}"


def placement(stage: Stage) -> str:
    """Shares that sum to one; a fallback and its copies are named."""
    row = stage.bench(stage.nets.mixed, scenario="placement", batch=32)
    after = row["placement"]["after_fusion"]
    parts = [*after["providers"].values(), after["memcpy"]]
    for key in ("share", "time_share"):
        assert abs(sum(part[key] for part in parts) - 1) < 1e-9, after
    if stage.provider != "cpu":
        assert "Scaler" in after["ops_on_cpu"], after["ops_on_cpu"]
        assert after["providers"][stage.provider]["time_share"] > 0, after
    return f"time {_shares(after['providers'], 'time_share')}, copies {after['memcpy']['nodes']}"


def cold(stage: Stage) -> str:
    """From the start of a process to its first output."""
    row = stage.bench(stage.nets.teacher, scenario="cold")
    return f"first output of {row['processes']} processes after {row['cold_ms']['total']['maximum']:.0f} ms at most"


def throughput(stage: Stage) -> str:
    """Callers on one session."""
    row = stage.bench(stage.nets.teacher, scenario="throughput", batch=64, workers=2)
    return f"{row['throughput']:.0f} samples/s"


def server(stage: Stage) -> str:
    """Requests at a rate; device memory of the workers."""
    row = stage.bench(stage.nets.teacher, scenario="server", rate=50.0, workers=1, seconds=max(stage.seconds, 4.0))
    assert row["errors"] == 0, row["errors"]
    return f"{row['achieved_rate']:.0f} requests/s"


def workers(stage: Stage) -> str:
    """Two processes, and two threads on one session."""
    rows = stage.rows(stage.nets.teacher, scenario="workers", workers=2)
    assert all(row["outputs_equal"] and row["same_outputs"] for row in rows), rows
    return "; ".join(
        f"{row['workers']} {row['kind']}: {row['throughput']:.0f} samples/s, device {row['memory']['device_bytes']}"
        for row in rows
    )


def refusals(stage: Stage) -> str:
    """What cannot run on the device is an error, never a run on the CPU."""
    stage.needs_cuda()
    _refused(lambda: stage.open(stage.nets.teacher, device_id="99"))
    _refused(lambda: stage.open(stage.nets.host_only))
    alone = SessionSettings(config={"session.disable_cpu_ep_fallback": "1"})
    _refused(lambda: open_session(stage.nets.mixed, provider="cuda", settings=alone))
    open_session(stage.nets.teacher, provider="cuda", settings=alone)
    return "a device that is not there, a model and a node without a kernel"


def fidelity(stage: Stage) -> str:
    """The CPU's outputs, in full precision near, with TF32 the same classes."""
    feed = {"x": stage.nets.test}
    wanted = stage.open(stage.nets.teacher, "cpu").run(feed)["y"]
    exact = stage.open(stage.nets.teacher).run(feed)["y"]
    fast = stage.open(stage.nets.teacher, use_tf32="1").run(feed)["y"]
    worst = _near(exact, wanted, 1e-4)
    agree = float(np.mean(fast.argmax(1) == wanted.argmax(1)))
    assert agree > 0.99, agree
    accuracy = float(np.mean(fast.argmax(1) == stage.nets.labels))
    assert accuracy > 0.9, accuracy
    return (
        f"largest difference {worst:.1e} of the largest value; with TF32 {agree:.1%} same classes, right {accuracy:.1%}"
    )


def quantized(stage: Stage) -> str:
    """Static int8, dynamic int8 and 4-bit weights on the device, and where their nodes land."""
    feed = {"x": stage.nets.test}
    wanted = stage.open(stage.nets.teacher, "cpu").run(feed)["y"].argmax(1)
    said = []
    for name, one, data in (
        ("static", QuantizeStatic(), {"x": stage.nets.train[:128]}),
        ("dynamic", QuantizeDynamic(), None),
        ("weights", QuantizeWeights(bits=4), None),
    ):
        path = stage.folder / f"{name}.onnx"
        optimize_file(stage.nets.teacher, path, [one], data=data, force=True, allow_larger=True)
        agree = float(np.mean(stage.open(path).run(feed)["y"].argmax(1) == wanted))
        assert agree > 0.9, (name, agree)
        row = stage.bench(path, batch=32)
        said.append(f"{name}: {agree:.1%} same classes, p50 {_p50(row)}, {_shares(row['placement']['providers'])}")
    return "; ".join(said)


def distill(stage: Stage) -> str:
    """The student learns on the device, in bfloat16 where it has it."""
    torch = _torch(stage)
    from onnxcomp.pytorch import distill as teach

    out = stage.folder / "taught.onnx"
    teach(
        stage.nets.teacher, stage.nets.student, {"x": stage.nets.train}, out,
        epochs=20, device=stage.provider, batch=64, force=True,
    )  # fmt: skip
    feed = {"x": stage.nets.test}
    before, after = (
        float(np.mean(stage.open(path).run(feed)["y"].argmax(1) == stage.nets.labels))
        for path in (stage.nets.student, out)
    )
    assert after > before + 0.2, (before, after)
    peak = f", {torch.cuda.max_memory_allocated() / 1e6:.0f} MB" if stage.provider == "cuda" else ""
    return f"right {before:.1%} before, {after:.1%} after{peak}"


def distill_in_processes(stage: Stage) -> str:
    """Two GPUs share a step (NCCL)."""
    stage.needs_cuda()
    count = _torch(stage).cuda.device_count()
    if count < 2:
        raise SkippedError(f"{count} GPU: NCCL needs two")
    np.save(stage.folder / "train.npy", stage.nets.train)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "onnxcomp", "distill"),
        *("--teacher", str(stage.nets.teacher), "--student", str(stage.nets.student)),
        *("--data", str(stage.folder / "train.npy"), "-o", str(stage.folder / "shared.onnx"), "--force"),
        *("--epochs", "2", "--device", "cuda", "--batch", "64"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return "two processes"


def device_memory(stage: Stage) -> str:
    """NVML: what this process holds."""
    stage.needs_cuda()
    found = devices.devices()
    if not found.devices:
        raise SkippedError(found.note or "no device")
    before = devices.used()
    session = stage.open(stage.nets.teacher)
    session.run({"x": stage.nets.test})
    held, after = memory.measure().device_bytes, devices.used()
    assert before is not None, "NVML does not tell the memory of the device"
    assert after is not None, "NVML does not tell the memory of the device"
    if held is None:
        raise SkippedError(
            f"the driver does not list this process (a container?); the device went from {before} to {after}"
        )
    assert held > 0, held
    return f"this process {held / 1e6:.0f} MB, the device {after / 1e6:.0f} MB"


def given(stage: Stage) -> str:
    """The models that were named."""
    if not stage.models:
        raise SkippedError("no models named")
    said = []
    for model in stage.models:
        row = stage.bench(model, scenario="placement")
        time = _shares(row["placement"]["after_fusion"]["providers"], "time_share")
        said.append(f"{model.name}: p50 {_p50(row)}, time {time}")
    return "; ".join(said)


CHECKS: tuple[Callable[[Stage], str], ...] = (
    doctor_is_content, refusals, fidelity, same_outputs_when_bound, latency, transfers, cuda_graph, placement, cold,
    throughput, server, workers, quantized, device_memory, distill, distill_in_processes, given,
)  # fmt: skip


def device_is_there() -> bool:
    """Whether this host has an NVIDIA GPU, whatever ORT can do with it."""
    return bool(devices.devices().devices) or any(Path("/dev").glob("nvidia[0-9]*"))


def _torch(stage: Stage) -> Any:
    if importlib.util.find_spec("torch") is None:
        raise SkippedError("torch is not installed")
    import torch

    if stage.provider == "cuda" and not torch.cuda.is_available():
        raise SkippedError(f"this torch ({torch.__version__}) cannot use CUDA")
    return torch


def _feeds(stage: Stage, count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": stage.nets.test[8 * i : 8 * i + 8]} for i in range(count)]


def _near(found: Any, wanted: Any, tolerance: float) -> float:
    worst = float(np.abs(np.asarray(found) - wanted).max() / max(float(np.abs(wanted).max()), 1e-9))
    assert worst <= tolerance, f"outputs differ by {worst:.1e} of the largest value"
    return worst


def _refused(do: Callable[[], object]) -> None:
    try:
        do()
    except ProviderError:
        return
    except OnnxcompError as error:
        raise AssertionError(f"refused as {type(error).__name__}, not as ProviderError: {error}") from error
    raise AssertionError("not refused")


def _p50(row: dict[str, Any]) -> str:
    return f"{row['latency_ms']['p50']['value']:.3f} ms"


def _shares(providers: dict[str, Any], key: str = "share") -> str:
    return ", ".join(f"{name} {part[key]:.0%}" for name, part in providers.items())


def _options(row: dict[str, Any]) -> dict[str, str]:
    return {k: v for k, v in row["placement"]["options"].items() if k in ("use_tf32", "cudnn_conv_algo_search")}
