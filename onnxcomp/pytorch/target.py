"""From what the user names to a module in eval mode with its example inputs."""

from __future__ import annotations

import inspect as python_inspect
import pickle
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import DataError, OnnxcompError, UnsupportedError, UsageError
from onnxcomp.pytorch import huggingface, programs
from onnxcomp.pytorch.capture import Subject, capture, first_line
from onnxcomp.pytorch.specs import Input, like, parse_inputs, with_dynamic


def resolve(
    target: str | nn.Module | tuple[Any, ...], inputs: Sequence[str], dynamic: Sequence[str], weights: Path | None
) -> Subject:
    """What the user named, captured: 'module:attr', 'file.py:attr', an object, a .pt2, a Hugging Face folder.

    Raises UsageError for what is not there or does not fit, DataError for weights and programs that
    cannot be read, UnsupportedError for what torch cannot capture.
    """
    if isinstance(target, str) and target.endswith(".pt2"):
        if inputs or weights is not None:
            raise UsageError("a .pt2 program brings its inputs and weights", where=target)
        return programs.load(Path(target), dynamic)
    torch.manual_seed(0)  # an untrained module gets the same weights each time
    if isinstance(target, str) and Path(target).is_dir():
        module, found = huggingface.load(Path(target))
        if inputs:
            found = like(parse_inputs(inputs, [one.name for one in found]), found)
        found = with_dynamic(found, dynamic) if dynamic or inputs else found
    else:
        module, examples = module_of(target)
        found = with_dynamic(inputs_of(module, examples, inputs), dynamic)
    if weights is not None:
        load_weights(module, weights)
    return capture(module, found)


def module_of(target: str | nn.Module | tuple[Any, ...]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """(module in eval mode, example inputs, possibly none) of 'module:attr', 'file.py:attr' or an object.

    The attribute may be an nn.Module, a callable that returns one, or either with example inputs
    as a tuple. Raises UsageError.
    """
    found = load_attribute(target) if isinstance(target, str) else target
    if not isinstance(found, (nn.Module, tuple)) and callable(found):
        found = _call(found, target)
    examples: Any = ()
    if isinstance(found, tuple):
        if len(found) != 2:
            raise UsageError("not a module, nor (module, example inputs)", where=target)
        found, examples = found
        if not isinstance(found, nn.Module) and callable(found):
            found = _call(found, target)
    if not isinstance(found, nn.Module):
        raise UsageError(f"a {type(found).__name__}, not a torch module", where=target)
    examples = (examples,) if isinstance(examples, torch.Tensor) else tuple(examples)
    if not all(isinstance(e, torch.Tensor) for e in examples):
        raise UsageError("example inputs must be tensors", where=target)
    return found.eval(), examples


def _call(factory: Callable[[], Any], target: object) -> Any:
    """What the user's factory returns. Raises UsageError with the line of their code that failed."""
    try:
        return factory()
    except OnnxcompError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"calling it failed: {type(error).__name__}: {error}",
            where=f"{target}, {place.filename}:{place.lineno}",
            hint="it is called without arguments; name a function that returns the module",
        ) from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a .safetensors file, or a checkpoint that holds nothing but tensors, strictly.

    Raises DataError: missing, damaged, a pickle with code in it, or keys that do not fit.
    """
    if not path.is_file():
        raise DataError("no such weights", where=path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle versions that it goes on to refuse or read
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            "the checkpoint holds more than tensors; it is not loaded, it could run code",
            where=path,
            hint="save module.state_dict(), best as .safetensors",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(f"the weights cannot be read: {first_line(error)}", where=path) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise DataError(f"the weights cannot be read: {first_line(error)}", where=path) from error
    if isinstance(state, dict) and set(state) == {"state_dict"}:
        state = state["state_dict"]
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"the weights do not fit the module: {' '.join(str(error).split())[:300]}", where=path
        ) from error


def inputs_of(module: nn.Module, examples: Sequence[torch.Tensor], specs: Sequence[str]) -> list[Input]:
    """The module's inputs from `specs`, else from its example inputs.

    Raises UsageError when neither is there, or when they do not fit forward().
    """
    parameters = python_inspect.signature(module.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    arguments = [p.name for p in positional]
    if specs:
        found = parse_inputs(specs, arguments)
    elif examples:
        if len(examples) > len(arguments):
            raise UsageError(f"{len(examples)} example inputs for {len(arguments)} arguments of forward()")
        arrays = [_array(e) for e in examples]
        found = [Input(name, str(a.dtype), a.shape, example=a) for name, a in zip(arguments, arrays, strict=False)]
    else:
        example = " ".join(f"--inputs '{name}:float32[1,...]'" for name in arguments[:2])
        raise UsageError("the shapes of the inputs are not known", where="--inputs", hint=f"give {example}")
    given = {one.name for one in found}
    missing = [p.name for p in positional if p.default is p.empty and p.name not in given]
    if missing:
        raise UsageError(f"forward() also needs '{missing[0]}'", where="--inputs")
    return found


def _array(example: torch.Tensor) -> np.ndarray:
    try:
        return example.detach().cpu().numpy()
    except TypeError as error:
        raise UnsupportedError(
            f"example inputs of {example.dtype} are not supported", hint="export in float32, then cast"
        ) from error
