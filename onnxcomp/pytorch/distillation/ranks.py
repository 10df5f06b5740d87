"""Several processes, on one host or more, that train one student, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from onnxcomp import errors
from onnxcomp.errors import OnnxcompError, UnsupportedError, UsageError, WorkerCrashError
from onnxcomp.passes.distill import Settings

T = TypeVar("T")

#: what torchrun sets, beside RANK and WORLD_SIZE
_NEEDED = ("MASTER_ADDR", "MASTER_PORT")

#: what messages of torch's backends hold when another process is gone
_LOST = ("gloo", "Gloo", "NCCL", "Connection closed", "Connection reset", "TCPStore")

#: bytes of gradients that are sent together
_BUCKET = 25 << 20

_FAILURE = "failure"
_PATIENCE = 2.0  # seconds to wait for the message of who failed


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes of a run; alone there is nothing to agree on.

    Attributes:
        rank: which one this is; 0 writes what is written.
        count: how many there are.
        local: which one on this host.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients over the processes; none where no process has one.

        torch's DistributedDataParallel sends while it computes, but leaves gradients that only some parts of
        a step have unsent, and warns of its own options.
        """
        if self.count == 1:
            return
        used = self.summed([float(parameter.grad is not None) for parameter in parameters])
        sent = []
        for bucket in _buckets([parameter for parameter, count in zip(parameters, used, strict=True) if count]):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            parts = torch.split_with_sizes(flat, [p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.reshape(parameter.shape)

    def start_alike(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors the first process's values, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes, the same in all of them."""
        if self.count == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found

    def averaged(self, tensors: Sequence[Tensor]) -> None:
        """Give the tensors their mean over the processes, in place; what is the same in all keeps its bits."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(
            tensors, torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.reshape(tensor.shape) / self.count)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait for it."""
        if self.count == 1:
            return make()
        held = [make() if self.first else None]
        dist.broadcast_object_list(held, device=torch.device("cpu"))
        return cast("T", held[0])


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type, some megabytes together."""
    held: list[nn.Parameter] = []
    for parameter in parameters:
        if held and (sum(p.nbytes for p in held) >= _BUCKET or held[0].dtype != parameter.dtype):
            yield held
            held = []
        held.append(parameter)
    if held:
        yield held


def from_environment() -> Ranks:
    """What `torchrun` says about this process; alone where it says nothing.

    Raises UsageError for variables that are missing, or no numbers.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    for name in _NEEDED:
        if name not in os.environ:
            raise UsageError(
                f"RANK and WORLD_SIZE say that this is one of several processes, but {name} is not set",
                where="environment",
                hint="start with torchrun, which sets them, or unset them",
            )
    try:
        return Ranks(*(int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except ValueError as error:
        raise UsageError(f"RANK, WORLD_SIZE or LOCAL_RANK: {error}", where="environment") from error


def choose_device(settings: Settings, ranks: Ranks) -> torch.device:
    """Where the student trains; each process of a host takes a CUDA device of its own.

    Raises UnsupportedError where CUDA is asked for and torch has none, or has fewer devices than processes.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cpu" or (settings.device == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise UnsupportedError("torch finds no CUDA device", where="--device cuda", hint="--device cpu")
    if ranks.count == 1:
        return torch.device("cuda")
    if ranks.local >= there:
        raise UnsupportedError(
            f"process {ranks.local + 1} of this host has no CUDA device of its own, there are {there}",
            where=f"--device {settings.device}",
            hint=f"torchrun --nproc-per-node {there}, or --device cpu",
        )
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


@contextlib.contextmanager
def joined(ranks: Ranks, device: torch.device, *, patience: dt.timedelta | None = None) -> Iterator[None]:
    """All of them connected. The first OnnxcompError of any ends each, with that error.

    Args:
        ranks: this process, and how many there are.
        device: where it computes.
        patience: how long one waits for another that is alive; None: torch's half an hour.

    Raises WorkerCrashError where another process is gone without a word; UnsupportedError where they cannot connect.
    """
    if ranks.count == 1:
        yield
        return
    if dist.is_initialized():
        raise UsageError("this process is in a group of torch.distributed already", hint="distill before, or after it")
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(rendezvous("env://"))
        dist.init_process_group(
            backend,
            store=PrefixStore("onnxcomp", store),
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=patience,
        )
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(
            f"the processes cannot connect: {str(error).splitlines()[0]}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
        ) from error
    try:
        yield
    except OnnxcompError as error:
        with contextlib.suppress(RuntimeError):  # who holds the store may be gone
            store.set(_FAILURE, json.dumps(error.to_json()))
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(text in str(error) for text in _LOST):
            raise
        raise _failure(store) from error
    finally:
        dist.destroy_process_group()


def _failure(store: Store) -> OnnxcompError:
    """Why another process is gone, as far as it said so."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(RuntimeError):
        while time.monotonic() < deadline:
            if store.check([_FAILURE]):
                told = json.loads(store.get(_FAILURE))
                kind: type[OnnxcompError] = getattr(errors, told["class"])
                return kind(told["message"], where=told["where"], hint=told["hint"])
            time.sleep(0.05)
    return WorkerCrashError("another process of the run has ended", hint="its own messages say why")
