"""Sessions use what was asked for, take only what was scanned, and translate what ORT says into typed errors."""

from __future__ import annotations

import os
import subprocess
import sys

import builders
import numpy as np
import pytest
import worker_jobs as jobs
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import runtime, worker
from onnxcomp.errors import (
    DataError,
    InvalidModelError,
    LimitError,
    OutputError,
    ProviderError,
    UnsafeModelError,
    UnsupportedError,
    UsageError,
)
from onnxcomp.runtime import CONFIG_KEYS, SessionSettings, open_session

CPU = "CPUExecutionProvider"


def one_node(op, *, dtype=TensorProto.FLOAT, domain="", opset=17):
    proto = builders.model(
        [helper.make_node(op, ["x"], ["y"], domain=domain)],
        [builders.value("x", 2, dtype=dtype)],
        [builders.value("y", 2, dtype=dtype)],
        opset=opset,
    )
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


@pytest.fixture
def save(tmp_path):
    return lambda proto: builders.save(proto, tmp_path / "model.onnx")


@pytest.fixture
def mlp(save):
    return open_session(save(builders.mlp()))


@pytest.fixture
def no_ort(monkeypatch):
    """ORT must not even see the model."""

    def refuse(*_args, **_kwargs):
        pytest.fail("ORT was given the model")

    monkeypatch.setattr(runtime.ort, "InferenceSession", refuse)


