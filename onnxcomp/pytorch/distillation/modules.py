"""A torch module of the user's as a student."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onnxcomp import model as models
from onnxcomp.errors import UsageError
from onnxcomp.model import InputSpec
from onnxcomp.pytorch import target as targets
from onnxcomp.pytorch.capture import TORCH_ERRORS, first_line
from onnxcomp.pytorch.distillation.hints import Taps
from onnxcomp.pytorch.distillation.students import refuse_untrainable
from onnxcomp.pytorch.export import export

Target = str | nn.Module | tuple[Any, ...]


class ModuleStudent:
    """'module:attr', 'file.py:attr', or an nn.Module: it takes the teacher's inputs by name and is exported in the end.

    Its outputs are called as the teacher's where there are as many, or by the keys of the dictionary
    that it returns.

    Args:
        target: as `onnxcomp.pytorch.export` takes it. A module is trained in place.
        inputs: of the teacher.
        sizes: of each input in a run, for the export.
        outputs: names of the teacher's outputs.
        hints: paths of submodules.
        seed: of the weights that the user's function draws.

    Raises UsageError for what is no module, or has no such submodule.
    """

    def __init__(
        self,
        target: Target,
        inputs: Sequence[InputSpec],
        sizes: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str],
        *,
        hints: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module, _ = targets.module_of(target)
        self._target = target if isinstance(target, str) else self.module
        self.inputs, self._sizes = tuple(inputs), dict(sizes)
        self.outputs = tuple(outputs)
        self._taps = Taps(self.module, hints)
        self._runs = self._keys = False
        name = target if isinstance(target, str) else type(self.module).__qualname__
        self._about = {"path": name, "sha256": _digest(self.module), "bytes": _bytes(self.module)}
        refuse_untrainable(self.module, self._about)

    def values(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Student`. Raises UsageError when the module does not take the teacher's inputs."""
        try:
            found = self.module(**feeds)
        except TORCH_ERRORS as error:
            if self._runs:
                raise
            raise UsageError(
                f"the student does not run on the teacher's inputs: {first_line(error)}",
                where=self._about["path"],
                hint=f"its forward() must take {', '.join(spec.name for spec in self.inputs)}",
            ) from error
        self._runs = True
        return {**self._named(found), **self._taps.take()}

    def _named(self, found: Any) -> dict[str, Tensor]:
        if isinstance(found, Mapping):
            named = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
            self.outputs, self._keys = tuple(named), True
            return named
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
        if len(leaves) != len(self.outputs):
            raise UsageError(
                f"the student returns {len(leaves)} tensors, the teacher has {len(self.outputs)} outputs",
                where=self._about["path"],
                hint=f"return a dictionary with some of: {', '.join(self.outputs)}",
            )
        return dict(zip(self.outputs, leaves, strict=True))

    def train(self, *, frozen: bool) -> None:
        """See `Student`."""
        self.module.train()
        for part in self.module.modules() if frozen else ():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()

    def finished(self, folder: Path) -> ir.Model:
        """See `Student`. Raises what `export` raises: it must agree with torch."""
        self._taps.close()
        weights, path = folder / "weights.safetensors", folder / "student.onnx"
        self.module.eval().cpu()
        own = {name: tensor.detach() for name, tensor in self.module.state_dict().items()}
        save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in own.items()}, weights)
        named = isinstance(self._target, str)
        export(
            self._target,
            path,
            inputs=[f"{s.name}:{s.dtype}[{','.join(map(str, self._sizes[s.name]))}]" for s in self.inputs],
            dynamic=[
                f"{s.name}:{axis}={dim or f'{s.name}_{axis}'}"
                for s in self.inputs
                for axis, dim in enumerate(s.shape or ())
                if not isinstance(dim, int)
            ],
            weights=weights if named else None,
            output_names=() if self._keys else self.outputs,
        )
        return models.load(path)

    def to_json(self) -> dict[str, Any]:
        """What was named, and a digest of the weights it began with."""
        return self._about


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
