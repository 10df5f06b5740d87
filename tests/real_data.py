"""Inputs for the 22 sample models: real where ../shared/data has some, structural where it has not.

`samples(name, shared)` gives arrays for `Batches` (samples first) and whether they are real.
"""

from __future__ import annotations

import math
import wave
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def samples(name: str, shared: Path) -> tuple[Arrays, bool]:
    """({input: array}, real) for a model of ../shared/models, named without '.onnx'."""
    data = shared / "data"
    if name in _REAL:
        return _REAL[name](data), True
    return _STRUCTURAL[name](), False


def _magika(data: Path) -> Arrays:
    with np.load(data / "magika/eval_standard_v3_3.npz") as z:
        return {"bytes": z["bytes"].astype(np.int32), "labels": z["label"].astype(np.int64)}


def _snips(data: Path) -> Arrays:
    with np.load(data / "text/snips_transformer_eval.npz") as z:
        return {"ids": z["ids"].astype(np.int64), "labels": z["label"].astype(np.int64)}


def snips_calibration(data: Path) -> Arrays:
    with np.load(data / "text/snips_transformer_eval.npz") as z:
        return {"ids": z["calib_ids"].astype(np.int64)}


def _speech(data: Path, name: str = "silero_test.wav") -> np.ndarray:
    with wave.open(str(data / "audio" / name)) as file:
        raw = file.readframes(file.getnframes())
    return np.frombuffer(raw, np.int16).astype(np.float32) / 32768


def _silero(data: Path, count: int = 64) -> Arrays:
    """Frames of 64 old and 512 new samples, 16 kHz; state as at the start of a stream."""
    sound = _speech(data)
    starts = 16000 + 512 * np.arange(count)
    frames = np.stack([sound[s - 64 : s + 512] for s in starts])
    return {
        "input": frames[:, np.newaxis, :],
        "state": np.zeros((count, 2, 1, 128), np.float32),
        "sr": np.full(count, 16000, np.int64),
    }


def _dtln_1(data: Path, count: int = 64) -> Arrays:
    sound = _speech(data, "gtcrn_mix.wav")
    frames = np.stack([sound[8000 + 128 * i : 8512 + 128 * i] for i in range(count)])
    magnitude = np.abs(np.fft.rfft(frames)).astype(np.float32)
    return {
        "input_2": magnitude[:, np.newaxis, np.newaxis, :],
        "input_3": np.zeros((count, 1, 2, 128, 2), np.float32),
    }


def _dtln_2(data: Path, count: int = 64) -> Arrays:
    sound = _speech(data, "gtcrn_mix.wav")
    frames = np.stack([sound[8000 + 128 * i : 8512 + 128 * i] for i in range(count)])
    return {
        "input_4": frames[:, np.newaxis, np.newaxis, :],
        "input_5": np.zeros((count, 1, 2, 128, 2), np.float32),
    }


def _basic_pitch(data: Path) -> Arrays:
    """Sound read at 22,050 Hz; the pitch is off, the statistics of speech are not."""
    sound = _speech(data)
    return {"serving_default_input_2:0": np.stack([sound[43844 * i : 43844 * (i + 1)] for i in range(12)])[..., None]}


def _photos(data: Path, width: int, height: int, *, layout: str, scale: str) -> np.ndarray:
    """Crops of five photos, (20, 3, height, width) float32."""
    from PIL import Image

    crops = []
    for path in sorted((data / "images").glob("*.[jp][pn]g")):
        image = Image.open(path).convert("RGB")
        w, h = image.size
        boxes = ((0, 0, w, h), (0, 0, w // 2, h), (w // 2, 0, w, h), (w // 4, h // 4, w, h))
        crops += [np.asarray(image.crop(box).resize((width, height)), np.float32) for box in boxes]
    pixels = np.stack(crops).transpose(0, 3, 1, 2)
    if layout == "bgr":
        pixels = pixels[:, ::-1]
    if scale == "unit":
        mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
        spread = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
        pixels = (pixels / 255 - mean) / spread
    elif scale == "signed":
        pixels = (pixels - 127) / 128
    return np.ascontiguousarray(pixels)


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal(math.prod(shape)).reshape(shape).astype(np.float32)


_REAL = {
    "magika_standard_v3_3": _magika,
    "snips_transformer": _snips,
    "silero_vad_16k_op15": _silero,
    "dtln_model_1": _dtln_1,
    "dtln_model_2": _dtln_2,
    "basic_pitch_nmp": _basic_pitch,
    "yolox_nano": lambda d: {"images": _photos(d, 416, 416, layout="bgr", scale="raw")},
    "yunet_n_320_320": lambda d: {"input": _photos(d, 320, 320, layout="bgr", scale="raw")},
    "ultraface_RFB_320": lambda d: {"input": _photos(d, 320, 240, layout="rgb", scale="signed")},
    "osf_mnv3_detection_opt": lambda d: {"input": _photos(d, 224, 224, layout="rgb", scale="unit")},
    "mlperftiny_resnet8_cifar10": lambda d: {"image": _photos(d, 32, 32, layout="rgb", scale="raw")},
    "winml_SqueezeNet_fp16": lambda d: {"data_0": _photos(d, 224, 224, layout="bgr", scale="unit").astype(np.float16)},
}

_STRUCTURAL = {
    "lightgbm": lambda: {"input": _noise((40, 2))},
    "logreg_iris": lambda: {"float_input": _noise((39, 2))},
    "mlperftiny_ad_autoencoder": lambda: {"features": 10 * _noise((64, 640))},
    "mnist_cntk": lambda: {"Input3": np.abs(100 * _noise((40, 1, 28, 28)))},
    "superres_prepost_op18": lambda: {"image": np.zeros((8, 100), np.uint8)},
    "tract_qlstm_3-2-3_T3_S1": lambda: {"input": _noise((30, 3, 3))},
    "tract_xgboost_classifier_tree": lambda: {"input": _noise((40, 13))},
    "tribuo_lr_mnist": lambda: {"float_input": np.abs(_noise((40, 784)))},
    "tribuo_tinybert": lambda: {
        "input_ids": np.random.default_rng(0).integers(0, 1000, (40, 16)),
        "attention_mask": np.ones((40, 16), np.int64),
        "token_type_ids": np.zeros((40, 16), np.int64),
    },
    "vespa_custom_similarity": lambda: {"query": _noise((40, 384)), "document": _noise((40, 384), 1)},
}
