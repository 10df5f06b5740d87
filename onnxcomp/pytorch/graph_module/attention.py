"""Attention as one operator: the standard one of opset 23, and those of com.microsoft that fusions write."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call


def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Opset 23. (batch, heads, sequence, size), or (batch, sequence, heads size) with both head counts given.

    Fewer key heads than query heads are shared among them. A boolean mask keeps where it holds, a float
    one is added. Also gives keys and values with the past before them, and the scores that
    `qk_matmul_output_mode` asks for.
    """
    packed = q.ndim == 3
    if packed:
        q = _heads(q, call.get("q_num_heads"))
        k, v = _heads(k, call.get("kv_num_heads")), _heads(v, call.get("kv_num_heads"))
    k = k if past_key is None else torch.cat([past_key, k], 2)
    v = v if past_value is None else torch.cat([past_value, v], 2)
    shared = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scale = call.get("scale") or q.shape[-1] ** -0.5
    # the root on either side, as ONNX defines it: products stay smaller
    scores = (q * scale**0.5) @ (keys * scale**0.5).mT
    cap = call.get("softcap", 0.0)
    capped = cap * torch.tanh(scores / cap) if cap else scores
    masked = capped + _bias(call, scores, mask, 0 if past_key is None else past_key.shape[2])
    # a row that nothing attends to is zero
    nothing = (masked == -torch.inf).all(-1, keepdim=True)
    shares = masked.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    stages = [scores, capped, masked, shares]
    y = stages[3] @ values
    y = y.transpose(1, 2).flatten(2) if packed else y
    return y, k, v, stages[call.get("qk_matmul_output_mode", 0)]


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:-1], count, -1).transpose(1, 2)


def _bias(call: Call, scores: Tensor, mask: Tensor | None, past: int) -> Tensor:
    """What is added to the scores: the mask, and minus infinity after the diagonal where attention is causal."""
    bias = scores.new_zeros(scores.shape[-2:])
    if call.get("is_causal", 0):
        bias = bias.masked_fill(torch.ones_like(bias, dtype=torch.bool).triu(1 + past), -torch.inf)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = scores.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return bias + mask


def multi_head_attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    scores_bias: Tensor | None = None,
) -> Tensor:
    """com.microsoft's MultiHeadAttention over (batch, sequence, heads size) tensors, without a past.

    k and v may also be (batch, heads, sequence, size). `bias` (3 widths,) is added to q, k and v;
    `scores_bias` to the scores; `padding` (batch, keys) is 0 for keys to leave out.
    """
    if bias is not None:
        parts = torch.split_with_sizes(bias, [q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = q + parts[0], k + parts[1], v + parts[2]
    count = call.get("num_heads")
    key, value = (x if x.ndim == 4 else _heads(x, count) for x in (k, v))
    return _weighted(call, _heads(q, count), key, value, padding, scores_bias)


def packed_attention(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    _: Tensor | None = None,
    scores_bias: Tensor | None = None,
) -> Tensor:
    """com.microsoft's Attention: one product gives q, k and v of x (batch, sequence, width), without a past."""
    packed = x @ weight if bias is None else x @ weight + bias
    sizes = call.get("qkv_hidden_sizes") or [packed.shape[-1] // 3] * 3
    count = call.get("num_heads")
    query, key, value = (_heads(part, count) for part in torch.split_with_sizes(packed, list(sizes), -1))
    return _weighted(call, query, key, value, padding, scores_bias)


def _weighted(
    call: Call, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, scores_bias: Tensor | None
) -> Tensor:
    scale: float = call.get("scale") or query.shape[-1] ** -0.5
    scores = query @ key.mT * scale
    scores = scores if scores_bias is None else scores + scores_bias
    low: float = call.get("mask_filter_value", -10000.0)
    if padding is not None:
        left_out = padding.reshape(len(padding), 1, 1, -1) == 0
        scores = scores + scores.new_zeros(left_out.shape).masked_fill(left_out, low)
    if call.get("unidirectional", 0):
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(after, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def rotary_embedding(call: Call, x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensor:
    """Opset 23: rotate pairs of elements of each head by angles of their position (Su et al. 2021)."""
    packed = x.ndim == 3
    heads = _heads(x, call.get("num_heads")) if packed else x
    size = call.get("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :size], heads[..., size:]
    if positions is not None:
        cosines, sines = cosines[positions.long()], sines[positions.long()]
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    if call.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    real, imaginary = cosines * a - sines * b, sines * a + cosines * b
    if call.get("interleaved", 0):
        turned = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2).flatten(2) if packed else y
