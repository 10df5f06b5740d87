"""One call per run: feeds that are ready, outputs that are finished.

On the CPU a run is `session.run`. On other devices the inputs are put there first and a run ends
when the outputs are there: otherwise the clock would measure copies, or only the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from onnxcomp.runtime import Session

#: memory that holds the inputs and outputs of each provider
DEVICES: Mapping[str, str] = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda", "openvino": "cpu"}

Run = Callable[[], object]


def runs(session: Session, feeds: Sequence[Mapping[str, np.ndarray]], *, bind: bool | None = None) -> list[Run]:
    """One function without arguments per set of feeds.

    Args:
        session: an open session.
        feeds: arrays by input name.
        bind: use IO binding; None: on every provider but the CPU.

    Each returns the outputs in the order of the session's signature: arrays, or with binding
    `OrtValue`s that stay on the device.
    """
    names = [spec.name for spec in session.signature.outputs]
    if bind is None:
        bind = session.provider != "cpu"
    if bind:
        device = DEVICES.get(session.provider, "cpu")
        return [_bound(session.ort, names, feed, device) for feed in feeds]
    return [_plain(session.ort, names, feed) for feed in feeds]


def _plain(session: ort.InferenceSession, names: list[str], feed: Mapping[str, np.ndarray]) -> Run:
    feed = dict(feed)
    run = session.run
    return lambda: run(names, feed)


def _bound(session: ort.InferenceSession, names: list[str], feed: Mapping[str, np.ndarray], device: str) -> Run:
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    for name in names:
        binding.bind_output(name, device)
    binding.synchronize_inputs()

    def run() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return run


def outputs(result: object) -> list[object]:
    """The arrays behind what a run returned, copied to the host where they are elsewhere."""
    if isinstance(result, ort.IOBinding):
        return list(result.copy_outputs_to_cpu())
    return list(result) if isinstance(result, (list, tuple)) else [result]
