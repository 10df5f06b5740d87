"""Inner tensors by name: of an ONNX file as outputs of a session, of a torch module through hooks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from onnxcomp import model as models
from onnxcomp.errors import UnsupportedError, UsageError, from_os_error, nearest


@contextlib.contextmanager
def exposed(path: Path, names: Sequence[str]) -> Iterator[Path]:
    """A model file with these inner tensors as further outputs, to be opened inside the context.

    Without names it is the file itself. Otherwise it is a copy of the graph alone, beside the model where
    the weights lie in external data: they are not copied (unless the model's folder cannot be written).
    Constants of the graph are not folded, nothing is fused: names are those of the file.

    Raises UsageError for a name that no node of the main graph makes, with the nearest that one does.
    """
    if not names:
        yield path
        return
    proto = models.read_proto(path)
    models.normalize(proto)
    made = dict.fromkeys(name for node in proto.graph.node for name in node.output if name)
    there = {value.name for value in proto.graph.output}
    for name in names:
        if name not in made:
            raise UsageError(
                "no node of the teacher's main graph makes this tensor",
                where=f"{path}: {name}",
                hint=nearest(name, made) or f"there are {', '.join(list(made)[:: max(len(made) // 4, 1)])} and others",
            )
        if name not in there:
            proto.graph.output.add(name=name)  # the runtime infers its type
            there.add(name)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxcomp-teacher-")))
        if models.total_bytes(path) == path.stat().st_size:
            copy = folder / path.name
        elif os.access(path.absolute().parent, os.W_OK):
            # external data must lie below the model that names it
            copy = stack.enter_context(_beside(path))
        else:
            yield _whole_copy(path, names, folder)
            return
        try:
            copy.write_bytes(proto.SerializeToString())
        except OSError as error:
            raise from_os_error(error, copy.parent) from error
        del proto
        yield copy


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".onnx", dir=path.absolute().parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink()


def _whole_copy(path: Path, names: Sequence[str], folder: Path) -> Path:
    model = models.load(path)
    there = {value.name for value in model.graph.outputs}
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in dict.fromkeys(names) if name not in there)
    return models.write_to(model, folder, path.stem)


class Taps:
    """What submodules of a torch module give, by their paths, each time that it runs.

    Args:
        module: any module, teacher or student.
        paths: as `named_modules` has them ('blocks.2'); 'PATH:1' is the second of several outputs.

    Raises UsageError for a path that the module does not have.
    """

    def __init__(self, module: nn.Module, paths: Sequence[str]) -> None:
        known = dict(module.named_modules())
        self._found: dict[str, Tensor] = {}
        self._handles = []
        for path in dict.fromkeys(paths):
            inner, _, number = path.partition(":")
            if not inner or inner not in known or (number and not number.isdecimal()):
                hint = nearest(inner, [name for name in known if name])
                raise UsageError("the module has no such submodule", where=path, hint=hint)
            self._handles.append(known[inner].register_forward_hook(self._keeper(path, int(number or -1))))

    def _keeper(self, path: str, number: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            chosen = output if number < 0 else output[number]
            if not isinstance(chosen, Tensor):
                raise UnsupportedError(
                    f"the submodule gives {type(chosen).__name__}, not a tensor",
                    where=path,
                    hint=f"'{path.partition(':')[0]}:0' is the first of several outputs",
                )
            self._found[path] = chosen

        return keep

    def take(self) -> dict[str, Tensor]:
        """The tensors of the last run by path, once."""
        found = dict(self._found)
        self._found.clear()
        return found

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
