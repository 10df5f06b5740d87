"""One call per run: feeds that are ready, outputs that are finished.

On the CPU a run is `session.run`. On a GPU the inputs are put there first and a run ends when the outputs
are there (`synchronize_outputs`): otherwise the clock would measure copies, or only the launch. A server
pays the copies, too: without binding a run takes its inputs from the host and brings its outputs back.

With a CUDA graph (the provider's option `enable_cuda_graph`) the kernels are recorded once and replayed on
the same addresses, so all runs share one binding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from onnxcomp.errors import UsageError
from onnxcomp.model import InputSpec
from onnxcomp.runtime import Session, without_graph

#: memory that holds the inputs and outputs of each provider
DEVICES: Mapping[str, str] = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda", "openvino": "cpu"}

#: what stays on the host wherever the model runs
_ON_HOST = ("string", "sequence", "map", "optional")

Run = Callable[[], object]


def runs(session: Session, feeds: Sequence[Mapping[str, np.ndarray]], *, bind: bool | None = None) -> list[Run]:
    """One function without arguments per set of feeds.

    Args:
        session: an open session.
        feeds: arrays by input name.
        bind: put the inputs on the device once and leave the outputs there; None: on every provider but the CPU.

    Each returns the outputs in the order of the session's signature: arrays, or with binding the binding
    that holds them on the device (`outputs`).

    Raises UsageError for a CUDA graph of feeds that differ in shape.
    """
    names = [spec.name for spec in session.signature.outputs]
    if bind is None:
        bind = session.provider != "cpu"
    if session.cuda_graph:
        return _replayed(session, feeds, transfers=not bind)
    if bind:
        return [_bound(session, feed) for feed in feeds]
    return [_plain(session.ort, names, feed) for feed in feeds]


def outputs(result: object) -> list[object]:
    """The arrays behind what a run returned, copied to the host where they are elsewhere."""
    if isinstance(result, ort.IOBinding):
        return list(result.copy_outputs_to_cpu())
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _plain(session: ort.InferenceSession, names: list[str], feed: Mapping[str, np.ndarray]) -> Run:
    feed = dict(feed)
    run = session.run
    return lambda: run(names, feed)


def _bound(session: Session, feed: Mapping[str, np.ndarray]) -> Run:
    binding, _ = _binding(session, feed)
    run_with, synchronize = session.ort.run_with_iobinding, binding.synchronize_outputs

    def run() -> object:
        run_with(binding)
        synchronize()
        return binding

    return run


def _binding(session: Session, feed: Mapping[str, np.ndarray]) -> tuple[ort.IOBinding, dict[str, ort.OrtValue]]:
    """Inputs that are where the model runs, outputs that stay there; and the inputs' values."""
    device = DEVICES[session.provider]
    binding = session.ort.io_binding()
    values = {}
    for spec in session.signature.inputs:
        values[spec.name] = ort.OrtValue.ortvalue_from_numpy(feed[spec.name], _place(spec, device), 0)
        binding.bind_ortvalue_input(spec.name, values[spec.name])
    for spec in session.signature.outputs:
        binding.bind_output(spec.name, _place(spec, device))
    binding.synchronize_inputs()
    return binding, values


def _place(spec: InputSpec, device: str) -> str:
    return "cpu" if spec.dtype in _ON_HOST else device


def _replayed(session: Session, feeds: Sequence[Mapping[str, np.ndarray]], *, transfers: bool) -> list[Run]:
    """Runs that replay one graph on fixed addresses; with transfers, each copies its feed there and the outputs back.

    Without them every run is one of the first feed: nothing else can put data there without a copy that counts.
    """
    shapes = [{name: np.shape(array) for name, array in feed.items()} for feed in feeds]
    if any(one != shapes[0] for one in shapes):
        raise UsageError(
            "a CUDA graph replays one shape, and the feeds have several",
            where="enable_cuda_graph",
            hint="give data of one shape",
        )
    binding, values = _binding(session, feeds[0])
    run_with, synchronize = session.ort.run_with_iobinding, binding.synchronize_outputs
    run_with(binding, without_graph())  # ORT allocates the outputs, which from now on stay where they are
    synchronize()
    for spec, value in zip(session.signature.outputs, binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(spec.name, value)
    for _ in range(2):  # records, then replays
        run_with(binding)
    synchronize()

    def replay() -> object:
        run_with(binding)
        synchronize()
        return binding

    def with_transfers(feed: Mapping[str, np.ndarray]) -> Run:
        pairs = [(values[name].update_inplace, array) for name, array in feed.items()]
        copy_back = binding.copy_outputs_to_cpu

        def run() -> object:
            for update, array in pairs:
                update(array)
            run_with(binding)
            return copy_back()

        return run

    return [with_transfers(feed) for feed in feeds] if transfers else [replay] * len(feeds)
