"""What a pass did, in one line, from the `effect` of its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from onnxcomp.report import text

Json = Mapping[str, Any]

_MOST_SKIPPED = 8


def effect(found: Json) -> str:
    """One line about what a pass did."""
    for key, say in _BY_KEY.items():
        if key in found:
            return say(found)
    return ", ".join(f"{key} {value}" for key, value in found.items())


def skipped(found: Json) -> list[tuple[str, str]]:
    """(nodes, reason) of what a pass refused, one entry per reason."""
    groups: dict[str, list[str]] = {}
    for one in found.get("skipped", found.get("refused", found.get("kept", ()))):
        groups.setdefault(one["reason"], []).append(one["node"])
    entries = []
    for reason, nodes in groups.items():
        more = f" and {len(nodes) - _MOST_SKIPPED} more" if len(nodes) > _MOST_SKIPPED else ""
        entries.append((", ".join(nodes[:_MOST_SKIPPED]) + more, reason))
    return entries


def left(found: Json) -> str:
    """How nodes that a pass refused were left."""
    return "whole" if "refused" in found else "in float"


def _quantized(found: Json) -> str:
    share = found["quantized_weight_bytes"] / max(found["total_weight_bytes"], 1)
    reduced = ", 7 bits on this CPU" if found.get("reduce_range") else ""
    line = (
        f"{found['quantized_weights']} of {found['total_weights']} weights in int{found.get('bits', 8)}, "
        f"{text.percent(share, 1)} of their bytes{reduced}"
    )
    if "gptq" in found and found["gptq"]["of"]:
        fitted, error = found["gptq"], found["gptq"]["output_error"]
        line += (
            f"; {fitted['weights']} of {fitted['of']} rounded with error feedback: "
            f"error of their outputs {error['nearest']:.2g} -> {error['gptq']:.2g}"
        )
    if "search" not in found:
        return line
    if "biases" in found:
        line += f"; {_corrected(found['biases'])} corrected"
    search = found["search"]
    drop = text.score(search["drop"], search["metric"])
    if search["low"] is not None and search["high"] is not None:
        drop = text.score_interval({**search, "value": search["drop"]}, search["metric"])
    return f"{line}; drop {drop}, {len(search['excluded'])} nodes in float after {len(search['tried'])} candidates"


def _pruned(found: Json) -> str:
    packed = found["download_bytes"]
    return (
        f"{text.number(found['removed_parameters'])} of {text.number(found['parameters'])} weights set to zero; "
        f"{found['label']}: compressed {text.size(packed['before'])} -> {text.size(packed['after'])}"
    )


def _cut(found: Json) -> str:
    units, share = found["units"], found["removed_parameters"] / max(found["parameters"], 1)
    line = (
        f"{text.number(units['removed'])} of {text.number(units['of'])} units cut, ranked by {found['importance']}: "
        f"{text.percent(share, 1)} of the parameters gone, {text.percent(found['macs_ratio'], 1)} of the MACs left; "
        f"equal to the model with zeros there within {found['equivalence_error']:.1e}"
    )
    return line + (_repaired(found["repair"]) if "repair" in found else "")


def _repaired(found: Json) -> str:
    """The worst output before and after, on samples that the repair did not fit."""
    if not found["chosen"]:
        return "; not repaired: no step made the outputs better"
    before, after = (_worst(found["fidelity"][when]) for when in ("before", "after"))
    judged = text.number(found["samples"]["judged"])
    return f"; repaired ({', '.join(found['chosen'])}): outputs {before:.1f} -> {after:.1f} dB on {judged} samples"


def _worst(fidelity: Json) -> float:
    """In dB; an output that is equal has none."""
    found = [output["sqnr_db"] for output in fidelity["outputs"].values() if output["sqnr_db"] is not None]
    return min(found, default=math.inf)


def _factored(found: Json) -> str:
    share = found["removed_parameters"] / max(found["parameters"], 1)
    ranks = ", ".join(f"{f['node']} {f['rank']} of {f['of']}" for f in found["factored"][:4])
    more = ", ..." if len(found["factored"]) > 4 else ""
    return (
        f"{len(found['factored'])} products factored ({ranks}{more}); {text.percent(share, 1)} of the parameters gone"
    )


def _corrected(found: Json) -> str:
    return f"{found['corrected']} of {found['of']} biases"


def _shortened(found: Json) -> str:
    share = found["removed_parameters"] / max(found["parameters"], 1)
    gone = ", ".join(f"{b['module'] or b['to']} (error {b['error']:.2g})" for b in found["blocks"])
    return (
        f"taken out, of {len(found['ranking'])} blocks: {gone}; {text.percent(share, 1)} of the parameters gone, "
        f"{text.percent(found['macs_ratio'], 1)} of the MACs left"
    )


def _smoothed(found: Json) -> str:
    own = found["multiplications"]
    return f"{found['smoothed']} of {found['of']} activations; {own} of them by a multiplication of their own"


def _distilled(found: Json) -> str:
    best, judged = found["best_epoch"], text.number(found["samples"]["judged"])
    figures = ", ".join(
        f"{name} {_measured(name, value)} -> {_measured(name, found['after'][name])}"
        for name, value in found["before"].items()
    )
    return (
        f"{text.number(found['trained_parameters'])} parameters trained{' in int8' if found['in_int8'] else ''}, "
        f"{text.number(found['steps'])} steps, {f'epoch {best} kept' if best else 'no epoch was better'}; "
        f"on {judged} other samples: {figures}"
    )


def _measured(name: str, value: float) -> str:
    return text.score(value, "" if name == "loss" else "accuracy")


def _tied(found: Json) -> str:
    turned = f", {len(found['transposed'])} of them as transposes" if found["transposed"] else ""
    return f"{text.number(found['tied'])} stored tensors went{turned}: {text.size(found['bytes_saved'])} saved"


def _clustered(found: Json) -> str:
    stored = found["weight_bytes"]
    line = (
        f"{found['clustered']} of {found['of']} weights in {found['bits']}-bit codes, {text.size(stored['before'])} -> "
        f"{text.size(stored['after'])}, square error {found['relative_error']:.2g} of the weights'; {found['label']}"
    )
    if "on_data" not in found:
        return line
    chosen, error = found["on_data"], found["on_data"]["output_error"]
    return (
        f"{line}; {chosen['weights']} of {chosen['of']} chosen on data: "
        f"error of their outputs {error['nearest']:.2g} -> {error['chosen']:.2g}"
    )


def _cast(found: Json) -> str:
    stored, nodes = found["weight_bytes"], found["nodes"]
    return (
        f"{found['weights']} weights in {found['dtype']}, {text.size(stored['before'])} -> "
        f"{text.size(stored['after'])}; {nodes['cast']} nodes compute in it, {nodes['kept']} in float32"
    )


def _fused(found: Json) -> str:
    seen = {what.replace("_", " "): n for what, n in found["patterns"].items() if n["found"]}
    shares = ", ".join(f"{n['fused']} of {n['found']} {what}" for what, n in seen.items())
    return f"{found['nodes']['before']} -> {found['nodes']['after']} nodes: {shares or 'nothing to fuse'}"


def _simplified(found: Json) -> str:
    changes = [f"-{n} {op}" for op, n in found["removed"].items()]
    changes += [f"+{n} {op}" for op, n in found["added"].items()]
    what = ", ".join(c.replace("ai.onnx::", "") for c in changes[:6]) or "initializers only"
    return f"{found['nodes']['before']} -> {found['nodes']['after']} nodes: {what}"


#: key that an effect has -> what says it; the first one counts
_BY_KEY: Mapping[str, Callable[[Json], str]] = {
    "best_epoch": _distilled,
    "quantized_weights": _quantized,
    "equivalence_error": _cut,
    "blocks": _shortened,
    "factored": _factored,
    "removed_parameters": _pruned,
    "smoothed": _smoothed,
    "tied": _tied,
    "clustered": _clustered,
    "equalized": lambda found: f"{found['equalized']} of {found['pairs']} pairs of layers",
    "corrected": _corrected,
    "casts": _cast,
    "patterns": _fused,
    "nodes": _simplified,
    "batch_normalizations": lambda found: (
        f"{found['folded']} of {found['batch_normalizations']} BatchNormalization folded"
    ),
    "opset": lambda found: f"opset {found['opset']['before']} -> {found['opset']['after']}",
}
