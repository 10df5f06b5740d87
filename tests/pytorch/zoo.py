"""Small architectures of every kind that people export, each with its inputs; random weights."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn import functional

from onnxcomp import worker
from onnxcomp.errors import OnnxcompError
from onnxcomp.pytorch import Exported, export


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))


class Cnn(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)) for _ in range(3)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.stem(image)
        for block in self.body:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Squeeze(nn.Module):
    """Inverted residual with squeeze and excitation, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish())
        self.deep = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1), nn.Hardsigmoid()
        )
        self.down = nn.Sequential(nn.Conv2d(32, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, image):
        x = self.deep(self.up(image))
        return image + self.down(x * self.gate(x))


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GroupNorm(2, 16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, image):
        one = self.one(image)
        up = self.up(self.two(one))
        up = functional.interpolate(up, size=one.shape[2:], mode="bilinear", align_corners=False)
        return self.last(torch.cat([one, up], 1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(8, 16, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.cells(x)[0]


class Branch(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v * 2, (x,))


class Tied(nn.Module):
    """A dictionary out, the embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        states = self.embed(ids)
        return {"states": states, "logits": self.head(states)}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        batch, seq, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, seq, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, seq, width))


class StaticLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        for i in range(x.shape[1] // 4):
            x = x + self.layer(x) * i
        return x


class PythonBranch(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x * 2


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


BATCH, SEQ = "0=batch", "1=seq"
VECTOR, IMAGE, TEXT = "float32[2,16]", "float32[2,3,8,8]", "float32[2,12,16]"

#: name -> (what builds it, inputs, dynamic axes)
ZOO = {
    "mlp": (Mlp, ["input:" + VECTOR], ["input:0=batch"]),
    "cnn": (Cnn, ["input:" + IMAGE], ["input:0=batch"]),
    "resnet": (Residual, ["image:" + IMAGE], ["image:0=batch"]),
    "mobilenet": (Squeeze, ["image:float32[2,8,8,8]"], ["image:0=batch", "image:2=height", "image:3=width"]),
    "unet": (Unet, ["image:float32[2,3,16,12]"], ["image:0=batch", "image:2=height", "image:3=width"]),
    "lstm": (lambda: Recurrent(nn.LSTM), ["x:float32[2,12,8]"], ["x:0=batch", "x:1=seq"]),
    "gru": (lambda: Recurrent(nn.GRU), ["x:float32[2,12,8]"], ["x:0=batch", "x:1=seq"]),
    "cond": (Branch, ["x:" + VECTOR], ["x:0=batch"]),
    "tied": (Tied, ["ids:int64[2,12]"], ["ids:0=batch", "ids:1=seq"]),
    "encoder": (encoder, ["src:" + TEXT], ["src:0=batch", "src:1=seq"]),
    "attention": (Attention, ["x:" + TEXT], ["x:0=batch", "x:1=seq"]),
    "causal": (Causal, ["x:" + TEXT], ["x:0=batch", "x:1=seq"]),
    "static loop": (StaticLoop, ["x:float32[2,12,8]"], ["x:0=batch"]),
}


def hugging_face(name: str) -> nn.Module:
    """A tiny random model of the family, as its own configuration class makes it."""
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {"vocab_size": 100, "max_position_embeddings": 64}
    makers = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**small, **text)),
        "distilbert": lambda: t.DistilBertModel(
            t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **text)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**small, image_size=32, patch_size=8)),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(image_size=32, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
        ),
    }
    torch.manual_seed(0)
    return makers[name]().eval()


def randomised(name: str) -> nn.Module:
    """In eval mode, every parameter and statistic random, the same each time: equal zeros hide what was mixed up."""
    torch.manual_seed(0)
    module = ZOO[name][0]() if name in ZOO else hugging_face(name)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if key.endswith("running_var") else torch.randn_like(tensor) / 4
                )
    return module.eval()


def export_one(name: str, folder: Path, **options) -> Exported:
    """The randomised architecture as `folder/name.onnx`; a transformers one by way of its own folder."""
    module = randomised(name)
    if name in ZOO:
        _, inputs, dynamic = ZOO[name]
        return export(module, folder / f"{name}.onnx", inputs=inputs, dynamic=dynamic, **options)
    from transformers.utils import logging

    logging.disable_progress_bar()
    module.save_pretrained(folder / name)
    return export(str(folder / name), folder / f"{name}.onnx", **options)


def export_all(names: list[str], folder: Path) -> dict[str, Exported | OnnxcompError]:
    """Export them one after the other in this process, which is a child already."""
    found: dict[str, Exported | OnnxcompError] = {}
    with mock.patch.object(worker, "isolated", lambda fn, job, **_: fn(job)):
        for name in names:
            worker.report(name)
            try:
                found[name] = export_one(name, folder)
            except OnnxcompError as error:
                found[name] = error
    return found
