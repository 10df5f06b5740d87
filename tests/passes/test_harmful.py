"""Nodes that spoil an output in int8 are found by groups, left in float and named."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import real_data

from onnxcomp import runtime
from onnxcomp.errors import UsageError
from onnxcomp.passes import QuantizeStatic
from onnxcomp.passes.quantize.damage import Emulation
from onnxcomp.pipeline import optimize_file


class Additive(Emulation):
    """One sample whose output is off by the sum of what the rounded targets cost."""

    def __init__(self, costs):
        self.costs, self.runs = np.array(costs), 0
        self._count = len(costs)

    def outputs(self, batch, rounded=()):
        self.runs += 1
        return {"y": 1 + np.array([[self.costs[list(rounded)].sum()]])}


class OneSample:
    samples = 1

    def __iter__(self):
        yield self


def test_harmless_nodes_take_one_run():
    emulation = Additive([0.01] * 10)
    assert emulation.harmful(OneSample(), 0.25) == {}
    assert emulation.runs == 2  # the float model, and all at once


def test_harmful_nodes_are_found_in_few_runs():
    costs = [0.0] * 100
    costs[17], costs[18], costs[90] = 0.4, 0.3, 0.5
    emulation = Additive(costs)
    assert emulation.harmful(OneSample(), 0.25) == pytest.approx({17: 0.4, 18: 0.3, 90: 0.5})
    assert emulation.runs < 40


def sqnr(reference, candidate):
    return 10 * np.log10(np.sum(reference**2) / np.sum((reference - candidate) ** 2))


def test_a_detector_keeps_its_first_layers_and_its_outputs(shared, tmp_path):
    source = shared / "models" / "yolox_nano.onnx"
    photos = real_data.samples("yolox_nano", shared)[0]["images"]
    quality, skipped = {}, {}
    for limit in (None, 0.25):
        path = tmp_path / f"{limit}.onnx"
        record = optimize_file(
            source, path, [QuantizeStatic(max_node_error=limit)], data={"images": photos[::2]}, measure=False
        )
        sessions = [runtime.open_session(p) for p in (source, path)]
        runs = [np.concatenate([s.run({"images": photos[i : i + 1]})["output"] for i in (1, 3, 5)]) for s in sessions]
        quality[limit] = sqnr(*runs)
        skipped[limit] = {s["node"]: s["reason"] for s in record.passes[0].effect["skipped"]}
    assert quality[0.25] > quality[None] + 5
    added = {node: why for node, why in skipped[0.25].items() if node not in skipped[None]}
    assert 1 <= len(added) <= 4
    assert all("max_node_error" in why for why in added.values())


@pytest.mark.parametrize("limit", [-0.1, float("nan")])
def test_a_limit_that_is_none(limit, tmp_path):
    source = builders.save(builders.cnn(), tmp_path / "m.onnx")
    data = {"image": builders.samples(8, 3, 8, 8)}
    with pytest.raises(UsageError, match="max_node_error"):
        optimize_file(source, tmp_path / "o.onnx", [QuantizeStatic(max_node_error=limit)], data=data)
    assert not (tmp_path / "o.onnx").exists()
