"""`onnxcomp quantize`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli import work
from onnxcomp.cli.fields import given, not_of, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.passes import CorrectBias, Equalize, Pass, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Smooth

_MODES: dict[str, type[Pass]] = {"dynamic": QuantizeDynamic, "static": QuantizeStatic, "weights": QuantizeWeights}

#: option -> what runs before the quantization, in this order
_BEFORE: dict[str, type[Pass]] = {"equalize": Equalize, "smooth": Smooth, "correct_bias": CorrectBias}


_HELP = """Quantize MODEL to int8, or its weights alone to 4 or 8 bits.

\b
dynamic: int8 weights, activations while running; no data needed; transformers, MLPs, LSTMs.
static:  int8 weights and activations with ranges from --data; CNNs.
weights: 4 or 8 bits in blocks, rounded by --data where given; memory-bound models at batch 1.
"""


@click.command("quantize", help=_HELP)
@verbs.pass_verb
@click.option("--mode", type=click.Choice(tuple(_MODES)), required=True, help="See above; static needs --data.")
@click.option("--equalize", is_flag=True, help="First even out channels between layers; for --per-tensor.")
@click.option("--smooth", is_flag=True, help="First move outliers of activations into weights; for transformers.")
@click.option("--correct-bias", is_flag=True, help="First take the mean error of int8 weights out of the biases.")
@click.option("--max-drop", metavar="D", help="Leave the fewest nodes in float that keep the drop on --eval within D.")
@click.option("--eval", "evaluation", metavar="E", help="Labelled samples that judge --max-drop, not those of --data.")
@click.option("--metric", metavar="M", help="Of --max-drop, as in evaluate [default: accuracy].")
@click.option("--statistics", "store", metavar="DIR", help="Keep what calibration counted; a broken run goes on.")
@click.option("--explain", is_flag=True, help="Say what ONNX Runtime makes of the result: kernels, nodes in float.")
@click.option("--measure/--no-measure", default=True, help="Time the result against MODEL, 2 s [default: on].")
@pass_options(QuantizeDynamic, QuantizeStatic, QuantizeWeights)
def command(shell: Shell, model: str, mode: str, **values: Any) -> None:
    """Quantize MODEL."""
    cls = _MODES[mode]
    before = [step for option, step in _BEFORE.items() if values[option]]
    _check(mode, values)
    wanted = given(values, cls)
    shared = {name: value for name, value in wanted.items() if name in ("exclude", "per_channel", "reduce_range")}
    shared["op_types"] = [op for op in wanted.get("op_types", _op_types(cls)) if op in CorrectBias().op_types]
    steps = [(s.name, {k: v for k, v in shared.items() if k in {f.name for f in s.fields()}}) for s in before]
    steps.append((cls.name, wanted))
    options = verbs.pipeline_options(shell, values)
    options |= {"measure": values["measure"], "store": values["store"]}
    # what was asked for is the quantization; the steps before it may find nothing to do
    options["allow_no_effect"] = options["allow_no_effect"] or [step.name for step in before]
    if values["max_drop"] is None:
        record = shell.work(work.passes, model, values["output"], steps, **options)
    else:
        budget = {
            "eval": values["evaluation"],
            "max_drop": values["max_drop"],
            "metric": values["metric"] or "accuracy",
        }
        record = shell.work(work.quantize_within, model, values["output"], steps, **budget, **options)
    if values["explain"]:
        record["explanation"] = shell.work(work.explain, values["output"])
    verbs.finish(shell, record)


def _op_types(cls: type[Pass]) -> list[str]:
    """What the quantization takes if not told otherwise; where that is open, all that correct-bias knows."""
    return cls().options()["op_types"] or list(CorrectBias().op_types)


def _check(mode: str, values: dict[str, Any]) -> None:
    cls = _MODES[mode]
    foreign = not_of(values, cls, tuple(_MODES.values()))
    if foreign:
        raise UsageError(f"--{foreign[0].replace('_', '-')} is not an option of --mode {mode}")
    if values["data"] is None and cls.needs_data:
        raise UsageError(f"--mode {mode} needs --data", hint="give real samples, some hundred")
    for option in ("smooth", "correct_bias"):
        flag = f"--{option.replace('_', '-')}"
        if values[option] and mode == "weights":
            raise UsageError(f"{flag} does nothing for --mode weights: its activations stay in float")
        if values[option] and values["data"] is None:
            raise UsageError(f"{flag} needs --data", hint="give real samples, some hundred")
    if (values["max_drop"] is None) != (values["evaluation"] is None):
        raise UsageError("--max-drop and --eval go together", hint="--max-drop 0.5% --eval samples-with-labels.npz")
    if values["metric"] is not None and values["max_drop"] is None:
        raise UsageError("--metric is for --max-drop", hint="'onnxcomp evaluate' measures a result")
    calibrates = cls.needs_data or values["smooth"] or values["correct_bias"] or values["max_drop"] is not None
    rounds = cls.wants_data and values["data"] is not None and values["gptq"] is not False
    if values["store"] is not None and not (calibrates or rounds):
        raise UsageError(f"--statistics has nothing to keep: --mode {mode} does not calibrate")
    if values["max_drop"] is not None and "max_node_error" in given(values, cls):
        raise UsageError("--max-node-error and --max-drop both choose nodes", hint="give one of them")
    if values["max_drop"] is not None and mode == "weights":
        raise UsageError("--max-drop is not an option of --mode weights")
