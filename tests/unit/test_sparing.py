"""What is given back goes back, although something small was put behind it."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys

import pytest

from edgesplit.runner.memory import sparing

COUNT = 64


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library does as it likes")
@pytest.mark.parametrize(("how", "least", "most"), [("usual", 60, 80), ("sparing", -1, 4)])
def test_large_pieces_leave_no_holes(how: str, least: int, most: int) -> None:
    done = subprocess.run([sys.executable, __file__, how], capture_output=True, text=True, check=True)
    assert least < int(done.stdout) < most


def kept() -> int:
    """MiB that stay when the large pieces are gone, and small ones between them are not."""
    large = [bytearray(2**24)]
    large.clear()  # from now on glibc takes such pieces from its heap
    with sparing() if sys.argv[1] == "sparing" else contextlib.nullcontext():
        before, small = resident(), []
        for _ in range(COUNT):
            large.append(bytearray(b"1") * 2**20)
            small.append(bytearray(b"1") * 2**14)
        large.clear()
        return (resident() - before) // 2**20


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


if __name__ == "__main__":
    print(kept())
