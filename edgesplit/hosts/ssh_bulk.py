"""Much data over one channel, fast: packets are sealed many at a time, and leave with one system call.

paramiko seals and sends them one by one, with a copy at each step. Where the cipher is not AES-GCM, it still does.
Must not know: what is sent, what a connection is for.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from paramiko import Message
from paramiko.common import MSG_CHANNEL_DATA
from paramiko.packet import Packetizer

PACKET = 32704  # the most that paramiko puts into one packet of 32768: 1 byte more makes two
BATCH = 8 * PACKET  # sealed at once; sshd's window holds 64 packets
_BLOCK = 16  # of AES; RFC 5647: all but the length field is a multiple of it
_LEAST = 4  # bytes of padding


class Batch:
    """What one channel sends, as one thing to hand to the packetizer."""

    def __init__(self, channel: int, data: memoryview) -> None:
        self._head = struct.pack(">BI", MSG_CHANNEL_DATA, channel)
        self._data = data

    def payloads(self) -> Iterator[tuple[bytes, memoryview]]:
        """Of each packet, what stands before the data, and the data."""
        for at in range(0, len(self._data), PACKET):
            piece = self._data[at : at + PACKET]
            yield self._head + len(piece).to_bytes(4, "big"), piece


class Sealer(Packetizer):
    """The packetizer of a connection; it seals outgoing AES-GCM packets itself."""

    def __init__(self, socket: Any) -> None:
        super().__init__(socket)
        self._sealing = threading.Lock()
        self._engine: Any = None
        self._salt, self._count, self._sent = b"", 0, 0

    def set_outbound_cipher(self, block_engine: Any, *rest: Any, **named: Any) -> None:
        super().set_outbound_cipher(block_engine, *rest, **named)
        with self._sealing:
            nonce = named.get("iv_out") if named.get("aead") else None
            self._engine = None if nonce is None else block_engine
            self._salt, self._count, self._sent = (nonce or b"")[:4], int.from_bytes((nonce or b"")[4:], "big"), 0

    def send_message(self, data: Any) -> None:
        if self._engine is None:
            for message in _messages(data) if isinstance(data, Batch) else [data]:
                super().send_message(message)
            return
        payloads = data.payloads() if isinstance(data, Batch) else [(data.asbytes(), memoryview(b""))]
        with self._sealing:
            sealed = b"".join(self._seal(head, piece) for head, piece in payloads)
            self.write_all(memoryview(sealed))
            self._sent += len(sealed)
            if self._sent >= self.REKEY_BYTES and not self.need_rekey():
                self._trigger_rekey()  # type: ignore[attr-defined]

    def _seal(self, head: bytes, piece: memoryview) -> bytes:
        size = 1 + len(head) + len(piece)
        padding = _LEAST + -(size + _LEAST) % _BLOCK
        length = (size + padding).to_bytes(4, "big")
        plain = b"".join((padding.to_bytes(1, "big"), head, piece, os.urandom(padding)))
        nonce = self._salt + self._count.to_bytes(8, "big")
        self._count = (self._count + 1) % 2**64
        return length + bytes(self._engine.encrypt(nonce, plain, length))


def _messages(batch: Batch) -> Iterator[Message]:
    for head, piece in batch.payloads():
        yield Message(head + piece)


def send(channel: Any, data: memoryview) -> int:
    """Send some of it over a paramiko.Channel, as much as the far end's window takes; how much. 0: it takes no more."""
    with channel.lock:
        if channel.closed:
            return 0
        size: int = channel._wait_for_send_window(min(len(data), PACKET))
        more = min(len(data) - size, channel.out_window_size) if size == PACKET else 0
        channel.out_window_size -= more
    if size:
        channel.transport._send_user_message(Batch(channel.remote_chanid, data[: size + more]))
    return size + more


def pieces(stdin: bytes | Iterable[bytes]) -> Iterator[memoryview]:
    """The same bytes in pieces of whole packets, BATCH at most; only the last may be short."""
    rest = b""
    for chunk in [stdin] if isinstance(stdin, bytes) else stdin:
        view = memoryview(chunk)
        if rest:
            missing = PACKET - len(rest)
            rest, view = rest + view[:missing], view[missing:]
            if len(rest) < PACKET:
                continue
            yield memoryview(rest)
        whole = len(view) - len(view) % PACKET
        yield from (view[at : min(at + BATCH, whole)] for at in range(0, whole, BATCH))
        rest = bytes(view[whole:])
    if rest:
        yield memoryview(rest)
