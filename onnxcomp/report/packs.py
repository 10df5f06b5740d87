"""Tables of packs for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxcomp.report import tables, text
from onnxcomp.report.tables import _facts

Json = Mapping[str, Any]


def packed(result: Json) -> None:
    """`onnxcomp pack`."""
    source, host = result["source"], result["host"]
    _facts(
        [
            ("source", f"{source['path']} ({text.size(source['bytes'])})"),
            ("pack", f"{result['output']} ({text.size(result['bytes'])}), layout {result['layout']}"),
            ("serve", f"{result['output']}/{result['model']}"),
            ("fallback", result["portable"] or "none"),
            ("host", f"onnxruntime {host['onnxruntime']}, {host['machine']}: {' '.join(host['flags'])}"),
            *_proven(result),
        ]
    )


def verified(result: Json) -> None:
    """`onnxcomp verify` of a pack."""
    tables.verification(result)
    if "verification" in result:
        _facts(list(_proven(result)))


def _proven(result: Json) -> Iterator[tuple[str, str]]:
    outputs, sharing = result["verification"]["outputs"], result["verification"]["sharing"]
    same = "bit-identical" if outputs["identical"] else "not compared"
    workers = sharing["workers"]
    yield "outputs", f"{same} on {outputs['runs']} runs of {outputs['data']}"
    share = "" if sharing["shared"] is None else f" ({sharing['shared']:.0%} of what can be)"
    yield "sharing", ("effective" if result["sharing_effective"] else "not effective") + share
    before, after = sharing["plain_pss_bytes"], sharing["pack_pss_bytes"]
    base = f"{text.size(sharing['base_pss_bytes'])} without a model"
    yield f"{workers} workers", f"{text.size(before)} -> {text.size(after)} ({after / before:.2f}x; {base})"
    own, now = sharing["plain_private_bytes"], sharing["pack_private_bytes"]
    yield "private per worker", f"{text.size(own)} -> {text.size(now)} beside interpreter and runtime"
