"""`onnxcomp distill`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import torchrun, work
from onnxcomp.cli.fields import given, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.passes.distill import Settings

_HELP = """Train a small model, the student, to answer as a large one does, the teacher.

\b
teacher: an .onnx file, or module:attr, file.py:attr with a PyTorch module.
student: an .onnx file (pruned, with layers taken out, or a small net's export),
         whose weights are trained in its own graph; or module:attr, file.py:attr
         with a PyTorch module that takes the teacher's inputs by name.
data:    samples like those that the model will see, without labels; a tenth
         judges and never trains.

\b
A layer or half of the neurons less, from the teacher itself: prune first.
  onnxcomp prune T.onnx --structure blocks --blocks 2 --data D -o S.onnx
  onnxcomp distill --teacher T.onnx --student S.onnx --data D -o OUT.onnx
Several processes, GPUs or hosts share the steps of one run:
  torchrun --nproc-per-node 2 -m onnxcomp distill ...

The best epoch on the judging samples is written; the student as it came is epoch 0,
and when nothing is better, nothing is written. Compare with --labels-weight 1, the
same training without a teacher, before you credit the teacher.
"""


@click.command("distill", help=_HELP)
@click.option(
    "--teacher", required=True, metavar="T.onnx|TARGET", help="What to learn from, best in float32; see above."
)
@click.option("--student", required=True, metavar="S.onnx|TARGET", help="What learns; see above.")
@click.option("--data", required=True, metavar="D", help="Samples: .npz, .npy, folder, FILE.py:fn.")
@shells.output_options
@click.option(
    "--hint",
    multiple=True,
    metavar="TEACHER=STUDENT[:LOSS]",
    help="Inner tensors that shall be alike, by hint (equal, any width), mse, cosine, rkd, attention or relation.",
)
@click.option(
    "--augment", metavar="FILE.py:FN", help="Changes the samples of each step: (arrays by name, numpy Generator)."
)
@click.option(
    "--quantization-aware", is_flag=True, help="The student is in int8 while it trains, and in the end; see quantize."
)
@click.option(
    "--cache", metavar="DIR", help="Keep the teacher's answers there: later epochs and runs do not ask again."
)
@click.option("--checkpoint", metavar="DIR", help="Keep the run there, every minute and epoch.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, where there is one.")
@click.option("--tensorboard", metavar="DIR", help="Write curves for TensorBoard, which must be installed.")
@shells.common()
@pass_options(Settings, without=("hint",))  # type: ignore[arg-type]  # it has the fields
def command(shell: Shell, teacher: str, student: str, data: str, output: str, **values: Any) -> None:
    """Train the student."""
    from onnxcomp.report import training

    names = ("augment", "quantization_aware", "cache", "checkpoint", "resume", "tensorboard", "force")
    options = {name: values[name] for name in names} | given(values, Settings)  # type: ignore[arg-type]  # same
    result = torchrun.speaker(shell).work(work.distill, teacher, student, data, output, **options)
    if not torchrun.speaks():
        return
    for warning in result["warnings"]:
        shell.note(f"warning: {warning}")
    shell.show(result, training.distilled)
