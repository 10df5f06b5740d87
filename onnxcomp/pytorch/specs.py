"""What the user says about a module's inputs: example shapes, dynamic axes, sizes to check."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from onnxcomp.errors import UsageError, nearest

_INPUT = re.compile(r"(?:(?P<name>[^:\[\]]+):)?(?P<dtype>[a-z]+\d*)\[(?P<shape>(?:[1-9]\d*(?:,[1-9]\d*)*)?)\]")
_DYNAMIC = re.compile(r"(?P<name>[^:]+):(?P<axis>\d+)=(?P<dim>[A-Za-z_]\w*)")
_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclasses.dataclass(frozen=True)
class Input:
    """An example input.

    Attributes:
        name: of the module's argument.
        dtype: numpy's name.
        shape: sizes of the example.
        dims: name of each dynamic axis by its index.
        example: the user's own array, if there is one.
        mask: ones up to a length, then zeros, along the last axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: Mapping[int, str] = dataclasses.field(default_factory=dict)
    example: np.ndarray | None = None
    mask: bool = False

    def traced(self) -> np.ndarray:
        """The user's own example where it has the traced sizes, else a seeded array."""
        if self.example is not None and self.example.shape == self.shape:
            return self.example
        return self.make(traced_sizes([self]), 0)

    def make(self, sizes: Mapping[str, int], seed: int) -> np.ndarray:
        """A seeded array with these sizes of the dynamic axes; integers stay within the example's values."""
        shape = [sizes.get(self.dims.get(i, ""), d) for i, d in enumerate(self.shape)]
        generator = np.random.default_rng(seed)
        if self.mask:
            lengths = generator.integers(1, shape[-1] + 1, (*shape[:-1], 1))
            return (np.arange(shape[-1]) < lengths).astype(self.dtype)
        if np.dtype(self.dtype).kind == "f":
            return generator.standard_normal(shape).astype(self.dtype)
        values = np.array([0, 1]) if self.example is None else self.example.ravel()
        return generator.choice(values, shape).astype(self.dtype)


def parse_inputs(specs: Sequence[str], arguments: Sequence[str]) -> list[Input]:
    """'x:float32[1,3,224,224]' for each input; without a name they follow `arguments` in order.

    Raises UsageError naming the spec.
    """
    found: list[Input] = []
    for i, spec in enumerate(specs):
        match = _INPUT.fullmatch(spec.replace(" ", ""))
        if match is None:
            raise UsageError(
                "not of the form name:float32[1,3,224,224]",
                where=f"--inputs {spec}",
                hint="every size is a number of 1 or more; open axes are named with --dynamic",
            )
        if match["dtype"] not in _DTYPES:
            hint = nearest(match["dtype"], _DTYPES) or f"one of {', '.join(_DTYPES)}"
            raise UsageError(f"unknown type '{match['dtype']}'", where=f"--inputs {spec}", hint=hint)
        name = match["name"] or (arguments[i] if i < len(arguments) else "")
        if name not in arguments:
            hint = nearest(name, arguments) or f"its arguments are: {', '.join(arguments)}"
            raise UsageError(f"forward() has no argument '{name}'", where=f"--inputs {spec}", hint=hint)
        if any(one.name == name for one in found):
            raise UsageError(f"'{name}' is given twice", where=f"--inputs {spec}")
        sizes = [part for part in match["shape"].split(",") if part]
        found.append(Input(name, match["dtype"], tuple(int(s) for s in sizes)))
    order = {name: i for i, name in enumerate(arguments)}
    return sorted(found, key=lambda one: order[one.name])


def like(inputs: Sequence[Input], known: Sequence[Input]) -> list[Input]:
    """`inputs` with the values of those in `known` that have their names: ids, masks; sizes and types stay.

    Raises UsageError for a type that cannot hold the values.
    """
    by_name = {one.name: one for one in known}
    found = []
    for one in inputs:
        values = by_name.get(one.name, one)
        if values.example is not None and not _holds(one.dtype, values.example):
            raise UsageError(
                f"'{one.name}' holds {values.dtype} up to {values.example.max()}",
                where=f"--inputs {one.name}:{one.dtype}",
                hint=f"give {one.name}:{values.dtype}[{','.join(map(str, one.shape))}]",
            )
        found.append(dataclasses.replace(one, example=values.example, mask=values.mask and bool(one.shape)))
    return found


