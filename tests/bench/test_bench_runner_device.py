"""Runs on a GPU, with a session that only writes down what it is asked: what is copied, where, and when."""

import types

import numpy as np
import pytest

from onnxcomp import runtime
from onnxcomp.bench import bench, runner, scenario
from onnxcomp.errors import ProviderError, UsageError
from onnxcomp.model import InputSpec, Signature
from onnxcomp.runtime import Session, SessionSettings


class FakeValue:
    """An OrtValue on a device."""

    def __init__(self, log, name, device="cuda"):
        self.log, self.name, self.device = log, name, device

    def update_inplace(self, array):
        self.log.append(("update", self.name, float(np.ravel(array)[0])))


class FakeBinding:
    def __init__(self, log):
        self.log = log

    def bind_ortvalue_input(self, name, value):
        value.name = name
        self.log.append(("input", name, value.device))

    def bind_output(self, name, device):
        self.log.append(("output", name, device))

    def bind_ortvalue_output(self, name, value):
        self.log.append(("output stays", name, value.name))

    def synchronize_inputs(self):
        self.log.append("inputs there")

    def synchronize_outputs(self):
        self.log.append("outputs there")

    def get_outputs(self):
        return [FakeValue(self.log, "out0"), FakeValue(self.log, "out1")]

    def copy_outputs_to_cpu(self):
        self.log.append("copied back")
        return [np.zeros(1)]


class FakeOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        self.entries[key] = value


@pytest.fixture
def cuda(monkeypatch):
    """`make(graph)` -> (session, log)."""
    log = []

    def ortvalue_from_numpy(array, device, number):
        log.append(("copy", device, number))
        return FakeValue(log, "?", device)

    monkeypatch.setattr(
        runner,
        "ort",
        types.SimpleNamespace(
            OrtValue=types.SimpleNamespace(ortvalue_from_numpy=ortvalue_from_numpy),
            IOBinding=FakeBinding,
        ),
    )

    monkeypatch.setattr(runtime.ort, "RunOptions", FakeOptions)

    def make(*, graph=False, provider="cuda"):
        options = {"CUDAExecutionProvider": {"enable_cuda_graph": str(int(graph))}}
        ort = types.SimpleNamespace(
            io_binding=lambda: FakeBinding(log),
            run=lambda names, feed, *options: (
                log.append(("run", names, sorted(feed), *(o.entries for o in options))) or ["y", "z"]
            ),
            run_with_iobinding=lambda binding, options=None: log.append(
                ("run", options.entries if options is not None else "bound")
            ),
            get_provider_options=lambda: options,
        )
        inputs = (InputSpec("x", "float32", ("N",)), InputSpec("s", "string", ("N",)))
        outputs = (InputSpec("y", "float32", ("N",)), InputSpec("z", "sequence", None))
        return Session(ort, None, Signature(inputs, outputs), provider), log

    return make


def feed(value, size=2):
    return {"x": np.full(size, value, np.float32), "s": np.array([value] * size, object)}


def test_inputs_are_copied_once_and_outputs_waited_for(cuda):
    session, log = cuda()
    calls = runner.runs(session, [feed(1), feed(2)])
    assert [entry for entry in log if entry[0] == "copy"] == [("copy", "cuda", 0), ("copy", "cpu", 0)] * 2
    assert ("output", "y", "cuda") in log
    assert ("output", "z", "cpu") in log  # no device holds a list of dictionaries
    assert log[-1] == "inputs there"
    for _ in range(2):
        log.clear()
        calls[1]()
        assert log == [("run", "bound"), "outputs there"]


@pytest.mark.parametrize(("provider", "device"), [("tensorrt", "cuda"), ("openvino", "cpu")])
def test_other_providers_are_bound_where_they_run(cuda, provider, device):
    session, log = cuda(provider=provider, graph=True)  # the graph is CUDA's
    runner.runs(session, [feed(1)])
    assert log[0] == ("copy", device, 0)
    assert ("output", "y", device) in log


def test_transfers_count_where_a_server_pays_them(cuda):
    session, log = cuda()
    runner.runs(session, [feed(1)], bind=False)[0]()
    assert log == [("run", ["y", "z"], ["s", "x"])]


def test_a_graph_is_recorded_on_addresses_that_stay(cuda):
    session, log = cuda(graph=True)
    calls = runner.runs(session, [feed(1), feed(2), feed(3)])
    trial = log.index(("run", {"gpu_graph_id": "-1"}))
    assert log[trial + 1] == "outputs there"
    assert log[trial + 2 : trial + 4] == [("output stays", "y", "out0"), ("output stays", "z", "out1")]
    assert log[trial + 4 :] == [("run", "bound")] * 2 + [
        "outputs there"
    ]  # recorded and replayed before anything counts
    assert len(calls) == 3
    log.clear()
    calls[2]()
    assert log == [("run", "bound"), "outputs there"]


def test_a_graph_with_transfers_writes_each_feed_to_its_address(cuda):
    session, log = cuda(graph=True)
    calls = runner.runs(session, [feed(1), feed(2)], bind=False)
    log.clear()
    calls[1]()
    calls[0]()
    updates = [entry for entry in log if entry[:2] == ("update", "x")]
    assert updates == [("update", "x", 2.0), ("update", "x", 1.0)]
    assert log[-2:] == [("run", "bound"), "copied back"]


def test_a_run_without_binding_records_nothing(cuda):
    """Addresses of what `Session.run` copies to the device do not stay: feeds are tried before anything is bound."""
    session, log = cuda(graph=True)
    assert session.run(feed(1)) == {"y": "y", "z": "z"}
    assert log == [("run", None, ["s", "x"], {"gpu_graph_id": "-1"})]
    session, log = cuda()
    log.clear()
    session.run(feed(1))
    assert log == [("run", None, ["s", "x"])]


def test_a_graph_of_several_shapes_is_refused(cuda):
    session, _ = cuda(graph=True)
    with pytest.raises(UsageError, match="replays one shape"):
        runner.runs(session, [feed(1), feed(1, size=3)])


def test_a_graph_is_asked_for_where_it_can_be_had(tmp_path):
    import bench_models

    path = bench_models.linear(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="for the provider 'cuda'"):
        bench(path, cuda_graph=True)
    with pytest.raises(UsageError, match="scenarios 'latency' and 'placement'"):
        bench(path, provider="cuda", scenario="cold", cuda_graph=True)
    with pytest.raises(ProviderError, match="no CUDAExecutionProvider"):
        bench(path, provider="cuda", cuda_graph=True)


def test_the_option_reaches_the_session():
    base = SessionSettings(provider_options={"cuda": {"use_tf32": "0"}, "openvino": {}})
    found = scenario._with_cuda_graph(base, "latency", ["cpu", "cuda"])
    assert found.provider_options == {"cuda": {"use_tf32": "0", "enable_cuda_graph": "1"}, "openvino": {}}
    assert base.provider_options["cuda"] == {"use_tf32": "0"}
