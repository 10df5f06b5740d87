"""How a session runs, apart from `onnxcomp.runtime`: a worker that only serves imports no model libraries for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxcomp.errors import UsageError, nearest

if TYPE_CHECKING:
    import onnxruntime as ort

#: configuration entries of ORT 1.28 to 1.32 that are meant for users; it accepts any other without a word
CONFIG_KEYS: frozenset[str] = frozenset(
    {
        "ep.context_enable",
        "ep.context_file_path",
        "memory.enable_memory_arena_shrinkage",
        "mlas.disable_kleidiai",
        "optimization.constant_folding_max_output_size_in_bytes",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.disable_aot_function_inlining",
        "session.disable_cpu_ep_fallback",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.intra_op.spin_duration_us",
        "session.intra_op_thread_affinities",
        "session.optimized_model_external_initializers_file_name",
        "session.optimized_model_external_initializers_min_size_in_bytes",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.record_ep_graph_assignment_info",
        "session.save_external_prepacked_constant_initializers",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
        "session.x64quantprecision",
    }
)

_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

#: folding stops here, so that a model of a few kilobytes cannot grow to gigabytes at load
_FOLDING_CAP = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How a session runs.

    Attributes:
        threads: intra-op threads; 0 leaves the choice to ORT.
        optimization: ORT's graph optimization: 'disable', 'basic', 'extended' or 'all'.
        config: configuration entries; only keys in `CONFIG_KEYS`.
        disabled_optimizers: names of single ORT optimizers to switch off.
    """

    threads: int = 1
    optimization: str = "all"
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.optimization not in _LEVELS:
            raise UsageError(
                f"unknown optimization '{self.optimization}'",
                hint=nearest(self.optimization, _LEVELS) or f"one of {', '.join(_LEVELS)}",
            )
        if self.threads < 0:
            raise UsageError("threads must not be negative", where=f"threads={self.threads}")
        for key in self.config:
            if key not in CONFIG_KEYS:
                raise UsageError(
                    f"unknown session option '{key}'",
                    where="config",
                    hint=nearest(key, CONFIG_KEYS) or "see onnxcomp.runtime.CONFIG_KEYS",
                )


def session_options(settings: SessionSettings) -> ort.SessionOptions:
    """ORT's options for these settings."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[settings.optimization])
    options.log_severity_level = 3  # errors only; what matters comes as an exception
    entries = {"optimization.constant_folding_max_output_size_in_bytes": str(_FOLDING_CAP)}
    entries.update(settings.config)
    if settings.disabled_optimizers:
        entries["optimization.disable_specified_optimizers"] = ";".join(settings.disabled_optimizers)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options
