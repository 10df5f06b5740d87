"""A pruning plan: written, applied, refused; and applied to the weights of a torch module."""

from __future__ import annotations

import json

import builders
import numpy as np
import prune_graphs
import pytest
from onnx import TensorProto

from onnxcomp.errors import DataError, OutputError, UnsupportedError
from onnxcomp.model import load, write_to
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.prune.plan import Cut, Plan, content_hash, cut_state
from onnxcomp.pipeline import optimize


@pytest.fixture
def model(tmp_path):
    return load(builders.save(prune_graphs.cut_graph("conv"), tmp_path / "m.onnx"))


@pytest.fixture
def made(model):
    """(result, its plan as JSON)."""
    done = optimize(model, [PruneStructured(sparsity=0.5, align=1)])
    return done, json.loads(json.dumps(done.passes[0].effect["plan"]))


def apply(model, tree, folder):
    path = folder / "plan.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return optimize(model, [PruneStructured(plan=str(path))])


def test_a_plan_says_what_stays_and_gives_the_same_model(model, made, tmp_path):
    done, tree = made
    assert tree["model"] == content_hash(model)
    cuts = {(cut["initializer"], cut["axis"]): cut for cut in tree["cuts"]}
    assert set(cuts) == {
        *((name, 0) for name in ("w1", "b1", "g", "b", "m", "v", "w2")),
        *(("w2", 1), ("w3", 1)),
    }
    assert cuts["w2", 1]["kept"] == cuts["w1", 0]["kept"]
    assert (cuts["w2", 1]["size"], len(cuts["w2", 1]["kept"])) == (8, 4)
    tree["cuts"][0].pop("size")  # a plan by hand need not say it
    again = apply(model, tree, tmp_path)
    paths = [write_to(m, tmp_path, name) for m, name in ((done.model, "a"), (again.model, "b"))]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert again.passes[0].effect["importance"] == "plan"


def test_a_plan_edited_by_whole_units_is_applied(model, made, tmp_path):
    """Another neuron may stay: all axes that hold it must say so."""
    tree = made[1]
    for cut in tree["cuts"]:
        if (cut["initializer"], cut["axis"]) in (("w2", 0), ("w3", 1)):
            cut["kept"] = [0, 5]
    done = apply(model, tree, tmp_path)
    assert [group["kept"] for group in done.passes[0].effect["groups"]] == [4, 2]
    weight = done.model.graph.initializers["w3"].const_value.numpy()
    assert np.array_equal(weight, model.graph.initializers["w3"].const_value.numpy()[:, [0, 5]])


def test_a_plan_for_another_model_names_both(model, made, tmp_path):
    other = load(builders.save(prune_graphs.cut_graph("residual"), tmp_path / "other.onnx"))
    with pytest.raises(DataError, match="another model") as error:
        apply(other, made[1], tmp_path)
    assert content_hash(model) in error.value.message
    assert content_hash(other) in error.value.message


def test_the_hash_is_of_the_content(model, tmp_path):
    """Weights beside the file or in it; but one number changed is another model."""
    (tmp_path / "beside").mkdir()
    beside = builders.externalize(prune_graphs.cut_graph("conv"), tmp_path / "beside")
    assert content_hash(load(beside)) == content_hash(model)
    changed = prune_graphs.cut_graph("conv")
    changed.graph.initializer[0].raw_data = b"\0" * len(changed.graph.initializer[0].raw_data)
    assert content_hash(load(builders.save(changed, tmp_path / "changed.onnx"))) != content_hash(model)


