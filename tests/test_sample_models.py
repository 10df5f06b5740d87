"""The 22 real models: each verb gives an output that loads with its fidelity, or a typed refusal that says why.

`EXPECTED` holds what was reached; a model that gets worse, or better, shows as a difference here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import real_data
from conftest import SHARED

from onnxcomp.errors import OnnxcompError
from onnxcomp.passes import CastFloat, PruneMagnitude, QuantizeDynamic, QuantizeStatic, Simplify
from onnxcomp.pipeline import optimize_file, verify

STEPS = {
    "simplify": Simplify(),
    "quantize-dynamic": QuantizeDynamic(),
    "quantize-static": QuantizeStatic(),
    "prune-magnitude": PruneMagnitude(sparsity=0.3),
    "cast-float": CastFloat(),
}

#: model -> outcome of simplify, quantize-dynamic, quantize-static, prune-magnitude, cast-float
EXPECTED: dict[str, str] = {
    "basic_pitch_nmp": "ok NoEffectError ok ok ok",
    "dtln_model_1": "ok ok ok ok ok",
    "dtln_model_2": "ok ok ok ok ok",
    "lightgbm": "ok NoEffectError NoEffectError NoEffectError NoEffectError",
    "logreg_iris": "NoEffectError NoEffectError NoEffectError NoEffectError NoEffectError",
    "magika_standard_v3_3": "ok ok ok ok ok",
    "mlperftiny_ad_autoencoder": "ok ok ok ok ok",
    "mlperftiny_resnet8_cifar10": "ok ok ok ok ok",
    "mnist_cntk": "ok ok ok ok ok",
    "osf_mnv3_detection_opt": "ok NoEffectError UnsupportedError ok ok",
    "silero_vad_16k_op15": "ok NoEffectError ok ok ok",
    "snips_transformer": "NoEffectError ok ok ok ok",
    "superres_prepost_op18": "UnsupportedError UnsupportedError UnsupportedError UnsupportedError UnsupportedError",
    "tract_qlstm_3-2-3_T3_S1": "ok UnsupportedError UnsupportedError NoEffectError NoEffectError",
    "tract_xgboost_classifier_tree": "NoEffectError NoEffectError NoEffectError NoEffectError NoEffectError",
    "tribuo_lr_mnist": "ok NoEffectError NoEffectError NoEffectError NoEffectError",
    "tribuo_tinybert": "ok ok ok ok ok",
    "ultraface_RFB_320": "ok NoEffectError ok ok ok",
    "vespa_custom_similarity": "NoEffectError ok ok ok ok",
    "winml_SqueezeNet_fp16": "ok UnsupportedError UnsupportedError ok NoEffectError",
    "yolox_nano": "ok NoEffectError ok ok ok",
    "yunet_n_320_320": "ok NoEffectError ok ok ok",
}

#: samples that calibrate and judge; enough for a result, few enough for a test
COUNT = 20


def outcome(name: str, step: str, folder: Path) -> str:
    source = SHARED / "models" / f"{name}.onnx"
    arrays, _ = real_data.samples(name, SHARED)
    arrays = {key: value[:COUNT] for key, value in arrays.items() if key != "labels"}
    output = folder / "out.onnx"
    try:
        record = optimize_file(source, output, [STEPS[step]], data=arrays, batch_size=4)
    except OnnxcompError as error:
        left = [path.name for path in folder.iterdir()]
        return type(error).__name__ + (f", and left {left}" if left else "")
    verify(output)
    assert record.fidelity is not None
    if step == "simplify":
        assert record.equivalence is not None
        assert record.equivalence <= 1e-5
    if step == "cast-float":
        assert record.equivalence is not None
        assert record.size_ratio < 0.75
    return "ok"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", sorted(p.stem for p in (SHARED / "models").glob("*.onnx")))
def test_real_model(name, step, shared, tmp_path):
    source = shared / "models" / f"{name}.onnx"
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    assert outcome(name, step, tmp_path) == dict(zip(STEPS, EXPECTED[name].split(), strict=True))[step]
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
