"""A small transformer encoder that tells the intent of a sentence."""

from __future__ import annotations

import torch
from onnxcomp_models import encoder
from torch import nn

#: rows of the word table: padding, unknown, and the most frequent words
VOCABULARY = 4096
PADDING, UNKNOWN = 0, 1
WIDTH, HEADS, INNER, LAYERS = 128, 4, 512, 2
STUDENT_WIDTH = 64
INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)


class Snips(nn.Module):
    """Word ids to intent scores. Padding has no influence; a sentence has no longest length."""

    rates: torch.Tensor

    def __init__(self, width: int = WIDTH, *, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        rates = 10_000 ** -(torch.arange(0, width, 2) / width)
        self.register_buffer("rates", rates, persistent=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        inner = width * INNER // WIDTH
        self.layers = nn.ModuleList(
            encoder.Layer(width, HEADS, inner, epsilon=1e-5, dropout=0.1) for _ in range(LAYERS)
        )
        self.head = nn.Linear(width, len(INTENTS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: int64, (batch, seq), 0 is padding -> scores: float32, (batch, 7)."""
        keep = (ids != PADDING).to(self.words.weight.dtype)
        mask = encoder.mask_of(keep)
        x = self.dropout(self.norm(self.words(ids) + self._positions(ids)))
        for layer in self.layers:
            x = layer(x, mask)
        scores: torch.Tensor = self.head(self.dropout(encoder.mean_of(x, keep)))
        return scores

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of the places (Vaswani et al. 2017): float32, (seq, width)."""
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.rates
        return torch.cat((angles.sin(), angles.cos()), 1)


def build() -> nn.Module:
    """The untrained network, in eval mode."""
    return Snips().eval()


def student() -> nn.Module:
    """The same at half of the width, with two fifths of the parameters: to be distilled into. In eval mode."""
    return Snips(STUDENT_WIDTH).eval()