def edited(tree, change):
    change(tree)
    return tree


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tree: tree.pop("model"), "no model or no cuts"),
        (lambda tree: tree.update(cuts={}), "no model or no cuts"),
        (lambda tree: tree["cuts"][0].pop("initializer"), "names no initializer"),
        (lambda tree: tree["cuts"][0].update(axis=-1), "whole numbers"),
        (lambda tree: tree["cuts"][0].update(axis=True), "whole numbers"),
        (lambda tree: tree["cuts"][0].update(kept="all"), "not a list"),
        (lambda tree: tree["cuts"][0].update(kept=[0.5]), "not a list"),
        (lambda tree: tree["cuts"][0].update(kept=[]), "nothing of the axis would stay"),
        (lambda tree: tree["cuts"][0].update(kept=[2, 1]), "must ascend"),
        (lambda tree: tree["cuts"][0].update(kept=[0, 8]), "between 0 and 7"),
        (lambda tree: tree["cuts"].__setitem__(0, 3), "a cut is a table"),
        (lambda tree: tree["cuts"][0].update(initializer="w9"), "no such axis"),
        (lambda tree: tree["cuts"][0].update(axis=7), "no such axis"),
        (lambda tree: tree["cuts"][0].update(size=9), "no such axis"),
        (lambda tree: tree["cuts"].pop(), "do not go together"),
        (lambda tree: tree["cuts"][0].update(kept=[0]), "do not go together"),
        (
            lambda tree: tree["cuts"].append({"initializer": "w3", "axis": 0, "size": 5, "kept": [0]}),
            "do not go together",
        ),
    ],
)
def test_a_bad_plan_is_refused(change, text, model, made, tmp_path):
    with pytest.raises(DataError, match=text):
        apply(model, edited(made[1], change), tmp_path)


def test_a_plan_must_leave_something_of_each_group(tmp_path):
    """The first part of the Split would be empty, though something of each stored axis stays."""
    model = load(builders.save(prune_graphs.cut_graph("split and joined"), tmp_path / "m.onnx"))
    kept = [4, 5, 6, 7]
    cuts = [{"initializer": "w1", "axis": 1, "kept": kept}, {"initializer": "w2", "axis": 0, "kept": kept}]
    with pytest.raises(DataError, match="would vanish"):
        apply(model, {"model": content_hash(model), "cuts": cuts}, tmp_path)


def test_a_plan_that_is_no_json_or_no_file(model, tmp_path):
    with pytest.raises(DataError, match="not JSON"):
        apply(model, "{", tmp_path)
    with pytest.raises(DataError, match="not JSON"):
        apply(model, "[" * 100_000, tmp_path)
    with pytest.raises(DataError, match="no model or no cuts"):
        apply(model, "[]", tmp_path)
    with pytest.raises(OutputError):
        optimize(model, [PruneStructured(plan=str(tmp_path / "nowhere.json"))])


def test_a_state_dict_is_cut_by_the_parameter_map():
    """Turned where the export turned it; what is not cut is the caller's own array."""
    plan = Plan("hash", (Cut("a", 0, 4, (0, 2)), Cut("b", 1, 4, (1, 2)), Cut("b", 0, 3, (0, 1))))
    state = {
        "up": np.arange(12).reshape(3, 4), "down": np.arange(12).reshape(3, 4), "other": np.arange(3),
        "folded": np.arange(2),
    }  # fmt: skip
    where = {
        "up": {"initializer": "a", "transposed": True}, "down": {"initializer": "b", "transposed": False},
        "other": {"initializer": "c", "transposed": False}, "folded": None,
    }  # fmt: skip
    cut = cut_state(state, plan, where)
    assert cut["up"].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert cut["down"].tolist() == [[1, 2], [5, 6]]
    assert cut["other"] is state["other"]
    assert state["up"].shape == (3, 4)


def test_a_folded_weight_cannot_be_found_in_the_module():
    plan = Plan("hash", (Cut("a", 0, 4, (0, 2)),))
    with pytest.raises(UnsupportedError, match="no parameters of the module"):
        cut_state({"w": np.zeros(4)}, plan, {"w": None})


def test_quantized_and_float_types(tmp_path):
    """A plan of a model whose hash needs strings and integers too."""
    proto = prune_graphs.cut_graph("conv")
    proto.graph.initializer.add(name="words", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"])
    assert len(content_hash(load(builders.save(proto, tmp_path / "m.onnx")))) == 64
