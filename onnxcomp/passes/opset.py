"""`upgrade-opset`: lift an old model to a newer operator set."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from onnxcomp.errors import UnsupportedError, UsageError
from onnxcomp.inspect import all_nodes
from onnxcomp.passes import adapters
from onnxcomp.passes.base import Context, Effect, Pass, option, transplant

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
    before = model.opset_imports.get("")
    if before is None or before >= opset:
        return False
    trial = model.clone()
    names = [value.name or "" for value in trial.graph.outputs]
    cut = adapters.take_off_maps(trial)
    adapters.prepare(trial, opset)
    if opset >= adapters.RESIZE and adapters.has_old_resize(trial):
        enlarges = adapters.enlarges_only(trial)
        _convert(trial, adapters.RESIZE)
        adapters.mend_resize(trial, enlarges=enlarges)
    _convert(trial, opset)
    if cut:
        adapters.put_on_maps(trial, cut, names)
    trial.ir_version = max(model.ir_version, adapters.ir_version(opset))
    transplant(model, trial)
    return True


def _convert(model: ir.Model, opset: int) -> None:
    """Run onnxscript's converter in place, and onnx's below opset 18. Raises UnsupportedError with their reason."""
    from onnxscript import version_converter

    reasons = _Reasons()
    try:
        with _listening(reasons):
            version_converter.convert_version(model, opset, fallback=True)
    except (ir.passes.PassError, ir.serde.SerdeError, ValueError, KeyError, RuntimeError) as error:
        raise _refusal(model, opset, f": {error.__cause__ or error}") from error
    if reasons.found or model.opset_imports.get("", 0) < opset:
        raise _refusal(model, opset, "".join(f": {reason}" for reason in reasons.found[:1]))


class _Reasons(logging.Handler):
    """The converters log their failures and change nothing, or leave a node as it was."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.found.append(str(error))
        elif record.getMessage().startswith("Skipping"):
            self.found.append(record.getMessage())


@contextlib.contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    """Give what onnxscript logs to `handler` instead of the terminal."""
    logger = logging.getLogger("onnxscript")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _refusal(model: ir.Model, opset: int, why: str) -> UnsupportedError:
    domains = sorted({n.domain for n in all_nodes(model) if n.domain})
    message = f"opset {model.opset_imports.get('')} cannot be raised to {opset}{why}"
    return UnsupportedError(
        message.splitlines()[0][:300],
        where=f"operators of {', '.join(domains)}" if domains else None,
        hint="an operator has no adapter; re-export the model at a newer opset",
    )
