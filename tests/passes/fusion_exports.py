"""Modules with attention as people export them; one process writes all of them."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import nn

IDS, MASK = ("ids", {0: "batch", 1: "seq"}), ("mask", {0: "batch", 1: "seq"})
STATES, OTHERS = ("x", {0: "batch", 1: "seq"}), ("others", {0: "batch", 1: "other"})
IMAGE = ("image", {0: "batch"})


class Text(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids, mask):
        return self.inner(input_ids=ids, attention_mask=mask, use_cache=False)[0]


class Picture(Text):
    def forward(self, image):
        return self.inner(pixel_values=image)[0]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x, mask=None):
        return self.inner(x, src_key_padding_mask=mask)


class CrossAttention(nn.Module):
    """By default torch's module asks for the weights, and so takes another path."""

    def __init__(self, need_weights):
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x, others):
        return self.inner(x, others, others, need_weights=self.need_weights)[0]


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        batch, seq, _ = x.shape
        q, k, v = (t.reshape(batch, seq, 4, 8).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).reshape(batch, seq, 32))


def text(name, attention):
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    common = {"vocab_size": 50, "attn_implementation": attention}
    if name == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        return Text(hf.BertModel(hf.BertConfig(**sizes, **common), add_pooling_layer=False))
    if name == "distilbert":
        sizes = {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
        return Text(hf.DistilBertModel(hf.DistilBertConfig(**sizes, **common)))
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return Text(hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **common)))


def vit(attention):
    import transformers as hf

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = hf.ViTConfig(image_size=16, patch_size=4, attn_implementation=attention, **sizes)
    return Picture(hf.ViTModel(config, add_pooling_layer=False))


#: name -> (module, inputs, layers of attention)
EXPORTS = {
    **{
        f"{name}-{attention}": (lambda name=name, attention=attention: text(name, attention), (IDS, MASK), layers)
        for name, layers in (("bert", 2), ("distilbert", 1), ("gpt2", 1))
        for attention in ("sdpa", "eager")
    },
    "vit-sdpa": (lambda: vit("sdpa"), (IMAGE,), 1),
    "vit-eager": (lambda: vit("eager"), (IMAGE,), 1),
    "encoder": (Encoder, (STATES,), 1),
    "encoder-padded": (Encoder, (STATES, MASK), 1),
    "cross": (lambda: CrossAttention(False), (STATES, OTHERS), 1),
    "cross-weights": (lambda: CrossAttention(True), (STATES, OTHERS), 1),
    "causal": (Causal, (STATES,), 1),
}


def export_all(folder: Path, names: list[str]) -> None:
    for name in names:
        make, inputs, _ = EXPORTS[name]
        torch.manual_seed(0)
        module = make().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        examples = tuple(example(key, name) for key, _ in inputs)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=20,
                dynamic_shapes=tuple(axes for _, axes in inputs),
                input_names=[key for key, _ in inputs],
                output_names=["result"],
            )
        program.save(folder / f"{name}.onnx")


def example(key, name):
    if key == "image":
        return torch.randn(2, 3, 16, 16)
    if key == "ids":
        return torch.randint(0, 50, (2, 12))
    if key == "mask":
        return torch.zeros(2, 12, dtype=torch.bool) if name == "encoder-padded" else torch.ones(2, 12, dtype=torch.long)
    return torch.randn(2, 12 if key == "x" else 7, 32)
