"""One message to the runner of this folder, and its answer: what the controller runs over SSH for every word it says.

It starts a Python each time, on hosts that may have a twentieth of a core: hence no import that is not needed.
Must not know: what a message says.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

SOCKET = "control.sock"
MAX_COMMAND = 16 * 2**20  # bytes; a manifest of a thousand blocks has about 100 KB


def main() -> int:
    """`control --timeout SECONDS [--wait SECONDS]`; the message is standard input."""
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
    request = sys.stdin.buffer.read()
    deadline = time.monotonic() + float(options.get("--wait", 0))
    while True:
        try:
            sys.stdout.buffer.write(ask(".", request, float(options["--timeout"])))
            return 0
        except TimeoutError:  # it is there, and does not answer: nothing to wait for
            print(json.dumps({"absent": "its runner stands still"}))
            return 0
        except OSError as error:
            coming = _alive()
            if time.monotonic() > deadline or not coming:
                print(json.dumps({"absent": f"no runner answers: {error.strerror or error}", "coming": coming}))
                return 0
            time.sleep(0.1)


def ask(folder: str | os.PathLike[str], request: bytes, timeout: float) -> bytes:
    """Send one request to the runner of `folder`; its answer. Raises OSError when no runner listens."""
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(SOCKET)
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return everything(sock)


def everything(sock: socket.socket, deadline: float | None = None) -> bytes:
    """Raises OSError, also at the `deadline` (time.monotonic), ValueError."""
    data = bytearray()
    while True:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        piece = sock.recv(2**16)
        if not piece:
            break
        data += piece
        if len(data) > MAX_COMMAND:
            raise ValueError(f"a command of more than {MAX_COMMAND} bytes")
    return bytes(data)


def spent(folder: str | os.PathLike[str]) -> float:
    """CPU seconds of the process of a runner that does not answer yet: what starts is no other's load."""
    try:
        with open(os.path.join(folder, "runner.pid")) as note, open(f"/proc/{int(note.read())}/stat") as times:
            words = times.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0.0
    return sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")


def _alive() -> bool:
    """Is the process of runner.pid there, and a runner (and not a zombie, whose command line is empty)?"""
    try:
        with open("runner.pid") as note:
            number = int(note.read())
        with open(f"/proc/{number}/cmdline", "rb") as words:
            return b"serve" in words.read()
    except (OSError, ValueError):
        return False
