"""What the lab asks of Linux: namespaces, mounts, TAP devices. Standard library only: the lab's processes are small.

Must not know: what a lab is, what a switch does with a frame.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMED = Path("/run/netns")  # where `ip netns` keeps the namespaces that have names
TUN = Path("/dev/net/tun")

# <linux/sched.h>
NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000
# <sys/mount.h>
BIND, MOVE, RECURSIVE, PRIVATE = 4096, 8192, 16384, 1 << 18
# <linux/if_tun.h>
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO_ECN = 1, 2, 8
HEADER_BYTES = 10  # struct virtio_net_hdr

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def unshare(kinds: int) -> None:
    _call("unshare", kinds)


def set_hostname(name: str) -> None:
    encoded = name.encode()
    _call("sethostname", encoded, len(encoded))


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), None)


def enter_network(name: str) -> None:
    """This thread moves into a named network namespace."""
    _enter(NAMED / name)


def _enter(file: Path | str) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", descriptor, NEWNET)
    finally:
        os.close(descriptor)


@contextmanager
def in_network(name: str | None) -> Iterator[None]:
    """Inside a named network namespace for a moment; None is the one that it is in already."""
    if name is None:
        yield
        return
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_network(name)
        try:
            yield
        finally:
            _call("setns", here, NEWNET)
    finally:
        os.close(here)


# --- TAP devices ---


def open_tap(network: str | None, interface: str) -> int:
    """A network interface whose frames are read from and written to a descriptor; it goes when that is closed."""
    with in_network(network):
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
            fcntl.ioctl(tap, TUNSETIFF, request)
            fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
        except OSError:
            os.close(tap)
            raise
    return tap


def allow_large(tap: int, *, large: bool) -> None:
    """May the kernel hand over TCP frames of up to 64 KiB, to be cut into small ones later? Ten times as fast."""
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | (TUN_F_TSO4 | TUN_F_TSO_ECN if large else 0))
