"""The links between this host and others, measured in pairs: round trips, bandwidths, and what a message costs.

Every host of a fleet runs this at once. First all meet, to know who reaches whom; then each goes through its pairs in
the order that all have, so that no two wait for each other in a circle.
Must not know: the model, but for the size of a message; what the numbers are good for.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

from .hop import answer, ask
from .meeting import Meeting, listening

ECHOES = 20  # round trips timed per link
BURST = 0.3  # seconds a bandwidth burst lasts after its warm-up; 0.2 s came within 2.5 % on shaped links
PIECE = 2**18  # bytes per read or write
PATIENCE = 10.0  # seconds for what the other end does next, once it takes part


def measure(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is found of each pair in which this host calls, as it comes, and at last whom it does not reach.

    `arguments`: me, token, address, ports, peers (name -> [address, ports]), timeout (seconds to meet), pairs (of
    names, the one that calls first), message (bytes of a small and a large one), patience (seconds until a host that
    was met gets to a pair).
    Of a pair: {"pair"}, with {"error"}, or with "rtt" in seconds, "up" and "down" in bytes per second, "both": is this
    host reached from there; and what hop.ask says. At last: {"me", "missed": peer -> why it is not reached}.
    """
    me, (server, _) = arguments["me"], listening(arguments["address"], arguments["ports"])
    with contextlib.closing(Meeting(me, arguments["token"], arguments["peers"], server)) as meeting:
        meeting.hold(arguments["timeout"])
        for pair in arguments["pairs"]:
            peer = pair[1] if pair[0] == me else pair[0]
            there, back = not meeting.missed[peer], peer in meeting.greeted
            calls = there if there != back else pair[0] == me  # where only one way is open, whoever can
            try:
                if there and calls:
                    yield {"pair": [me, peer], "both": back, **_call(meeting, peer, arguments)}
                elif back:
                    _answer(meeting, peer, arguments)
            except OSError as error:
                yield {"pair": [me, peer], "error": f"the measurement broke off: {error}"}
    yield {"me": me, "missed": {peer: why for peer, why in meeting.missed.items() if why}}


def _call(meeting: Meeting, peer: str, arguments: dict[str, Any]) -> dict[str, Any]:
    message = arguments["message"]
    with meeting.call(peer, "link") as sock:
        sock.settimeout(arguments["patience"])
        _echo(sock)  # the other end may be in another pair still
        sock.settimeout(PATIENCE)
        link = _measure(sock)
    with meeting.call(peer, "out") as out, meeting.call(peer, "back") as back:  # empty once TLS has taken them over
        return {**link, **ask(out, back, (min(message), max(message)))}


def _answer(meeting: Meeting, peer: str, arguments: dict[str, Any]) -> None:
    with meeting.expect(peer, "link", arguments["patience"]) as sock:
        _be_measured(sock)
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(meeting.expect(peer, purpose, PATIENCE)) for purpose in ("out", "back")]
        answer(ends[0], ends[1], max(arguments["message"]))


def _be_measured(sock: socket.socket) -> None:
    sock.settimeout(PATIENCE)
    for _ in range(1 + ECHOES):
        sock.sendall(_exactly(sock, 1))
    warm = float(_exactly(sock, 16))
    rate = _receive_burst(sock, warm)
    sock.sendall(f"{rate:<32.3f}".encode())
    _send_burst(sock, warm)


def _measure(sock: socket.socket) -> dict[str, Any]:
    rtt = statistics.median(_echo(sock) for _ in range(ECHOES))
    warm = max(0.05, 10 * rtt)  # slow start is over after ten round trips
    sock.sendall(f"{warm:<16.6f}".encode())
    _send_burst(sock, warm)
    up = float(_exactly(sock, 32))
    down = _receive_burst(sock, warm)
    return {"rtt": rtt, "up": up, "down": down}


def _echo(sock: socket.socket) -> float:
    """Seconds of a byte there and back."""
    start = time.perf_counter()
    sock.sendall(b".")
    _exactly(sock, 1)
    return time.perf_counter() - start


def _send_burst(sock: socket.socket, warm: float) -> None:
    """Send for warm + BURST seconds; each piece says whether another follows, so that the stream can end."""
    end = time.perf_counter() + warm + BURST
    more, last = b"\1" + bytes(PIECE - 1), b"\0" + bytes(PIECE - 1)
    while time.perf_counter() < end:
        sock.sendall(more)
    sock.sendall(last)


def _receive_burst(sock: socket.socket, warm: float) -> float:
    """Bytes per second over what arrives after the warm-up."""
    store = bytearray(PIECE)
    start, since, count = time.perf_counter(), None, 0
    store[0] = 1
    while store[0]:
        filled = 0
        while filled < PIECE:
            got = sock.recv_into(memoryview(store)[filled:])
            if not got:
                raise OSError("the other end went")
            filled += got
            now = time.perf_counter()
            if since is None and now - start > warm:
                since, count = now, -got  # what has just arrived is where counting begins
            count += got
    return count / max(now - (since or start), 1e-6)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("the other end went")
        data += piece
    return data
