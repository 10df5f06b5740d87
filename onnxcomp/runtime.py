"""ONNX Runtime sessions that do what they were asked, or say why not.

ORT itself accepts misspelt configuration keys, and falls back to the CPU where a provider is
missing. Here both are errors. A file is scanned before ORT sees it (`onnxcomp.model`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import model as models
from onnxcomp.errors import (
    DataError,
    InvalidModelError,
    LimitError,
    OnnxcompError,
    ProviderError,
    UnsupportedError,
    UsageError,
    nearest,
)
from onnxcomp.model import InputSpec, Signature
from onnxcomp.settings import CONFIG_KEYS, OPTIMIZERS, SessionSettings, session_options
from onnxcomp.settings.host import cpu_flags
from onnxcomp.settings.libraries import missing, preload

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as _state
except ImportError as error:
    raise UnsupportedError(
        f"onnxruntime cannot be imported: {error}",
        hint="pip install 'onnxcomp[cpu]', or 'onnxcomp[gpu]' for CUDA; never both",
    ) from error

__all__ = [
    "ASSIGNMENT_KEY",
    "CONFIG_KEYS",
    "OPTIMIZERS",
    "PROVIDERS",
    "Output",
    "Session",
    "SessionSettings",
    "available_providers",
    "check_loads",
    "cpu_features",
    "cpu_flags",
    "frugal",
    "is_large",
    "open_session",
    "optimized",
    "ort_distributions",
    "ort_provider_options",
    "ort_providers",
    "profiled",
    "run_batches",
    "saturates_int8",
    "session_options",
    "translate",
    "without_graph",
]

#: an array, or a list of these, or a dict (ZipMap): what one output of a session can be
Output = Any

#: makes ORT keep which provider took which node
ASSIGNMENT_KEY = "session.record_ep_graph_assignment_info"

_ALONE = "session.disable_cpu_ep_fallback"

#: our short names of execution providers
PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


@dataclasses.dataclass(frozen=True)
class Session:
    """An ORT session together with what it was made from.

    Attributes:
        ort: the `onnxruntime.InferenceSession`.
        path: the model file.
        signature: the inputs and outputs, without overridable initializers.
        provider: short name of the first provider in use.
    """

    ort: ort.InferenceSession
    path: Path
    signature: Signature
    provider: str

    @property
    def cuda_graph(self) -> bool:
        """Whether the session records its kernels once and replays them (the option `enable_cuda_graph`)."""
        if self.provider != "cuda":
            return False
        return str(self.ort.get_provider_options().get(PROVIDERS["cuda"], {}).get("enable_cuda_graph", "0")) == "1"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Output]:
        """Run once: {output name: array}; without a CUDA graph, which needs bound addresses.

        Raises DataError when ORT refuses the feeds.
        """
        try:
            values = self.ort.run(None, dict(feeds), *([without_graph()] if self.cuda_graph else []))
        except Exception as error:
            raise translate(error, self.path, running=True) from error
        return {spec.name: v for spec, v in zip(self.signature.outputs, values, strict=True)}


def without_graph() -> ort.RunOptions:
    """Options of a run that neither records nor replays a CUDA graph."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def open_session(
    path: str | os.PathLike[str],
    *,
    provider: str = "cpu",
    settings: SessionSettings | None = None,
) -> Session:
    """Create a session on exactly this provider.

    Args:
        path: an `.onnx` file; it is scanned first, as `onnxcomp.model.load` does.
        provider: a short name of `PROVIDERS`. The CPU stands behind it for the nodes that it
            cannot take, but a provider that takes none at all is an error.
        settings: see `SessionSettings`.

    Raises InvalidModelError, UnsafeModelError, UnsupportedError (an operator this build does not
    have), ProviderError (naming what is there), OutputError.
    """
    settings = settings or SessionSettings()
    return _open(Path(path), provider, session_options(settings), settings)


def profiled(
    path: str | os.PathLike[str], folder: Path, *, provider: str = "cpu", settings: SessionSettings | None = None
) -> Session:
    """As `open_session`, with ORT's profiler on: `ort.end_profiling()` writes a file into the folder and names it."""
    settings = settings or SessionSettings()
    options = session_options(settings)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    return _open(Path(path), provider, options, settings)


def optimized(
    path: str | os.PathLike[str], folder: Path, *, settings: SessionSettings | None = None, packed: bool = False
) -> Path:
    """Write the graph that ORT runs on this host's CPU, after its own optimizer, into a private folder.

    It holds operators of this host's kernels and must not be shipped. With `packed`, the weights as the
    kernels want them stand in its data file beside the plain ones, so that sessions can map and share
    them. Raises what `open_session` raises.
    """
    target = folder / "optimized.onnx"
    settings = settings or SessionSettings()
    options = session_options(settings)
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    if packed:
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    _open(Path(path), "cpu", options, settings)
    return target


