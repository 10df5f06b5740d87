"""Providers other than the CPU, with a runtime that pretends to have them: strict, or an error that says why."""

import types

import builders
import numpy as np
import onnx
import pytest

from onnxcomp import replicas, runtime
from onnxcomp.errors import ProviderError
from onnxcomp.replicas import replica, start
from onnxcomp.runtime import SessionSettings, open_session

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def model(tmp_path):
    onnx.save(builders.mlp(), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


@pytest.fixture
def cuda(monkeypatch, model):
    """A build with CUDA; `make(...)` says which provider took which nodes, or what ORT raises."""
    given = {}

    def make(*, took=(CUDA,), raises=None):
        class Fake:
            def __init__(self, source, options, **more):
                given.update(options=options, **more)
                if raises is not None:
                    raise raises

            def get_providers(self):
                return given["providers"]

            def get_provider_graph_assignment_info(self):
                return [types.SimpleNamespace(ep_name=name) for name in took]

            def get_inputs(self):
                return []

            get_outputs = get_inputs

        monkeypatch.setattr(runtime.ort, "InferenceSession", Fake)
        monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: [CUDA, CPU])
        return model

    make.given = given
    return make


def test_each_provider_gets_its_own_options(cuda):
    options = {"cuda": {"use_tf32": "0"}, "openvino": {"device_type": "CPU"}}
    open_session(cuda(), provider="cuda", settings=SessionSettings(provider_options=options))
    assert cuda.given["providers"] == [CUDA, CPU]
    assert cuda.given["provider_options"] == [{"use_tf32": "0"}, {}]


def test_ort_may_not_fall_back_by_itself(cuda):
    open_session(cuda(), provider="cuda")
    assert cuda.given["enable_fallback"] == 0


def test_without_the_cpu_behind_it(cuda):
    alone = SessionSettings(config={"session.disable_cpu_ep_fallback": "1"})
    open_session(cuda(), provider="cuda", settings=alone)
    assert cuda.given["providers"] == [CUDA]
    assert len(cuda.given["provider_options"]) == 1


def test_a_provider_that_takes_no_node_is_an_error(cuda):
    with pytest.raises(ProviderError, match="took no node of the model, all run on CPUExecutionProvider"):
        open_session(cuda(took=(CPU, CPU)), provider="cuda")
    open_session(cuda(took=(CPU, CUDA)), provider="cuda")
    open_session(cuda(took=()), provider="cuda")  # a model without nodes


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1",
        "Failed to load library libonnxruntime_providers_cuda.so: CUDAExecutionProvider",
        "This session cannot use the graph capture feature as requested by the user",
        "This session contains graph nodes that are assigned to the default CPU EP, but fallback is disabled",
    ],
)
def test_trouble_with_the_device_is_not_the_models(cuda, text):
    with pytest.raises(ProviderError, match=f"{CUDA} cannot be used") as error:
        open_session(cuda(raises=RuntimeError(text)), provider="cuda")
    assert text[:20] in str(error.value)
    assert "doctor" in error.value.hint


def test_replicas_take_the_options_along(model, monkeypatch):
    settings = SessionSettings(provider_options={"cuda": {"use_tf32": "0"}})
    jobs = []
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(start.worker, "side_by_side", lambda calls, **_: jobs.extend(c.args[0] for c in calls) or [])
    replicas.run(model, 2, feeds=[{"x": np.ones((1, 4), np.float32)}], provider="cuda", settings=settings)
    assert [job.providers for job in jobs] == [(CUDA, CPU)] * 2
    assert [job.provider_options for job in jobs] == [({"use_tf32": "0"}, {})] * 2


def test_a_replica_never_falls_back(model, monkeypatch):
    seen = {}
    monkeypatch.setattr(replica.ort, "InferenceSession", lambda *args, **more: seen.update(more) or FakeOrt())
    job = types.SimpleNamespace(
        model=model, providers=(CUDA, CPU), provider_options=({"use_tf32": "0"}, {}), settings=SessionSettings()
    )
    with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider"):
        replica._Session(job)
    assert seen == {
        "providers": [CUDA, CPU],
        "provider_options": [{"use_tf32": "0"}, {}],
        "enable_fallback": 0,
    }


class FakeOrt:
    def get_providers(self):
        return [CPU]
