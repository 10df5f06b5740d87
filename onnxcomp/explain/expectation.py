"""Whether int8 is expected to pay."""

from __future__ import annotations

from onnxcomp import runtime
from onnxcomp.explain.costs import Costs
from onnxcomp.explain.running import Running

#: an expectation needs estimates that differ by this factor; more in models that take less than 0.1 ms
_SURE, _SURE_OF_SMALL, _SMALL = 1.2, 1.5, 100_000.0

#: of the time of a run; less is not worth a word
_NOTABLE = 0.1


def expect(running: Running, costs: Costs | None) -> tuple[str, str]:
    """('faster', 'about equal', 'slower' than the same graph in float, or 'unknown'; why)."""
    if not running.kernels and not running.dequantizers and not running.quantizers:
        return "about equal", "nothing in it is quantized: it runs as it would in float"
    if costs is None:
        return "unknown", "some sizes are not known, or some kernels belong to no node of the model"
    if "avx512_vnni" not in runtime.cpu_features():
        return "unknown", "what kernels cost is known for x86 with AVX-512 and VNNI only"
    loss, name = max((time, name) for name, time in costs.losses.items())
    reason = f"{costs.macs.share:.0%} of the multiplications are in quantized kernels"
    if loss > _NOTABLE * costs.total:
        reason += f", but {name} take about {loss / costs.total:.0%} of the time"
    touched = sum(max(costs.kernels[key], costs.kernels_in_float[key]) for key in costs.kernels if key)
    if touched + costs.boundaries + costs.round_trips + costs.dequantized < _NOTABLE * costs.total:
        return "about equal", reason
    sure = _SURE_OF_SMALL if costs.total < _SMALL else _SURE
    if costs.speedup > sure:
        return "faster", reason
    if costs.speedup < 1 / sure:
        return "slower", reason
    return "unknown", f"{reason}; gains and losses are too close to call"
