"""`distill` as a pass of a recipe, with torch."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx_ir as ir

from onnxcomp.errors import UsageError
from onnxcomp.passes import Context, Distill, Effect
from onnxcomp.passes.base import transplant
from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation.quantized import is_quantized
from onnxcomp.pytorch.distillation.result import effect
from onnxcomp.pytorch.distillation.students import trained_elements
from onnxcomp.pytorch.distillation.together import Task, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillWithTorch(Distill):
    """`Distill` that does what it says."""

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises what `onnxcomp.pytorch.distill` raises, but for NoEffectError: then nothing is changed."""
        teacher = context.reference if self.teacher is None else Path(self.teacher)
        if teacher is None or context.data is None:
            raise UsageError("distillation needs a teacher and samples", where=self.name)
        settings = Settings(**{field.name: getattr(self, field.name) for field in Settings.fields()})
        task = Task(
            str(teacher),
            context.data.inputs,
            context.data.selection,
            settings,
            self.quantization_aware,
        )
        taught = train(task, model, context.data, checkpoint=context.checkpoint, resume=context.resume)
        student, made = taught.lesson.student, taught.guide.file
        quantized_now = self.quantization_aware and not is_quantized(model)
        if taught.trained.best == 0:
            context.note(taught.nothing_better)
        if taught.trained.best or quantized_now:
            with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
                transplant(model, student.finished(Path(folder)))
        judged = {"trained": len(taught.lesson.order.training), "judged": len(taught.lesson.order.judging)}
        details = {
            **effect(taught.trained, trained_elements(student.module)),
            "in_int8": self.quantization_aware,
            "teacher": {"sha256": made.sha256, "bytes": made.bytes},
            "samples": judged,
            "resumed_from_step": taught.trained.resumed,
            "history": [dict(entry) for entry in taught.trained.history],
        }
        return Effect(bool(taught.trained.best) or quantized_now, details)
