"""Passes that need torch, for who makes passes from names and options."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from onnxcomp.errors import UnsupportedError
from onnxcomp.passes import Distill, Pass
from onnxcomp.pytorch.importance import with_gradients


def with_torch(steps: Sequence[Pass]) -> list[Pass]:
    """The passes, those that need torch as passes that have it; passes stand above torch and know nothing of it.

    Raises UnsupportedError where torch is not installed and a pass cannot do without: before any pass has run.
    """
    made = with_gradients(steps)
    if not any(type(step) is Distill for step in made):
        return made
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("distillation needs torch", where=Distill.name, hint="pip install 'onnxcomp[torch]'")
    from onnxcomp.pytorch.distillation.recipe import DistillWithTorch

    return [
        DistillWithTorch(**{field.name: getattr(step, field.name) for field in step.fields()})
        if type(step) is Distill
        else step
        for step in made
    ]
