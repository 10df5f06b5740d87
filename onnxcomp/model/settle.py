"""Give the optimized model that ORT has written its final place and names; same model, same bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from onnxcomp.errors import from_os_error
from onnxcomp.model import external, walk
from onnxcomp.model.fingerprint import sha256_of
from onnxcomp.model.load import read_proto

#: the end of the name that ORT gives a node it has put in; the number follows the order of a hash table
_COUNTED = re.compile(r"_token_\d+$")


def settle(written: Path, target: Path) -> None:
    """Move a model and its one data file to `target` and `STEM.HASH.data` beside it.

    Names that ORT has counted out for new nodes are dropped (they differ from run to run, and nothing
    refers to them), so that the same model gives the same file. Raises what `read_proto` raises.
    """
    proto = read_proto(written)
    try:
        names = external.locations(proto)
        for name in names:
            digest, _ = sha256_of(written.parent / name)
            final = f"{target.stem}.{digest[:16]}.data"
            os.rename(written.parent / name, target.parent / final)
            for tensor in external.tensors(proto):
                for entry in tensor.external_data:
                    if (entry.key, entry.value) == ("location", name):
                        entry.value = final
        for node in walk.nodes(proto):
            if _COUNTED.search(node.name):
                node.ClearField("name")
        target.write_bytes(proto.SerializeToString(deterministic=True))
        os.unlink(written)
    except OSError as error:
        raise from_os_error(error, target) from error


def packed_bytes(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes of weights in data files, and of the copies of them that ORT has packed for its kernels."""
    plain = packed = 0
    for tensor in external.tensors(read_proto(Path(path))):
        for entry in tensor.external_data:
            if entry.key == "length":
                plain += int(entry.value)
            elif entry.key.startswith("prepacked"):
                # KEY|OFFSET;LENGTH;CHECK|OFFSET;LENGTH;CHECK ...
                packed += sum(int(size) for size in re.findall(r"\|\d+;(\d+);", entry.value))
    return plain, packed
