"""Model and calibration samples to int8, with ONNX Runtime's own quantizer, as its documentation advises."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from feeds import feeds, parser
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(quantization.CalibrationDataReader):
    """Batches, once."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self._left, None)


def main() -> None:
    """Pre-process, quantize."""
    arguments = parser()
    arguments.add_argument("--method", choices=("dynamic", "MinMax", "Entropy", "Percentile"), required=True)
    arguments.add_argument("--op-types", nargs="+", help="default: all that it can")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(options.model, prepared)
        except Exception as error:  # noqa: BLE001 - the documented way round, for any error
            print(f"without symbolic shapes: {error}")
            quant_pre_process(options.model, prepared, skip_symbolic_shape=True)
        common = {
            "per_channel": True,
            "reduce_range": options.reduce_range,
            "weight_type": quantization.QuantType.QInt8,
            "op_types_to_quantize": options.op_types,
        }
        if options.method == "dynamic":
            quantization.quantize_dynamic(prepared, options.output, **common)
            return
        quantization.quantize_static(
            prepared,
            options.output,
            Reader(feeds(options)),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod[options.method],
            **common,
        )


if __name__ == "__main__":
    main()
