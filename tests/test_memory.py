import ctypes
import os
from pathlib import Path

import pytest

from onnxcomp import memory


def test_unreadable_is_none(tmp_path):
    assert memory.measure(tmp_path) == memory.Memory()


def test_fields_from_the_kernel_text(tmp_path):
    (tmp_path / "smaps_rollup").write_text(
        "55-7f ---p 00000000 00:00 0 [rollup]\nRss: 100 kB\nPss: 60 kB\nPss_Anon: 40 kB\nPss_File: 20 kB\n"
        "Private_Clean: 10 kB\nPrivate_Dirty: 35 kB\nPrivate_Hugetlb: 2 kB\n"
    )
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  120 kB\n")
    assert memory.measure(tmp_path) == memory.Memory(60 << 10, 47 << 10, 40 << 10, 20 << 10, 120 << 10)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no smaps_rollup here")
def test_own_process_grows_with_what_it_holds():
    before = memory.measure()
    block = bytearray(
        os.urandom(1 << 20) * 64
    )  # more than malloc ever takes from its heap, which other tests leave large
    after = memory.measure()
    assert after.uss_bytes - before.uss_bytes >= 60 << 20
    assert after.peak_bytes >= after.uss_bytes * 0.5
    assert len(block) == 64 << 20
    fields = {"pss_bytes", "uss_bytes", "anonymous_bytes", "file_bytes", "peak_bytes", "device_bytes"}
    assert set(after.to_json()) == fields


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no smaps_rollup here")
def test_free_memory_between_blocks_in_use_is_given_back():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    size = 64 << 10  # below the size from which every block is a mapping of its own
    blocks = [libc.malloc(size) for _ in range(1024)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last one holds the heap where it is
        libc.free(block)
    before = memory.measure().anonymous_bytes
    memory.give_back()
    assert before - memory.measure().anonymous_bytes > 32 << 20
    libc.free(blocks[-1])
