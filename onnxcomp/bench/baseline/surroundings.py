"""What two runs must share before their stored times may be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

#: of the environment; load and memory differ from run to run, and say little about time
_KEYS: tuple[tuple[str, ...], ...] = (
    ("cpu",),
    ("cores",),
    ("affinity",),
    ("isa",),
    ("governor",),
    ("turbo",),
    ("virtualized",),
    ("cgroup", "quota_cores"),
    ("kernel",),
    ("ort", "version"),
    ("ort", "build_info"),
    ("packages", "onnxcomp"),
    ("variables",),
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        what: its name: 'cpu', 'ort.version', 'session.optimization'.
        baseline, now: JSON values.
    """

    what: str
    baseline: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.baseline)}, now {_shown(self.now)}"

    def to_json(self) -> dict[str, Any]:
        """`{what, baseline, now}`."""
        return dataclasses.asdict(self)


def machine(baseline: Json, now: Json) -> list[Difference]:
    """What differs between the environments of two runs."""
    found = ((".".join(key), _get(baseline["environment"], key), _get(now["environment"], key)) for key in _KEYS)
    return [Difference(what, one, other) for what, one, other in found if one != other]


def session(baseline: Json, now: Json) -> list[Difference]:
    """What differs between the session options of two runs."""
    one, other = baseline["session"], now["session"]
    keys = dict.fromkeys([*one, *other])
    return [Difference(f"session.{k}", one.get(k), other.get(k)) for k in keys if one.get(k) != other.get(k)]


def _get(value: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
