"""The 22 real models: each verb gives an output that loads with its fidelity, or a typed refusal that says why.

`EXPECTED` holds what was reached; a model that gets worse, or better, shows as a difference here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
import real_data
from conftest import SHARED

from onnxcomp.errors import OnnxcompError
from onnxcomp.model import load
from onnxcomp.passes import (
    CastFloat,
    ClusterWeights,
    Equalize,
    Fuse,
    LowRank,
    PruneMagnitude,
    PruneStructured,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    Simplify,
    TieInitializers,
    UpgradeOpset,
)
from onnxcomp.pipeline import optimize_file, verify

#: column -> its passes, and what `optimize_file` is told besides
STEPS = {
    "simplify": ([Simplify()], {}),
    "quantize-dynamic": ([QuantizeDynamic()], {}),
    "quantize-static": ([QuantizeStatic()], {}),
    "prune-magnitude": ([PruneMagnitude(sparsity=0.3)], {}),
    "cast-float": ([CastFloat()], {}),
    "fuse": ([Simplify(), Fuse()], {"allow_no_effect": ["simplify"]}),
    "upgrade-opset": ([UpgradeOpset(opset=17), Simplify()], {"allow_no_effect": ["simplify"], "allow_larger": True}),
    "equalize": ([Equalize()], {"allow_larger": True}),
    "quantize-weights": ([QuantizeWeights(bits=4)], {}),
    # a block of any host, so that the outcome is the same everywhere
    "prune-structured": ([PruneStructured(sparsity=0.3, align=4)], {}),
    "tie-initializers": ([TieInitializers()], {}),
    "cluster-weights": ([ClusterWeights(bits=4)], {}),
    "low-rank": ([LowRank(keep=0.6, allocation="uniform")], {}),
}

#: model -> outcome of each column, in the order of `STEPS`
EXPECTED: dict[str, str] = {
    "basic_pitch_nmp": "ok NoEffectError ok ok ok NoEffectError ok ok NoEffectError ok NoEffectError ok ok",
    "dtln_model_1": "ok ok ok ok ok NoEffectError ok NoEffectError ok NoEffectError ok ok ok",
    "dtln_model_2": "ok ok ok ok ok NoEffectError ok NoEffectError ok NoEffectError ok ok ok",
    "lightgbm": (
        "ok NoEffectError NoEffectError NoEffectError NoEffectError "
        "NoEffectError ok NoEffectError NoEffectError NoEffectError NoEffectError NoEffectError NoEffectError"
    ),
    "logreg_iris": 13 * "NoEffectError ",
    "magika_standard_v3_3": "ok ok ok ok ok ok ok NoEffectError ok ok NoEffectError ok ok",
    "mlperftiny_ad_autoencoder": "ok ok ok ok ok NoEffectError ok ok ok ok NoEffectError ok ok",
    "mlperftiny_resnet8_cifar10": "ok ok ok ok ok NoEffectError ok ok ok ok NoEffectError ok ok",
    "mnist_cntk": "ok ok ok ok ok NoEffectError ok ok ok ok NoEffectError ok NoEffectError",
    "osf_mnv3_detection_opt": (
        "ok NoEffectError ok ok ok NoEffectError ok NoEffectError NoEffectError ok ok ok NoEffectError"
    ),
    "silero_vad_16k_op15": "ok NoEffectError ok ok ok NoEffectError ok ok NoEffectError ok ok ok ok",
    "snips_transformer": "NoEffectError ok ok ok ok ok NoEffectError NoEffectError ok ok NoEffectError ok ok",
    "superres_prepost_op18": 13 * "UnsupportedError ",
    "tract_qlstm_3-2-3_T3_S1": (
        "ok UnsupportedError UnsupportedError NoEffectError NoEffectError "
        "NoEffectError ok NoEffectError UnsupportedError UnsupportedError NoEffectError NoEffectError UnsupportedError"
    ),
    "tract_xgboost_classifier_tree": 13 * "NoEffectError ",
    "tribuo_lr_mnist": (
        "ok NoEffectError NoEffectError NoEffectError NoEffectError "
        "NoEffectError ok NoEffectError NoEffectError NoEffectError NoEffectError NoEffectError NoEffectError"
    ),
    "tribuo_tinybert": "ok ok ok ok ok ok ok NoEffectError ok ok ok ok ok",
    "ultraface_RFB_320": "ok NoEffectError ok ok ok NoEffectError ok ok NoEffectError ok ok NoEffectError ok",
    "vespa_custom_similarity": "NoEffectError ok ok ok ok NoEffectError ok ok ok ok NoEffectError ok ok",
    "winml_SqueezeNet_fp16": (
        "ok NoEffectError ok ok NoEffectError NoEffectError ok NoEffectError NoEffectError ok NoEffectError ok ok"
    ),
    "yolox_nano": "ok NoEffectError ok ok ok NoEffectError ok NoEffectError NoEffectError ok ok ok ok",
    "yunet_n_320_320": "ok NoEffectError ok ok ok NoEffectError ok ok NoEffectError ok ok ok ok",
}

#: samples that calibrate and judge; enough for a result, few enough for a test
COUNT = 20


def outcome(name: str, step: str, folder: Path) -> str:
    source = SHARED / "models" / f"{name}.onnx"
    arrays, _ = real_data.samples(name, SHARED)
    arrays = {key: value[:COUNT] for key, value in arrays.items() if key != "labels"}
    output = folder / "out.onnx"
    passes, options = STEPS[step]
    try:
        record = optimize_file(source, output, passes, data=arrays, batch_size=4, **options)
    except OnnxcompError as error:
        left = [path.name for path in folder.iterdir()]
        return type(error).__name__ + (f", and left {left}" if left else "")
    verify(output)
    assert record.fidelity is not None
    if step in ("simplify", "fuse", "upgrade-opset"):
        assert record.equivalence is not None
        assert record.equivalence <= 1e-5
    if step == "upgrade-opset":
        assert load(output).opset_imports[""] == 17
    if step == "prune-structured":
        effect = record.passes[0].effect
        assert effect["equivalence_error"] <= (1e-2 if "fp16" in name else 1e-5)
        assert 0 < effect["removed_parameters"] < effect["parameters"]
        assert record.size_ratio < 1
        assert all(refused["reason"] for refused in effect["refused"])
        onnx.checker.check_model(onnx.load(output), full_check=True)
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
