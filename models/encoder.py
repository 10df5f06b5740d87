"""What the text models share: the layer of a transformer encoder, its mask, mean pooling."""

from __future__ import annotations

import torch
from torch import nn

#: added to the scores of padding: its share is 0 in float32 and float16, and a row of nothing but padding stays finite
_MASKED = -1e4


class Layer(nn.Module):
    """Self-attention and two linear layers, each with a shortcut and a LayerNorm behind it (Devlin et al. 2019)."""

    def __init__(self, width: int, heads: int, inner: int, *, epsilon: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x: float32, (batch, seq, width); mask: float32, (batch, 1, 1, seq), added to the scores -> as x."""
        batch, seq, width = x.shape
        query, key, value = (
            part(x).view(batch, seq, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = self.attended(mixed.transpose(1, 2).reshape(batch, seq, width))
        x = self.norm1(x + self.dropout(mixed))
        y = self.outer(nn.functional.gelu(self.inner(x)))
        result: torch.Tensor = self.norm2(x + self.dropout(y))
        return result


def mask_of(keep: torch.Tensor) -> torch.Tensor:
    """keep: float32, (batch, seq), 1 for a token, 0 for padding -> (batch, 1, 1, seq), to add to scores."""
    return (1 - keep[:, None, None, :]) * _MASKED


def mean_of(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The mean over tokens; zeros where there is none.

    x: float32, (batch, seq, width); keep: float32, (batch, seq) -> (batch, width).
    """
    return (x * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