def _holds(dtype: str, values: np.ndarray) -> bool:
    kind = np.dtype(dtype).kind
    return kind == values.dtype.kind and (kind == "f" or int(values.max()) <= np.iinfo(dtype).max)


def parse_dynamic(specs: Sequence[str]) -> list[tuple[str, tuple[str, int, str]]]:
    """(spec, (input, axis, dim)) of each 'x:0=batch'. Raises UsageError naming the spec."""
    found = []
    for spec in specs:
        match = _DYNAMIC.fullmatch(spec.strip())
        if match is None:
            raise UsageError("not of the form name:axis=dim, for example x:0=batch", where=f"--dynamic {spec}")
        found.append((spec, (match["name"], int(match["axis"]), match["dim"])))
    return found


def with_dynamic(inputs: Sequence[Input], specs: Sequence[str]) -> list[Input]:
    """Mark the axes of 'x:0=batch'. An axis of size 1 is traced at 2: torch takes 1 for a constant.

    Raises UsageError naming the spec.
    """
    dims: dict[str, dict[int, str]] = {}
    by_name = {one.name: one for one in inputs}
    for spec, (name, axis, dim) in parse_dynamic(specs):
        one = by_name.get(name)
        if one is None:
            hint = nearest(name, by_name) or f"there are: {', '.join(by_name)}"
            raise UsageError(f"no input '{name}'", where=f"--dynamic {spec}", hint=hint)
        if axis >= len(one.shape):
            raise UsageError(f"the input has {len(one.shape)} axes only", where=f"--dynamic {spec}")
        if dims.setdefault(one.name, {}).setdefault(axis, dim) != dim:
            raise UsageError(f"axis {axis} has two names", where=f"--dynamic {spec}")
    traced: dict[str, int] = {}
    for one in inputs:
        for axis, dim in dims.get(one.name, {}).items():
            if traced.setdefault(dim, max(one.shape[axis], 2)) != max(one.shape[axis], 2):
                raise UsageError(f"'{dim}' has two sizes in the examples", where=f"--inputs {one.name}")
    return [
        dataclasses.replace(
            one,
            dims=dims.get(one.name, {}),
            shape=tuple(
                traced[dims[one.name][i]] if i in dims.get(one.name, {}) else d for i, d in enumerate(one.shape)
            ),
        )
        for one in inputs
    ]


def traced_sizes(inputs: Sequence[Input]) -> dict[str, int]:
    """Size of each dynamic axis in the examples."""
    return {dim: one.shape[axis] for one in inputs for axis, dim in one.dims.items()}


def sizes_to_check(inputs: Sequence[Input], extra: Sequence[str]) -> list[dict[str, int]]:
    """The traced sizes, and three others or more: batch 1, one more, more than double, one less; then `extra`.

    `extra`: 'batch=1,seq=7'. Raises UsageError naming the spec.
    """
    traced = traced_sizes(inputs)
    leading = {dim for one in inputs for axis, dim in one.dims.items() if axis == 0}
    found = [dict(traced)]
    if traced:
        found += [
            {d: 1 if d in leading else n for d, n in traced.items()},
            {d: n + 1 for d, n in traced.items()},
            {d: 2 * n + 1 if d in leading else 2 * n + 3 for d, n in traced.items()},
            {d: n if d in leading else max(n - 1, 2) for d, n in traced.items()},
        ]
    for spec in extra:
        parts = [part.partition("=") for part in spec.split(",")]
        sizes = {name.strip(): size.strip() for name, _, size in parts}
        for name, size in sizes.items():
            if name not in traced or not size.isdigit() or int(size) < 1:
                hint = nearest(name, traced) or f"dynamic axes are: {', '.join(traced) or 'none'}"
                raise UsageError("not of the form batch=1,seq=7", where=f"--check-sizes {spec}", hint=hint)
        found.append({**traced, **{name: int(size) for name, size in sizes.items()}})
    unique = {tuple(sorted(sizes.items())): sizes for sizes in found}
    return list(unique.values())