#: what a message says that is about a device or its libraries, not about the model
_DEVICE_TROUBLE = re.compile(
    r"execution ?provider|CPU EP|provider option|CUDA|cuDNN|cuBLAS|TensorRT|OpenVINO|graph capture", re.IGNORECASE
)


def _open(file: Path, provider: str, options: ort.SessionOptions, settings: SessionSettings) -> Session:
    proto = models.read_proto(file)
    source: str | bytes = str(file)
    if not models.is_normal(proto):
        models.normalize(proto)
        source = proto.SerializeToString()
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(file.absolute().parent)
        )
    del proto
    wanted = ort_providers(provider, settings)
    if provider != "cpu":
        if settings.config.get(ASSIGNMENT_KEY) != "1":  # ORT warns of what is set twice
            options.add_session_config_entry(ASSIGNMENT_KEY, "1")
        preload(wanted)
    try:
        # without ORT's own way out: it prints, opens on the CPU, and does so again where a run fails
        session = ort.InferenceSession(
            source,
            options,
            providers=wanted,
            provider_options=ort_provider_options(wanted, settings),
            enable_fallback=0,
        )
    except Exception as error:
        if provider != "cpu" and _DEVICE_TROUBLE.search(str(error)):
            raise ProviderError(
                f"{wanted[0]} cannot be used: {_message(error)}", where=file, hint="run 'onnxcomp doctor'"
            ) from error
        raise translate(error, file, running=False) from error
    if session.get_providers()[0] != wanted[0]:
        loader = missing(wanted[0])
        raise ProviderError(
            f"ORT did not use {wanted[0]}, it fell back to {session.get_providers()[0]}"
            + (f": {loader}" if loader else ""),
            where=file,
            hint="run 'onnxcomp doctor'",
        )
    if provider != "cpu":
        _require_a_node(session, wanted[0], file)
    return Session(session, file, _session_signature(session), provider)


def _require_a_node(session: ort.InferenceSession, wanted: str, file: Path) -> None:
    """Raise ProviderError where every node of the model went to another provider."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    used = {subgraph.ep_name for subgraph in read()} if read is not None else set()
    if used and wanted not in used:
        raise ProviderError(
            f"{wanted} took no node of the model, all run on {', '.join(sorted(used))}",
            where=file,
            hint="the provider has no kernels for these operators and types: run on the CPU",
        )


def run_batches(session: Session, feeds: Sequence[Mapping[str, np.ndarray]]) -> Iterator[dict[str, Output]]:
    """Run one set of feeds after the other."""
    for feed in feeds:
        yield session.run(feed)


#: a model of more bytes is not copied by the runtime where speed does not matter
_LARGE = 1 << 30


def is_large(path: str | os.PathLike[str]) -> bool:
    """Whether the model with its external data takes so much memory that copies must be few."""
    return models.total_bytes(path) > _LARGE


def frugal(path: str | os.PathLike[str]) -> SessionSettings:
    """Settings for checks: the weights of a large model stay mapped, without packed copies beside them."""
    return SessionSettings(config={"session.disable_prepacking": "1"} if is_large(path) else {})


def check_loads(path: Path) -> None:
    """Load the file and, where its input sizes are known, run it once on zeros.

    The last check before a file is published. Raises what `open_session` raises; a model whose
    inputs cannot be made up (symbolic axes beyond the first, strings) is loaded only.
    """
    session = open_session(path, settings=frugal(path))
    feeds = {}
    for spec in session.signature.inputs:
        array = _zeros(spec)
        if array is None:
            return
        feeds[spec.name] = array
    try:
        session.run(feeds)
    except DataError:
        return  # zeros may be out of the model's domain; that it loads is what counts


def available_providers() -> tuple[str, ...]:
    """Short names of the providers that this ORT build has."""
    full = ort.get_available_providers()
    return tuple(short for short, name in PROVIDERS.items() if name in full)


@functools.cache
def ort_distributions() -> tuple[str, ...]:
    """'name version' of every installed distribution that provides the package `onnxruntime`.

    More than one is a broken environment: the wheels overwrite each other's files.
    """
    names = metadata.packages_distributions().get("onnxruntime", [])
    return tuple(sorted(f"{name} {metadata.version(name)}" for name in set(names)))


def cpu_features() -> frozenset[str]:
    """CPU feature flags that decide over int8 speed and exactness."""
    return cpu_flags() & {"avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"}


def saturates_int8() -> bool:
    """Whether this CPU's u8 x s8 kernels can saturate: x86 without VNNI (ORT issues 5849, 14642)."""
    flags = cpu_features()
    return "avx" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def ort_providers(provider: str, settings: SessionSettings | None = None) -> list[str]:
    """ORT's names of the provider and of the CPU behind it; alone where the settings forbid the CPU.

    `session.disable_cpu_ep_fallback` forbids it, and ORT refuses the key beside an explicit CPU.

    Raises UsageError for an unknown name, ProviderError for one that this build does not have.
    """
    if provider not in PROVIDERS:
        raise UsageError(
            f"unknown provider '{provider}'",
            hint=nearest(provider, PROVIDERS) or f"one of {', '.join(PROVIDERS)}",
        )
    full, there = PROVIDERS[provider], ort.get_available_providers()
    if full not in there:
        raise ProviderError(
            f"this onnxruntime build has no {full}",
            where=", ".join(ort_distributions()),
            hint=f"there are: {', '.join(there)}; pip install 'onnxcomp[gpu]' brings CUDA",
        )
    alone = settings is not None and settings.config.get(_ALONE) == "1"
    return [full] if provider == "cpu" or alone else [full, PROVIDERS["cpu"]]


