"""How many channels kernels take at a time: the counts at which a narrower convolution is a faster one.

ONNX Runtime's convolutions on x86 work on blocks of 16 channels with AVX-512, of 8 with AVX2; in between nothing
is gained, and a count that is no multiple of 4 leaves the blocked kernels altogether and is slower than before.
Each group of a grouped convolution is blocked alone: 28 channels in each of four groups take longer than 32.
Matrix products take any count.
"""

from __future__ import annotations

import math

from onnxcomp import runtime
from onnxcomp.passes.prune.units import Group


def host_block() -> int:
    """The channels of a block on this host."""
    features = runtime.cpu_features()
    return 16 if "avx512f" in features else 8 if "avx2" in features else 4


def step(group: Group, align: int | None) -> int:
    """So many units are a block: counts of units that stay are its multiples. A head is many channels.

    `align`: channels of a block for every group; None: those of this host where a convolution sees the group.
    """
    if align is None and not group.channels:
        return 1
    block = host_block() if align is None else align
    return block // math.gcd(block, group.channels or group.width)


def rounded(wanted: float, units: int, block: int) -> int:
    """The multiple of a block nearest to what is wanted, at least one block and at most all units."""
    return min(max(math.floor(wanted / block + 0.5), 1) * block, units)
