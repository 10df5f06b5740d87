"""Second moments of what a node multiplies with its weight: what least squares and rounding need of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp.activations.exact import on_grid
from onnxcomp.activations.observe import groups_within, observe
from onnxcomp.activations.statistics import State
from onnxcomp.activations.window import Window, window_of
from onnxcomp.data import Batches
from onnxcomp.errors import UnsupportedError

#: rows of one product: with more of them a float64 sum would keep fewer bits of each
_ROWS = 1 << 11

#: elements of rows that are unfolded at a time
_UNFOLDED = 1 << 22

#: bytes of the Gram matrices that one pass over the data fills
_BUDGET = 512 << 20


class Moments:
    """The Gram matrix of the rows that a node multiplies with its weight, their sum and their number.

    MatMul and Gemm: a row is the last axis. Conv: the patch below the kernel, padding included, as (channels of a
    group, kernel axes): the order of the weight's axes behind the first. The outputs of a weight `w`,
    (out, width), have the mean square `((w @ gram) * w).sum(1) / count`.

    Sums are exact but for a rounding of each number to 2**-22 of the largest of its column among 2,048 rows, and
    so are the same on any number of threads.

    Args:
        window: how a Conv cuts its input; None for MatMul and Gemm.

    Attributes:
        gram: float64, (groups, width, width), groups 1 but for Conv; empty before the first batch.
        total: float64, (groups, width).
        count: rows.
    """

    def __init__(self, window: Window | None = None) -> None:
        self.window = window
        self.gram = np.zeros((0, 0, 0))
        self.total = np.zeros((0, 0))
        self.count = 0

    @property
    def name(self) -> str:
        """What it keeps."""
        return f"moments of {self.window or 'rows'}"

    def update(self, array: np.ndarray) -> None:
        """Add a batch: (..., width), or (samples, channels, ...) for a Conv."""
        if array.size == 0:
            return
        rows = self.window.patches(array) if self.window else array.reshape(-1, 1, array.shape[-1])
        axes = array.ndim - 1 if self.window else 1
        groups, width = rows.shape[axes], math.prod(rows.shape[axes + 1 :])
        if not self.count:
            self.gram, self.total = np.zeros((groups, width, width)), np.zeros((groups, width))
        for piece in _pieces(rows, axes, max(min(_ROWS, _UNFOLDED // (groups * width)), 1)):
            self._add(piece.reshape(-1, groups, width).swapaxes(0, 1))

    def state(self) -> State:
        """All of it as arrays."""
        return {"gram": self.gram, "total": self.total, "count": np.array(self.count)}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.gram, self.total, self.count = state["gram"], state["total"], int(state["count"])

    def _add(self, rows: np.ndarray) -> None:
        """Rows (groups, at most _ROWS, width)."""
        exact = on_grid(rows, 1, _ROWS)
        self.gram += exact.swapaxes(1, 2) @ exact
        self.total += exact.sum(1)
        self.count += rows.shape[1]


def moments_of(node: ir.Node) -> Moments:
    """The statistic of input 0 of a MatMul, Gemm or Conv that multiplies it with a weight.

    Raises UnsupportedError for other operators, a Gemm with transA, and a Conv whose kernel has no known shape.
    """
    where = f"node {node.name or node.op_type}"
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        raise UnsupportedError(f"{node.op_type} has no rows that a weight multiplies", where=where)
    if node.op_type == "Conv":
        return Moments(window_of(node))
    if node.attributes.get_int("transA", 0):
        raise UnsupportedError("a Gemm with transA multiplies columns", where=where)
    return Moments()


def observe_moments(
    model: ir.Model,
    data: Batches,
    widths: Mapping[ir.Node, int],
    *,
    workdir: Path,
    store: Path | None = None,
    budget: int = _BUDGET,
) -> Iterator[dict[ir.Node, Moments]]:
    """The moments of what these nodes multiply, for some of the nodes at a time.

    There is one pass over the data for each time, and Gram matrices stand in memory together that take at most
    `budget` bytes, or a single one: drop them before the next. Nodes that read the same tensor in the same way
    share them.

    Args:
        model: stays as it is.
        data: samples.
        widths: {node of the main graph: numbers in a row, for Conv those of one group}.
        workdir: a private folder.
        store: a folder that keeps them, as for `observe`.
        budget: bytes.

    Raises what `moments_of` and `observe` raise.
    """
    readers: dict[tuple[str, str], list[ir.Node]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for node, width in widths.items():
        made = moments_of(node)
        value = node.inputs[0]
        key = (value.name or "" if value is not None else "", made.name)
        readers.setdefault(key, []).append(node)
        sizes[key] = 8 * width * width * (made.window.groups if made.window else 1)
    turns = groups_within(sizes, budget)
    for number, turn in enumerate(turns):
        seen = {key: moments_of(readers[key][0]) for key in turn}
        wanted: dict[str, list[Moments]] = {}
        for key, moments in seen.items():
            wanted.setdefault(key[0], []).append(moments)
        observe(model, data, wanted, workdir=workdir, store=store, part=(number, len(turns)))
        found = {node: moments for key, moments in seen.items() for node in readers[key]}
        del seen, wanted
        yield found


def _pieces(rows: np.ndarray, axes: int, limit: int) -> Iterator[np.ndarray]:
    """Views with at most `limit` rows each; rows lie along the first `axes` axes."""
    count = math.prod(rows.shape[:axes])
    if count <= limit:
        yield rows
        return
    axis = next(i for i in range(axes) if rows.shape[i] > 1)
    step = max(rows.shape[axis] * limit // count, 1)
    for start in range(0, rows.shape[axis], step):
        yield from _pieces(rows[(slice(None),) * axis + (slice(start, start + step),)], axes, limit)