def ort_provider_options(names: Sequence[str], settings: SessionSettings) -> list[dict[str, str]]:
    """The options of each of ORT's providers, in their order."""
    short = {full: name for name, full in PROVIDERS.items()}
    return [dict(settings.provider_options.get(short[name], {})) for name in names]


_ORT_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "string",
    "bfloat16": "bfloat16",
    **{f"{u}int{b}": f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)},
}


def _session_signature(session: ort.InferenceSession) -> Signature:
    def spec(arg: ort.NodeArg) -> InputSpec:
        match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
        if match is None:
            return InputSpec(arg.name, arg.type.split("(")[0], None)
        shape = tuple(d if isinstance(d, str) or (isinstance(d, int) and d >= 0) else None for d in arg.shape)
        return InputSpec(arg.name, _ORT_DTYPES.get(match[1], match[1]), shape)

    return Signature(tuple(spec(a) for a in session.get_inputs()), tuple(spec(a) for a in session.get_outputs()))


def _zeros(spec: InputSpec) -> np.ndarray | None:
    if spec.shape is None or spec.dtype in ("string", "bfloat16"):
        return None
    shape = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(spec.shape)]
    if not all(isinstance(d, int) for d in shape):
        return None
    try:
        return np.zeros([int(d) for d in shape if d is not None], spec.dtype)
    except TypeError:
        return None


#: ORT's place in its own sources: 'FILE:LINE SIGNATURE' in front of the message
_CXX_PLACE = re.compile(
    r"/onnxruntime_src/\S+:\d+ [^()]*(?:\((?:[^()]|\([^()]*\))*\))+(?: const)?(?: \[with [^\]]*\])? ?"
)


def _message(error: Exception) -> str:
    """What ORT says, without the places in its sources."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    return _CXX_PLACE.sub("", re.sub(r"\s+", " ", text[:4096]))[:600]


def translate(error: Exception, path: Path | None, *, running: bool) -> OnnxcompError:
    """The typed error for what ORT raised."""
    text = _message(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return LimitError("ORT ran out of memory", where=path, hint="use smaller batches or shapes")
    missing = re.search(r"([\w.:]+)\(-?\d+\) is not a registered function/op", text)
    if missing:
        return UnsupportedError(
            f"operator {missing[1]} is not in this onnxruntime build",
            where=path,
            hint="it needs a custom operator library, or ORT's build for another device",
        )
    if isinstance(error, _state.NotImplemented) or "Could not find an implementation" in text:
        return UnsupportedError(f"ORT has no kernel: {text}", where=path)
    if "Conflicting session configuration" in text:
        return UsageError(text, where="config")
    too_new = "unsupported" in text.lower() and ("opset" in text.lower() or "IR version" in text)
    if too_new or "only *guarantees* support" in text:
        return UnsupportedError(text, where=path, hint="upgrade onnxruntime, or lower the model's opset")
    if running and isinstance(error, (_state.InvalidArgument, ValueError, RuntimeError)):
        return DataError(f"ORT refused the inputs: {text}", where=path)
    if running:
        return DataError(f"the model failed on these inputs: {text}", where=path)
    return InvalidModelError(f"ORT cannot load the model: {text}", where=path)
