"""Model and calibration samples to int8, with NNCF's post-training quantization of ONNX models."""

from __future__ import annotations

import nncf
import onnx
from feeds import feeds, parser


def main() -> None:
    """Quantize; SmoothQuant is part of `ModelType.TRANSFORMER`."""
    options = parser().parse_args()
    batches = feeds(options)
    kind = nncf.ModelType.TRANSFORMER if options.transformer else None
    model = onnx.load(options.model)
    onnx.save(nncf.quantize(model, nncf.Dataset(batches), model_type=kind, subset_size=len(batches)), options.output)


if __name__ == "__main__":
    main()
