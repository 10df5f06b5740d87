"""The node that int8 ruins stands first, wherever it stands in the model."""

from __future__ import annotations

import builders
import graphs
import numpy as np
import pytest

from onnxcomp import runtime
from onnxcomp.errors import DataError, NoEffectError
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize_file
from onnxcomp.sensitivity import rank


@pytest.fixture
def saved(tmp_path):
    return lambda proto: builders.save(proto, tmp_path / "m.onnx")


@pytest.mark.parametrize("ruined", graphs.NODES)
@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic(), QuantizeDynamic(per_channel=False)])
def test_the_ruined_node_is_found(saved, ruined, step):
    ranking = rank(saved(graphs.chain(ruined)), step, {"x": graphs.rows()})
    worst, *others = ranking.nodes
    assert (worst.target.node, worst.target.module) == (ruined, f"body.{ruined}")
    assert worst.error > 0.5
    assert len(others) >= 2
    assert all(n.error < 0.05 for n in others)
    assert ranking.samples == 64


@pytest.mark.parametrize("ruined", graphs.NODES)
@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic(op_types=("MatMul",))])
def test_the_ruined_node_is_found_in_a_branch(saved, ruined, step):
    worst, *others = rank(saved(graphs.in_a_branch(ruined)), step, {"x": graphs.rows()}).nodes
    assert worst.target.node == ruined
    assert worst.target.nested
    assert worst.error > 0.5
    assert [n.error < 0.05 for n in others] == [True, True]


def test_a_node_without_weights_is_found(saved):
    ranking = rank(saved(graphs.shifted()), QuantizeStatic(op_types=("Add", "MatMul")), {"x": graphs.rows()})
    assert ranking.nodes[0].target.node == "lift"
    assert ranking.nodes[0].error > 0.3
    assert ranking.nodes[1].error < 0.05
    assert ranking.nodes[0].target.weight_bytes == 0


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic(op_types=("MatMul",))])
def test_damage_is_that_of_the_quantized_model(saved, tmp_path, step):
    """Emulated alone, and really quantized alone: the same relative error, within a third."""
    path, x = saved(graphs.chain()), graphs.rows(400)
    alone = {n.target.node: n.error for n in rank(path, step, {"x": x}, samples=400).nodes}
    for node in graphs.NODES:
        others = tuple(name for name in graphs.NODES if name != node)
        cls = type(step)
        made = cls(op_types=step.op_types, exclude=others)
        optimize_file(path, tmp_path / "q.onnx", [made], data={"x": x}, force=True, allow_larger=True)
        reference, candidate = (
            runtime.open_session(p).run({"x": x[:32]})["y"].astype(np.float64) for p in (path, tmp_path / "q.onnx")
        )
        error = np.linalg.norm(reference - candidate) / np.linalg.norm(reference)
        assert alone[node] == pytest.approx(error, rel=0.34)


def test_a_convolution_net(saved):
    ranking = rank(saved(builders.cnn()), QuantizeStatic(), {"image": builders.samples(80, 3, 8, 8)})
    assert {"conv1", "conv2", "head"} <= {n.target.node for n in ranking.nodes}
    assert all(0 < n.error < 0.1 for n in ranking.nodes)
    assert all(n.flipped is not None for n in ranking.nodes)


def test_a_table_and_float_outputs(saved):
    """An embedding counts; what only looks up integers does not."""
    ranking = rank(saved(builders.encoder()), QuantizeDynamic(), _ids(builders.encoder()))
    assert "Gather" in {n.target.op for n in ranking.nodes}
    assert all(np.isfinite(n.error) for n in ranking.nodes)


def test_what_the_user_excluded_is_not_ranked(saved):
    ranking = rank(saved(graphs.chain("second")), QuantizeDynamic(exclude=("body.second",)), {"x": graphs.rows()})
    assert sorted(n.target.node for n in ranking.nodes) == ["first", "third"]


def test_json_has_no_infinity(saved):
    ranking = rank(saved(graphs.chain("second")), QuantizeDynamic(), {"x": graphs.rows()})
    assert ranking.to_json(1) == [
        {
            "node": "second",
            "module": "body.second",
            "op": "MatMul",
            "damage": ranking.nodes[0].error,
            "flipped": ranking.nodes[0].flipped,
            "weight_bytes": graphs.WIDTH**2 * 4,
            "nested": False,
        }
    ]


def test_noise_is_refused(saved):
    with pytest.raises(DataError, match="real data"):
        rank(saved(graphs.chain()), QuantizeDynamic(), "random:8")


def test_nothing_to_rank(saved):
    with pytest.raises(NoEffectError, match="no node"):
        rank(saved(graphs.chain()), QuantizeDynamic(op_types=("LSTM",)), {"x": graphs.rows()})


def _ids(proto):
    name = proto.graph.input[0].name
    shape = [d.dim_value or 5 for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    return {name: np.random.default_rng(0).integers(0, 8, (40, *shape))}
