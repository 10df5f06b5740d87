"""How a session runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import DataError, UsageError, nearest
from onnxcomp.settings.known import CONFIG_KEYS, OPTIMIZERS

if TYPE_CHECKING:
    import onnxruntime as ort

#: the entry for idle threads
SPINNING = "session.intra_op.allow_spinning"

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
        disabled_optimizers: single ORT optimizers to switch off; only names in `OPTIMIZERS`.
        arena: whether the CPU's memory is kept in an arena between runs.
        mem_pattern: whether memory is planned ahead, by the shapes of earlier runs.
        provider_options: ORT's options of a provider by its short name, `{"cuda": {"use_tf32": "0"}}`; those of a
            provider that is not asked for do nothing. ORT refuses options that it does not know.
    """

    threads: int = 1
    optimization: str = "all"
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()
    arena: bool = True
    mem_pattern: bool = True
    provider_options: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

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
        for name in self.disabled_optimizers:
            if name not in OPTIMIZERS:
                raise UsageError(
                    f"unknown optimizer '{name}': ORT would ignore it",
                    where="disabled_optimizers",
                    hint=nearest(name, OPTIMIZERS) or "see onnxcomp.runtime.OPTIMIZERS",
                )

    @property
    def spinning(self) -> bool:
        """Whether idle threads of the pool spin for a while before they sleep; ORT's default is that they do."""
        return self.config.get(SPINNING, "1") == "1"

    def with_spinning(self, spinning: bool) -> SessionSettings:
        """The same with or without spinning."""
        rest = {key: value for key, value in self.config.items() if key != SPINNING}
        return dataclasses.replace(self, config=rest if spinning else {**rest, SPINNING: "0"})

    def to_json(self) -> dict[str, Any]:
        """The fields by name; plain types, also of what `json` does not know."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "config": dict(self.config),
            "disabled_optimizers": list(self.disabled_optimizers),
            "provider_options": {name: dict(options) for name, options in self.provider_options.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: object = None) -> SessionSettings:
        """What `to_json` gave; fields that are not there keep their defaults.

        Raises DataError for an unknown field or a wrong type, UsageError for what no session can have.
        """
        for name, value in values.items():
            if name not in _TYPES:
                raise DataError(f"unknown setting '{name}'", where=where, hint=nearest(name, _TYPES))
            expected, fits = _TYPES[name]
            if not fits(value):
                raise DataError(f"the setting '{name}' must be {expected}", where=where)
        given = dict(values)
        if "disabled_optimizers" in given:
            given["disabled_optimizers"] = tuple(given["disabled_optimizers"])
        return cls(**given)


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


#: what each field is in JSON, in words, and its check
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "threads": ("a whole number", lambda v: type(v) is int),
    "optimization": ("a text", lambda v: isinstance(v, str)),
    "config": ("an object of texts", lambda v: isinstance(v, dict) and _texts(v.values())),
    "disabled_optimizers": ("a list of texts", lambda v: isinstance(v, list) and _texts(v)),
    "arena": ("true or false", lambda v: isinstance(v, bool)),
    "mem_pattern": ("true or false", lambda v: isinstance(v, bool)),
    "provider_options": (
        "an object of objects of texts",
        lambda v: isinstance(v, dict) and all(isinstance(o, dict) and _texts(o.values()) for o in v.values()),
    ),
}


def session_options(settings: SessionSettings) -> ort.SessionOptions:
    """ORT's options for these settings."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[settings.optimization])
    options.enable_cpu_mem_arena = settings.arena
    options.enable_mem_pattern = settings.mem_pattern
    options.log_severity_level = 3  # errors only; what matters comes as an exception
    entries = {"optimization.constant_folding_max_output_size_in_bytes": str(_FOLDING_CAP)}
    entries.update(settings.config)
    if settings.disabled_optimizers:
        entries["optimization.disable_specified_optimizers"] = ";".join(settings.disabled_optimizers)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options
