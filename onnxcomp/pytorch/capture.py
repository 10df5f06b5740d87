"""A module as torch's exported program, and the calls that everything else is compared with."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from onnxcomp.errors import UnsupportedError, UsageError
from onnxcomp.pytorch.specs import Input, traced_sizes

Feeds = Mapping[str, np.ndarray]

#: arrays by input name -> arrays in the order of the outputs
Call = Callable[[Feeds], list[np.ndarray]]

#: what a module raises at sizes that it cannot take
TORCH_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        program: as torch captured it.
        inputs: in the order of the program's.
        outputs: names in order, as far as the structure of the outputs has some.
        eager: runs the user's module, or the program where there is no module.
        captured: runs the program with its guards: it raises at sizes that it was not captured for.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    eager: Call
    captured: Call


def capture(module: nn.Module, inputs: Sequence[Input]) -> Subject:
    """Trace a module in eval mode with every dynamic axis open.

    torch proves for each axis that the graph holds at every size, or names what fixes it. Where it
    cannot prove (an upper bound, a size above a stride) it writes guards instead, which
    `Subject.captured` checks at every size that is tried. The loops of recurrent nets are opened
    by torch's ONNX exporter alone, once in a process; it drops the guards, so that there only the
    comparison with torch is left.

    Raises UnsupportedError with the cause.
    """
    arrays = _tensors({one.name: one.traced() for one in inputs})
    guessed = _shapes(inputs, dict.fromkeys(traced_sizes(inputs), torch.export.Dim.AUTO))
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    with quiet():
        try:
            program = _recurrent(module, arrays, guessed) if recurrent else _proven(module, arrays, inputs)
        except Exception as error:
            cause = refusal(error)
            if recurrent or "Constraints violated" not in cause.message:
                raise cause from error
            try:
                program = torch.export.export(module, (), kwargs=arrays, dynamic_shapes=guessed, strict=False)
            except Exception as second:
                raise cause from second
            if _frozen(program, inputs):
                raise cause from error
    return _subject(program, inputs, lambda feeds: module(**_tensors(feeds)))


def _proven(
    module: nn.Module, arrays: dict[str, torch.Tensor], inputs: Sequence[Input]
) -> torch.export.ExportedProgram:
    dims = {name: torch.export.Dim(name, min=1) for name in traced_sizes(inputs)}
    shapes = _shapes(inputs, dims) if dims else None
    return torch.export.export(module, (), kwargs=arrays, dynamic_shapes=shapes, strict=False)


def _recurrent(module: nn.Module, arrays: dict[str, torch.Tensor], shapes: Any) -> torch.export.ExportedProgram:
    made = torch.onnx.export(
        module, (), kwargs=arrays, dynamic_shapes=shapes, dynamo=True, optimize=False, verbose=False
    )
    program: torch.export.ExportedProgram = made.exported_program  # type: ignore[assignment, union-attr]
    return program


def _shapes(inputs: Sequence[Input], dims: Mapping[str, Any]) -> dict[str, Any]:
    return {one.name: {axis: dims[name] for axis, name in one.dims.items()} for one in inputs}


def _frozen(program: torch.export.ExportedProgram, inputs: Sequence[Input]) -> bool:
    """Whether an axis that was asked to be dynamic is a constant in the program."""
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    return any(not is_open(shapes[one.name][axis]) for one in inputs for axis in one.dims)


def is_open(size: int | torch.SymInt) -> bool:
    """Whether a size of a program is a symbol; one that torch fixed later is a symbol of the number."""
    return not str(size).isdigit()


def of_program(program: torch.export.ExportedProgram, inputs: Sequence[Input]) -> Subject:
    """A program that was captured elsewhere is its own reference."""
    return _subject(program, inputs, None)


def _subject(program: torch.export.ExportedProgram, inputs: Sequence[Input], module: Any) -> Subject:
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    by_name = {one.name: one for one in inputs}
    if sorted(names) != sorted(by_name):
        raise UnsupportedError(
            f"torch captured the inputs {', '.join(names)}", hint="leave out arguments that the module does not use"
        )
    outputs = [one.arg for one in program.graph_signature.output_specs if one.kind.name == "USER_OUTPUT"]
    constants = [one.value for one in outputs if isinstance(one, ConstantArgument)]
    if other := [value for value in constants if value is not None]:
        raise UnsupportedError(f"the module returns {other[0]!r}, which is not a tensor", hint="return tensors only")
    if len(constants) == len(outputs):
        raise UnsupportedError("the module returns no tensor")
    replay = program.module(check_guards=True)
    spec = program.call_spec.in_spec

    def captured(feeds: Feeds) -> Any:
        tensors = _tensors(feeds)
        args, kwargs = pytree.tree_unflatten([tensors[name] for name in names], spec)
        return replay(*args, **kwargs)

    return Subject(
        program,
        tuple(by_name[name] for name in names),
        _output_names(program),
        _arrays_of(module or captured),
        _arrays_of(captured),
    )


def _tensors(feeds: Feeds) -> dict[str, torch.Tensor]:
    # copies: a module may write into its inputs, and mapped arrays are read-only
    return {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}


def _arrays_of(call: Callable[[Feeds], Any]) -> Call:
    def run(feeds: Feeds) -> list[np.ndarray]:
        with torch.inference_mode():
            output = call(feeds)
        return [leaf.detach().numpy().copy() for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]

    return run


def _output_names(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """'logits' of a dictionary, 'output_1' of a tuple, 'past_0' of a tuple in a dictionary; '' for a lone tensor."""
    spec = program.call_spec.out_spec
    kept = program.graph_signature.user_outputs
    dummy = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(dummy)[0]]
    if len(paths) != len(kept):
        return ()
    return tuple("_".join(_step(s) for s in path) for path, name in zip(paths, kept, strict=True) if name is not None)


def _step(step: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(step, attribute):
            return str(getattr(step, attribute))
    return str(step)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch silent: it logs, warns and prints graphs to stderr before it raises; the error says what matters."""
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def refusal(error: BaseException) -> UnsupportedError | UsageError:
    """The first line that says something, from the innermost cause."""
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None and inner not in causes:
        causes.append(inner)
    everything = " ".join(str(cause) for cause in causes)
    telling = next((c for c in causes if "Constraints violated" in str(c)), causes[-1])
    text = " ".join(re.split("Suggested fixes|If you're using mark_dynamic", str(telling))[0].split())
    text = text.replace('For more information, run with TORCH_LOGS="+dynamic".', "")[:400] or type(telling).__name__
    if "data-dependent" in everything or "GuardOnDataDependent" in everything:
        hint = "write data-dependent branches with torch.cond"
    elif "Constraints violated" in everything or "specialized" in everything:
        hint = "the module fixes this size, in a reshape or a loop; make it depend on x.shape, or do not ask for it"
    else:
        hint = "rewrite what the message names with operators that ONNX has"
    return UnsupportedError(f"torch cannot export the module: {text}", hint=hint)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
