"""Model and calibration samples to int8, with onnx-neural-compressor's static quantization."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from feeds import feeds, parser
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize


class Reader(data_reader.CalibrationDataReader):
    """Batches, as often as asked."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._batches = batches
        self._left: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Start anew."""
        self._left = iter(self._batches)


def main() -> None:
    """Quantize."""
    arguments = parser()
    arguments.add_argument("--smooth", action="store_true")
    options = arguments.parse_args()
    batches = feeds(options)
    settings = config.StaticQuantConfig(
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=options.reduce_range,
        calibration_sampling_size=len(batches),
        execution_provider="CPUExecutionProvider",
        extra_options={"SmoothQuant": options.smooth},
    )
    quantize(options.model, options.output, settings)


if __name__ == "__main__":
    main()
