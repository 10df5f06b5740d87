"""A `.pt2` program, as `torch.export.save` writes it."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader
from torch.utils import _pytree as pytree

from onnxcomp.errors import DataError, UnsupportedError, UsageError
from onnxcomp.pytorch.capture import Subject, first_line, is_open, of_program, quiet
from onnxcomp.pytorch.specs import Input, parse_dynamic

#: the entries of an archive that are graph, tensors or remarks; others are native code or pickled objects,
#: which torch's loader runs whatever `weights_only` says
_OWN = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|\.data/\w+|extra/.*"
)


def load(path: Path, dynamic: Sequence[str]) -> Subject:
    """Load a program with its example inputs; `dynamic` gives its open axes names.

    Tensors are read with `weights_only`. Raises DataError: not a program, or one that holds more
    than tensors; UnsupportedError: native code inside, no example inputs; UsageError: an axis that
    is fixed in the program.
    """
    if not path.is_file():
        raise DataError("no such program", where=path)
    try:
        entries = PT2ArchiveReader(str(path)).get_file_names()
    except (RuntimeError, AssertionError, UnicodeDecodeError) as error:
        raise DataError("not a program saved by torch.export.save", where=path) from error
    if foreign := [name for name in entries if not _OWN.fullmatch(name)]:
        raise UnsupportedError("the program holds compiled code or objects", where=f"{path}: {foreign[0]}")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torch's loader falls back to pickles otherwise
    with quiet():
        try:
            program = torch.export.load(path)
        except pickle.UnpicklingError as error:
            raise DataError(
                "the program holds more than tensors; it is not loaded, it could run code", where=path
            ) from error
        except Exception as error:
            raise DataError(f"the program cannot be read: {first_line(error)}", where=path) from error
    return of_program(program, _inputs(program, path, dynamic))


def _inputs(program: torch.export.ExportedProgram, path: Path, dynamic: Sequence[str]) -> list[Input]:
    if program.example_inputs is None:
        raise UnsupportedError("the program has no example inputs", where=path, hint="save it with them")
    names = [str(name) for name in program.graph_signature.user_inputs]
    examples = pytree.tree_leaves(program.example_inputs)
    if len(names) != len(examples) or not all(isinstance(e, torch.Tensor) for e in examples):
        raise UnsupportedError("the program takes inputs that are not tensors", where=path)
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    found, symbols = [], _symbols(names, shapes, dynamic)
    for name, example in zip(names, examples, strict=True):
        dims = {axis: symbols[str(size)] for axis, size in enumerate(shapes[name]) if is_open(size)}
        array = example.detach().numpy()
        found.append(Input(name, str(array.dtype), array.shape, dims, example=array))
    return found


def _symbols(names: Sequence[str], shapes: dict[str, Any], dynamic: Sequence[str]) -> dict[str, str]:
    """Names of the program's open sizes: the user's, else 'batch' for a first axis, 'dim_1' and so on."""
    found: dict[str, str] = {}
    for spec, (name, axis, dim) in parse_dynamic(dynamic):
        if name not in shapes or name not in names or axis >= len(shapes[name]):
            raise UsageError(f"the program has no axis {axis} of '{name}'", where=f"--dynamic {spec}")
        if not is_open(shapes[name][axis]):
            raise UsageError(
                "the axis is fixed in the program", where=f"--dynamic {spec}", hint="capture it again, with a Dim there"
            )
        found[str(shapes[name][axis])] = dim
    for name in names:
        for axis, size in enumerate(shapes[name]):
            if is_open(size) and str(size) not in found:
                plain = "batch" if axis == 0 else f"dim_{axis}"
                found[str(size)] = plain if plain not in found.values() else f"{name}_{axis}"
    return found
