"""What is compared: the commands of onnxcomp and the jobs of the peers, one row of the table each."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxcomp import runtime
from peers.environments import Peer

JOBS = Path(__file__).resolve().parent / "jobs"

ONNXRUNTIME = Peer("onnxruntime", ("onnx", "onnxruntime", "sympy"))
NNCF = Peer("nncf", ("nncf==3.4.0", "onnx", "onnxruntime"))
#: 'neural-compressor' itself has no ONNX backend any more; prettytable and scipy it needs without saying so
NEURAL_COMPRESSOR = Peer(
    "onnx-neural-compressor",
    (
        "onnx-neural-compressor==1.0",
        "numpy==1.26.4",
        "ml_dtypes==0.5.4",
        "prettytable==3.18.0",
        "scipy",
        "onnx",
        "onnxruntime",
    ),
)

BOTH = ("minilm", "fashion")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to make an int8 model.

    Attributes:
        name: first cell of the row.
        arguments: behind model, calibration and output; of `onnxcomp quantize` where there is no peer.
        peer: whose environment it runs in; None: onnxcomp.
        job: file in `jobs`.
        models: which models it is for.
    """

    name: str
    arguments: tuple[str, ...]
    peer: Peer | None = None
    job: str = ""
    models: tuple[str, ...] = BOTH

    def command(self, model: Path, calibration: Path, output: Path) -> Sequence[Any]:
        """What makes `output`."""
        if self.peer is None:
            ours = [sys.executable, "-m", "onnxcomp", "quantize", model, "--data", calibration, "-o", output]
            return [*ours, "--quiet", *self.arguments]
        narrow = ["--reduce-range"] if runtime.saturates_int8() else []
        return [self.peer.python, JOBS / self.job, model, calibration, output, *narrow, *self.arguments]


#: as onnxcomp's command line takes them
OURS = (
    Row("onnxcomp dynamic", ("--mode", "dynamic")),
    Row("onnxcomp dynamic, smooth", ("--mode", "dynamic", "--smooth", "--correct-bias"), models=("minilm",)),
    Row("onnxcomp static", ("--mode", "static")),
    Row("onnxcomp static, smooth", ("--mode", "static", "--smooth", "--correct-bias"), models=("minilm",)),
    Row("onnxcomp static, correct-bias", ("--mode", "static", "--correct-bias"), models=("fashion",)),
    Row("onnxcomp static, mse", ("--mode", "static", "--calibration", "mse")),
)

PEERS = (
    Row("ORT dynamic, per channel", ("--method", "dynamic"), ONNXRUNTIME, "run_onnxruntime.py"),
    Row("ORT static, per channel, MinMax", ("--method", "MinMax"), ONNXRUNTIME, "run_onnxruntime.py"),
    Row(
        "ORT static, per channel, MinMax, operators with weights only",
        ("--method", "MinMax", "--op-types", "MatMul", "Gemm", "Gather"),
        ONNXRUNTIME,
        "run_onnxruntime.py",
        ("minilm",),
    ),
    Row("ORT static, per channel, Entropy", ("--method", "Entropy"), ONNXRUNTIME, "run_onnxruntime.py", ("fashion",)),
    Row("NNCF, transformer, SmoothQuant", ("--transformer",), NNCF, "run_nncf.py", ("minilm",)),
    Row("NNCF", (), NNCF, "run_nncf.py", ("fashion",)),
    Row("neural-compressor static", (), NEURAL_COMPRESSOR, "run_neural_compressor.py"),
    Row("neural-compressor SmoothQuant", ("--smooth",), NEURAL_COMPRESSOR, "run_neural_compressor.py", ("minilm",)),
)
