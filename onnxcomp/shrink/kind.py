"""What a model is made of: what decides over which passes may pay."""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import Any

from onnxcomp import model as models
from onnxcomp.inspect import op_counts, weights

_CONVOLUTIONS = {"Conv", "ConvTranspose", "FusedConv"}
_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_TABLES = {"Gather", "GatherBlockQuantized"}
_NORMS = {"LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """Facts about a model.

    Attributes:
        bytes: of its file and external data.
        weights: stored tensors of two or more axes that nodes multiply with or look up.
        quantized: share of them in 8 bits or fewer.
        convolutions, products, recurrent, tables: share of their bytes by what uses them.
        transformer: whether it normalizes layers and has a softmax.
        sums: nodes that add two values, which residual branches end in.
        normalizes: whether it has BatchNormalization, with which it trains better than without.
        operators: how often each operator occurs.
    """

    bytes: int
    weights: int
    quantized: float
    convolutions: float
    products: float
    recurrent: float
    tables: float
    transformer: bool
    sums: int
    normalizes: bool
    operators: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Look at a file. Raises what `onnxcomp.model.load` raises."""
    model = models.load(path)
    sizes: collections.Counter[str] = collections.Counter()
    found = weights(model)
    for weight in found:
        sizes[_use(weight.node.op_type)] += weight.tensor.nbytes
    total = max(sum(sizes.values()), 1)
    ops = op_counts(model)
    names = {name.rpartition("::")[2] for name in ops}
    return Kind(
        bytes=models.total_bytes(path),
        weights=len(found),
        quantized=sum(w.quantized for w in found) / max(len(found), 1),
        convolutions=sizes["convolutions"] / total,
        products=sizes["products"] / total,
        recurrent=sizes["recurrent"] / total,
        tables=sizes["tables"] / total,
        transformer=bool(names & _NORMS) and ("Softmax" in names or any("Attention" in n for n in names)),
        sums=sum(count for name, count in ops.items() if name.rpartition("::")[2] == "Add"),
        normalizes="BatchNormalization" in names,
        operators=dict(ops),
    )


def _use(op_type: str) -> str:
    if op_type in _CONVOLUTIONS:
        return "convolutions"
    if op_type in _RECURRENT:
        return "recurrent"
    return "tables" if op_type in _TABLES else "products"
