"""A local Hugging Face folder: config.json and safetensors, never code or pickles of its own."""

from __future__ import annotations

import importlib.util
import inspect as python_inspect
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import nn

from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.pytorch.capture import first_line, quiet
from onnxcomp.pytorch.specs import Input

#: sizes that a text model is traced at, and of an image whose size the configuration does not say
_BATCH, _TOKENS, _PIXELS = 2, 16, 224


def load(folder: Path) -> tuple[nn.Module, list[Input]]:
    """(model in eval mode, its inputs with batch and sequence open).

    The class is the one that config.json names. Text models take input_ids, attention_mask and, where
    they have segments, token_type_ids; image models pixel_values. Caches are off: a decoder gives
    the logits of all positions.

    Raises DataError (no config.json or safetensors, damaged, or incomplete), UnsupportedError (transformers is
    missing, code of the folder's own, a kind of input that is not text or image).
    """
    config = _config(folder)
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError("this folder needs transformers", where=folder, hint="pip install 'onnxcomp[hf]'")
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
    import transformers

    listed = config.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else None
    cls = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UnsupportedError(f"transformers has no class '{name}'", where=folder / "config.json: architectures")
    with quiet():
        try:
            model, loading = cls.from_pretrained(  # type: ignore[attr-defined]
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype="float32",
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise DataError(f"the model cannot be loaded: {first_line(error)}", where=folder) from error
    if missing := sorted(loading["missing_keys"]):
        raise DataError(
            f"the weights of {len(missing)} parameters are not in the folder, such as {missing[0]}",
            where=folder,
            hint="transformers would make them up; save the trained model with save_pretrained",
        )
    model.config.use_cache = False
    model.config.return_dict = True
    return model.eval(), _inputs(model, folder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise DataError(
            "no config.json in the folder", where=folder, hint="name a local Hugging Face folder"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError("config.json cannot be read", where=folder) from error
    if not isinstance(config, dict):
        raise DataError("config.json is not an object", where=folder)
    if "auto_map" in config:
        raise UnsupportedError(
            "the folder brings code of its own, which is never run", where=folder, hint="export it as file.py:attr"
        )
    if not list(folder.glob("*.safetensors")):
        raise DataError(
            "no .safetensors in the folder; pickled weights are not loaded",
            where=folder,
            hint="save it again with save_pretrained",
        )
    return config


def _inputs(model: Any, folder: Path) -> list[Input]:
    config, main = model.config, model.main_input_name
    if main == "pixel_values":
        size = getattr(config, "image_size", None) or _PIXELS
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return [Input(main, "float32", (_BATCH, getattr(config, "num_channels", 3), height, width), {0: "batch"})]
    if main != "input_ids" or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"models that take '{main}' are not supported", where=folder)
    arguments = python_inspect.signature(model.forward).parameters
    tokens = min(_TOKENS, getattr(config, "max_position_embeddings", 64) // 4)
    vocabulary = getattr(config, "vocab_size", 2)
    # ids that mean something to the model itself, such as padding, may change how it counts positions
    special = {v for k in ("pad", "bos", "eos") if isinstance(v := getattr(config, f"{k}_token_id", None), int)}
    ids = np.random.default_rng(0).choice(sorted(set(range(vocabulary)) - special), (_BATCH, tokens))
    axes = {0: "batch", 1: "seq"}
    found = [Input(main, "int64", ids.shape, axes, example=ids)]
    if "attention_mask" in arguments:
        found.append(Input("attention_mask", "int64", ids.shape, axes, mask=True))
    if "token_type_ids" in arguments and getattr(config, "type_vocab_size", 0) > 1:
        found.append(Input("token_type_ids", "int64", ids.shape, axes))
    return found
