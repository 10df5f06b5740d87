"""What ONNX Runtime makes of a model on this host: which nodes multiply in int8, which do not, and why.

ORT's own optimizer is run and the graph that it would execute is read. Nothing is timed: what comes
out as `expectation` is estimated, only `onnxcomp bench` measures.
"""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.callable import make_callable
from onnxcomp.explain.costs import estimate
from onnxcomp.explain.expectation import expect
from onnxcomp.explain.explanation import Dequantized, Explanation, Finding, FloatNode, Macs, Unfused
from onnxcomp.explain.findings import findings
from onnxcomp.explain.running import Running

__all__ = ["Dequantized", "Explanation", "Finding", "FloatNode", "Macs", "Unfused", "explain"]


def explain(path: str | os.PathLike[str]) -> Explanation:
    """Run ORT's optimizer for this host's CPU and read what became of the model's nodes.

    Raises what `onnxcomp.load` and `onnxcomp.runtime.open_session` raise.
    """
    model = models.load(path)
    model.graph.sort()  # copying needs the order, which ORT's quantizer does not keep
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        running = Running(model, models.load(runtime.optimized(path, Path(folder))))
        costs = estimate(model, running)
    speed, reason = expect(running, costs)
    return Explanation(
        host={
            "machine": platform.machine(),
            "cpu": " ".join(sorted(runtime.cpu_features())),
            "onnxruntime": " ".join(runtime.ort_distributions()),
        },
        integer_kernels=running.integer_kernels,
        float_nodes=running.float_nodes,
        unfused=running.unfused,
        dequantized=running.dequantized,
        signed_activations=len(running.signed),
        skip_layer_normalizations=running.skip_layer_normalizations,
        macs=None if costs is None else costs.macs,
        findings=findings(running, costs),
        expectation=speed,
        reason=reason,
    )


make_callable(__name__, explain)
