"""What torch exports comes back as a torch module: equal at sizes that were not traced, every weight trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo

from onnxcomp import worker
from onnxcomp.pytorch import GraphModule

#: net -> an input of another size than the traced one
INPUTS = {
    "unet": {"image": (1, 3, 22, 18)},
    "causal": {"x": (1, 7, 16)},
    "tied": {"ids": (3, 5)},
}

#: elements that the exporter adds: the scale and shift of the instances in a GroupNorm, a tied table's transposed copy
ADDED = {"unet": 4, "tied": 800}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    worker.isolated(zoo.export_all, list(INPUTS), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_a_net_comes_back_from_its_export(name, exports):
    net = zoo.randomised(name)
    graph = GraphModule(exports / f"{name}.onnx")
    generator = torch.Generator().manual_seed(0)
    make = {"ids": lambda shape: torch.randint(0, 50, shape, generator=generator)}
    feeds = {
        key: make.get(key, lambda shape: torch.randn(shape, generator=generator))(shape)
        for key, shape in INPUTS[name].items()
    }
    with torch.no_grad():
        wanted, found = net(*feeds.values()), graph(feeds)
    wanted = list(wanted.values()) if isinstance(wanted, dict) else [wanted]
    for want, have in zip(wanted, found.values(), strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    trained = sum(weight.numel() for weight in graph.weights.values() if weight.requires_grad)
    assert trained == sum(weight.numel() for weight in net.parameters()) + ADDED.get(name, 0)


@pytest.mark.slow
def test_both_learn_the_same(exports):
    """A step of the graph and one of the net it came from end in the same outputs."""
    net, graph = zoo.randomised("causal"), GraphModule(exports / "causal.onnx")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 9, 16)).astype(np.float32))
    for module, outputs in ((net, lambda: [net(x)]), (graph, lambda: list(graph(x=x).values()))):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        outputs()[0].square().mean().backward()
        optimizer.step()
    (after,) = graph(x=x).values()
    torch.testing.assert_close(after, net(x), rtol=0, atol=1e-5 * float(after.detach().abs().max()))
