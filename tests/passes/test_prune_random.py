"""Structured pruning of random graphs: a cut that holds, or an error that says why."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from random_graphs import RandomGraph

from onnxcomp.errors import GateError, NoEffectError
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import PruneStructured
from onnxcomp.pipeline import optimize
from onnxcomp.runtime import open_session


def wish(seed):
    """Options that differ from seed to seed."""
    rng = np.random.default_rng([seed, 1])
    key = str(rng.choice(["sparsity", "sparsity", "target_macs", "target_size"]))
    return PruneStructured(**{key: float(rng.choice([0.2, 0.5, 0.8])), "align": int(rng.choice([1, 1, 2, 3]))})


@pytest.mark.parametrize("block", range(8))
def test_a_random_graph_is_cut_or_refused(block, tmp_path):
    """The pass proves each cut against masking; what comes out checks, loads, is smaller, and comes out again.

    Most graphs can be cut: a pass that refuses them all would not do.
    """
    cut = 0
    for seed in range(10 * block, 10 * block + 10):
        path = builders.save(RandomGraph(seed).model(), tmp_path / "m.onnx")
        model = load(path)
        try:
            done = optimize(model, [wish(seed)])
        except NoEffectError:
            continue
        except GateError as error:
            if "cannot be reached" not in error.message:
                raise
            continue
        cut += 1
        made = write_to(done.model, tmp_path, "cut")
        onnx.checker.check_model(onnx.load(made), full_check=True)
        open_session(made)
        assert signature(load(made)) == signature(model), f"seed {seed}"
        assert done.passes[0].effect["removed_parameters"] > 0, f"seed {seed}"
        again = write_to(optimize(load(path), [wish(seed)]).model, tmp_path, "again")
        assert again.read_bytes() == made.read_bytes(), f"seed {seed}"
    assert cut >= 3
