"""`upgrade-opset`: lift an old model to a newer operator set."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxcomp.errors import UnsupportedError, UsageError
from onnxcomp.inspect import all_nodes
from onnxcomp.passes.base import Context, Effect, Pass, muted, option, transplant

#: what both the converters and ORT 1.28 and later take
_OLDEST, _NEWEST = 7, 23


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpgradeOpset(Pass):
    """Raise the default domain's operator set with onnx's version converter; never lower it."""

    name: ClassVar[str] = "upgrade-opset"
    exact: ClassVar[bool] = True

    opset: int = option(17, "the version to reach")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError for an unknown version, UnsupportedError where an operator has no adapter."""
        if not _OLDEST <= self.opset <= _NEWEST:
            raise UsageError(f"opset {self.opset} is not in {_OLDEST} to {_NEWEST}", where="opset")
        before = model.opset_imports.get("", 0)
        changed = upgrade(model, self.opset)
        return Effect(changed, {"opset": {"before": before, "after": model.opset_imports.get("", 0)}})


def upgrade(model: ir.Model, opset: int) -> bool:
    """Raise to at least `opset` in place; whether anything was to do."""
    from onnxscript import version_converter

    before = model.opset_imports.get("")
    if before is None or before >= opset:
        return False
    trial = model.clone()
    try:
        with muted("onnxscript"):
            version_converter.convert_version(trial, opset, fallback=True)
    except (ir.passes.PassError, ir.serde.SerdeError, ValueError, KeyError, RuntimeError) as error:
        raise _refusal(model, opset, f": {error.__cause__ or error}") from error
    if trial.opset_imports.get("", 0) < opset:  # the converter logs its failures and changes nothing
        raise _refusal(model, opset, "")
    transplant(model, trial)
    return True


def _refusal(model: ir.Model, opset: int, why: str) -> UnsupportedError:
    domains = sorted({n.domain for n in all_nodes(model) if n.domain})
    message = f"opset {model.opset_imports.get('')} cannot be raised to {opset}{why}"
    return UnsupportedError(
        message.splitlines()[0][:300],
        where=f"operators of {', '.join(domains)}" if domains else None,
        hint="an operator has no adapter; re-export the model at a newer opset",
    )