@pytest.fixture
def fake_ort(monkeypatch):
    """Stands in for ORT's session: keeps its arguments, and uses the CPU whatever it was asked."""
    given = {}

    class Fake:
        def __init__(self, source, options, providers, provider_options, enable_fallback):
            given.update(source=source, options=options, providers=providers, fallback=enable_fallback)

        def get_providers(self):
            return [CPU]

        def get_inputs(self):
            return []

        get_outputs = get_inputs

    monkeypatch.setattr(runtime.ort, "InferenceSession", Fake)
    return given


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these distributions provide the package onnxruntime."""

    def pretend(*names):
        monkeypatch.setattr(runtime.metadata, "packages_distributions", lambda: {"onnxruntime": list(names)})
        monkeypatch.setattr(runtime.metadata, "version", lambda name: {"onnxruntime": "1.32.0"}.get(name, "1.31.1"))
        runtime.ort_distributions.cache_clear()

    yield pretend
    runtime.ort_distributions.cache_clear()


def test_a_session_runs_and_names_its_outputs(mlp):
    x = builders.samples(3, 16)
    proto = builders.mlp()
    w1, b1, w2, b2 = (numpy_helper.to_array(t) for t in proto.graph.initializer)
    found = mlp.run({"x": x})
    assert list(found) == ["y"]
    np.testing.assert_allclose(found["y"], np.maximum(x @ w1.T + b1, 0) @ w2.T + b2, atol=1e-5)


def test_the_cpu_is_the_only_provider_of_a_cpu_session(mlp):
    assert mlp.provider == "cpu"
    assert mlp.ort.get_providers() == [CPU]


def test_a_batch_after_the_other(mlp):
    feeds = [{"x": builders.samples(n, 16)} for n in (1, 2)]
    assert [found["y"].shape for found in runtime.run_batches(mlp, feeds)] == [(1, 10), (2, 10)]


def test_the_signature_leaves_out_overridable_initializers(save):
    (spec,) = open_session(save(builders.as_old(builders.mlp()))).signature.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("x", "float32", ("batch", 16))


def test_the_signature_speaks_numpy(save):
    session = open_session(save(builders.stateful()))
    assert [(s.dtype, s.shape) for s in session.signature.inputs] == [
        ("float32", (1, 4)),
        ("float32", (2, 1, 4)),
        ("float32", ()),
    ]
    (ids,) = open_session(save(builders.encoder())).signature.inputs
    assert (ids.dtype, ids.shape) == ("int64", ("batch", "seq"))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_the_build_lacks_is_an_error_that_names_what_is_there(save, monkeypatch, provider):
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: ["OtherExecutionProvider", CPU])
    with pytest.raises(ProviderError, match=runtime.PROVIDERS[provider]) as error:
        open_session(save(builders.mlp()), provider=provider)
    assert "OtherExecutionProvider, CPUExecutionProvider" in error.value.hint
    assert "onnxruntime" in error.value.where


def test_a_misspelt_provider_gets_the_nearest(save):
    with pytest.raises(UsageError, match="coda") as error:
        open_session(save(builders.mlp()), provider="coda")
    assert error.value.hint == "did you mean 'cuda'?"


def test_a_silent_fallback_to_the_cpu_is_an_error(save, monkeypatch, fake_ort):
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider") as error:
        open_session(save(builders.mlp()), provider="cuda")
    assert "doctor" in error.value.hint
    assert fake_ort["providers"] == ["CUDAExecutionProvider", CPU]


def test_available_providers_are_short_names(monkeypatch):
    monkeypatch.setattr(
        runtime.ort, "get_available_providers", lambda: [CPU, "OddExecutionProvider", "CUDAExecutionProvider"]
    )
    assert runtime.available_providers() == ("cpu", "cuda")


@pytest.mark.parametrize(
    ("settings", "text", "hint"),
    [
        (
            {"config": {"session.disable_prepackng": "1"}},
            "disable_prepackng",
            "did you mean 'session.disable_prepacking'?",
        ),
        ({"config": {"nonsense": "1"}}, "nonsense", "see onnxcomp.runtime.CONFIG_KEYS"),
        ({"optimization": "extendid"}, "extendid", "did you mean 'extended'?"),
        ({"optimization": "99"}, "99", "one of disable, basic, extended, all"),
        ({"threads": -1}, "negative", None),
    ],
)
def test_settings_that_ort_would_take_without_a_word_are_refused(settings, text, hint):
    with pytest.raises(UsageError, match=text) as error:
        SessionSettings(**settings)
    assert error.value.hint == hint


def test_settings_reach_ort(save, fake_ort):
    settings = SessionSettings(
        threads=3,
        optimization="basic",
        config={"session.set_denormal_as_zero": "1"},
        disabled_optimizers=("ConstantFolding", "MatMulAddFusion"),
    )
    open_session(save(builders.mlp()), settings=settings)
    options = fake_ort["options"]
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == runtime.ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    entry = options.get_session_config_entry
    assert entry("session.set_denormal_as_zero") == "1"
    assert entry("optimization.disable_specified_optimizers") == "ConstantFolding;MatMulAddFusion"


def test_folding_is_capped_unless_asked_otherwise(save, fake_ort):
    key = "optimization.constant_folding_max_output_size_in_bytes"
    assert key in CONFIG_KEYS
    for config, wanted in (({}, str(64 << 20)), ({key: "1000"}, "1000")):
        open_session(save(builders.mlp()), settings=SessionSettings(config=config))
        assert fake_ort["options"].get_session_config_entry(key) == wanted


def test_settings_that_contradict_each_other_are_a_usage_error(save):
    settings = SessionSettings(config={"session.disable_cpu_ep_fallback": "1"})
    with pytest.raises(UsageError, match="Conflicting session configuration"):
        open_session(save(builders.mlp()), settings=settings)


def test_an_unscanned_model_never_reaches_ort(save, no_ort):
    with pytest.raises(UnsafeModelError, match="expanded"):
        open_session(save(builders.function_bomb()))


def test_external_data_outside_never_reaches_ort(tmp_path, no_ort):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = builders.externalize(builders.mlp(), folder)
    (folder / "weights.data").rename(tmp_path / "secret")
    os.link(tmp_path / "secret", folder / "weights.data")
    with pytest.raises(UnsafeModelError, match="link"):
        open_session(path)


def test_garbage_and_missing_files_never_reach_ort(tmp_path, no_ort):
    (tmp_path / "garbage.onnx").write_bytes(b"nonsense" * 50)
    with pytest.raises(InvalidModelError):
        open_session(tmp_path / "garbage.onnx")
    with pytest.raises(OutputError, match="no such file"):
        open_session(tmp_path / "missing.onnx")


def test_a_normal_file_is_opened_by_path_and_others_are_normalized_first(save, fake_ort):
    path = save(builders.mlp())
    open_session(path)
    assert fake_ort["source"] == str(path)
    open_session(save(builders.layer_norm_empty_bias()))
    assert b"LayerNormalization" in fake_ort["source"]
    assert fake_ort["options"].get_session_config_entry("session.model_external_initializers_file_folder_path") == str(
        path.parent
    )


def test_a_normalized_model_finds_its_external_data_from_any_folder(tmp_path):
    proto = builders.layer_norm_empty_bias()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.arange(8, dtype=np.float32), "g"))
    path = builders.externalize(proto, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    x = builders.samples(2, 8)
    y = worker.isolated(jobs.open_and_run, path, {"x": x}, elsewhere)["y"]
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * np.arange(8)
    np.testing.assert_allclose(y, want, atol=1e-4)


@pytest.mark.parametrize(
    ("proto", "error", "text"),
    [
        (one_node("Foo", domain="acme"), UnsupportedError, "operator acme:Foo is not in"),
        (one_node("Cosh", dtype=TensorProto.DOUBLE), UnsupportedError, "no kernel: .*Cosh"),
        (one_node("Relu", opset=99), UnsupportedError, "Opset 99 is under development"),
        (one_node("Relu", dtype=TensorProto.STRING), InvalidModelError, "cannot load the model: .*Type Error"),
        (one_node("Foo"), InvalidModelError, "No Op registered for Foo"),
    ],
)
def test_what_ort_cannot_load_is_typed(save, proto, error, text):
    path = save(proto)
    with pytest.raises(error, match=text) as caught:
        open_session(path)
    assert type(caught.value) is error
    assert caught.value.where == str(path)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)


def test_an_ir_version_from_the_future_is_unsupported(save):
    proto = builders.mlp()
    proto.ir_version = 99
    with pytest.raises(UnsupportedError, match="Unsupported model IR version: 99") as error:
        open_session(save(proto))
    assert "upgrade" in error.value.hint


X = builders.samples(2, 16)


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"X": X}, "missing"),
        ({}, "missing"),
        ({"x": X, "z": X}, "Invalid input name: z"),
        ({"x": X.astype(np.float64)}, r"Actual: \(tensor\(double\)\)"),
        ({"x": X[0]}, "Invalid rank for input: x"),
        ({"x": X[:, :3]}, "Got: 3 Expected: 16"),
    ],
    ids=["name", "none", "extra", "dtype", "rank", "size"],
)
def test_feeds_that_do_not_fit_are_a_data_error(mlp, feeds, text):
    with pytest.raises(DataError, match=text) as error:
        mlp.run(feeds)
    assert error.value.where == str(mlp.path)


def test_values_outside_the_model_s_domain_are_a_data_error(save):
    session = open_session(save(builders.encoder()))
    with pytest.raises(DataError, match="out of data bounds, idx=1000"):
        session.run({"ids": np.full((1, 3), 1000)})


def test_an_output_beyond_memory_is_a_limit(save):
    proto = builders.model(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        [builders.value("x", 1), builders.value("shape", 1, dtype=TensorProto.INT64)],
        [builders.value("y", "n")],
    )
    session = open_session(save(proto))
    with pytest.raises(LimitError, match="out of memory"):
        session.run({"x": np.ones(1, np.float32), "shape": np.array([1 << 44])})


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_memory_is_a_limit_at_load_too(raised):
    assert type(runtime.translate(raised, None, running=False)) is LimitError


def test_a_flood_of_text_is_cut():
    flood = RuntimeError("/onnxruntime_src/a.cc:1 f(" * 100_000)
    assert len(str(runtime.translate(flood, None, running=False))) < 1000


def test_check_loads_takes_what_loads(save):
    for proto in (builders.mlp(), builders.stateful(), builders.encoder(), builders.branch()):
        runtime.check_loads(save(proto))


def test_check_loads_runs_where_sizes_are_known(save, monkeypatch):
    ran = []
    monkeypatch.setattr(runtime.Session, "run", lambda self, feeds: ran.append({n: a.shape for n, a in feeds.items()}))
    runtime.check_loads(save(builders.mlp()))
    runtime.check_loads(save(builders.stateful()))
    runtime.check_loads(save(builders.encoder()))
    assert ran == [{"x": (1, 16)}, {"x": (1, 4), "state": (2, 1, 4), "rate": ()}]


def test_check_loads_forgives_zeros_that_the_model_refuses(save):
    proto = builders.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [builders.value("x", 6), builders.value("shape", 2, dtype=TensorProto.INT64)],
        [builders.value("y", "a", "b")],
    )
    session = open_session(save(proto))
    with pytest.raises(DataError):
        session.run({"x": np.zeros(6, np.float32), "shape": np.zeros(2, np.int64)})
    runtime.check_loads(session.path)


def test_check_loads_refuses_what_does_not_load(save):
    with pytest.raises(UnsupportedError):
        runtime.check_loads(save(one_node("Cosh", dtype=TensorProto.DOUBLE)))


def test_one_distribution_is_installed_here():
    (found,) = runtime.ort_distributions()
    assert found.startswith("onnxruntime")
    assert found.endswith(runtime.ort.__version__)


def test_both_distributions_are_seen(installed):
    installed("onnxruntime", "onnxruntime-gpu", "onnxruntime")
    assert runtime.ort_distributions() == ("onnxruntime 1.32.0", "onnxruntime-gpu 1.31.1")


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [
        ({"avx", "avx2"}, True),
        ({"avx", "avx2", "avx512f"}, True),
        ({"avx", "avx512_vnni"}, False),
        ({"avx", "avx_vnni"}, False),
        ({"asimddp"}, False),
        (set(), False),
    ],
)
def test_int8_saturates_on_x86_without_vnni_only(monkeypatch, flags, saturates):
    monkeypatch.setattr(runtime, "cpu_features", lambda: frozenset(flags))
    assert runtime.saturates_int8() is saturates


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"), "ORT_LOAD_CONFIG_FROM_MODEL" in os.environ)
sys.meta_path.insert(0, Watch())
import onnxcomp.runtime
"""


@pytest.mark.parametrize(("asked", "wanted"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_the_environment_is_set_before_ort_is_imported(asked, wanted):
    env = {**os.environ, "ORT_LOAD_CONFIG_FROM_MODEL": "1"}
    env.pop("ORT_DISABLE_TELEMETRY", None)
    if asked is not None:
        env["ORT_DISABLE_TELEMETRY"] = asked
    done = subprocess.run([sys.executable, "-c", WATCH], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{wanted} False\n"


def test_without_onnxruntime_the_error_says_what_to_install():
    code = "import sys; sys.modules['onnxruntime'] = None; import onnxcomp.runtime"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UnsupportedError: onnxruntime cannot be imported" in done.stderr
