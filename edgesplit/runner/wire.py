"""Framing and messages between runners: bytes in, messages out.

    frame = magic "ESW4" | kind u8 | flags u8 | stage u16 | epoch u32 | length u32 | body

All numbers are big-endian. The body of WORK and DROP begins with rows: count of rows u16, count of laps u16, then per
row sequence u64 and position u32, then per lap four u32. In WORK tensors follow: count u8, then per tensor dtype u8,
rank u8, length of its name u8, rank x u32, the name, and then the raw bytes of each in turn; dtype 0 is an absent
tensor. Tensors with a name follow those without. The body of HELLO, WELCOME, BEAT and FAULT is a JSON object; BYE has
none. The bytes of each tensor begin at a multiple of 16 of the body (zeros in between), so that they can be computed on
where they arrive. Every frame names its epoch; every length is checked before anything is allocated.

Must not know: sockets, threads, torch, and what the tensors mean.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

MAGIC = b"ESW4"
HEADER = struct.Struct("!4sBBHII")
_COUNTS = struct.Struct("!HH")
_ROW = struct.Struct("!QI")
_LAP = struct.Struct("!IIII")
MAX_ROWS = 256  # sequences of one forward
MAX_LAPS = 1024  # stages of a ring
MAX_TEXT = 64 * 2**10  # bytes of a JSON body
MAX_TENSORS = 64
MAX_RANK = 8
ALIGN = 16  # bytes; what malloc aligns a receive buffer to, and no element or vector of our dtypes needs more
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "bool": 1}  # bytes per element
_CODES = {name: code for code, name in enumerate(_SIZES, start=1)}
_NAMES = {code: name for name, code in _CODES.items()}
_NAME = re.compile(r"[0-9A-Za-z_./-]{1,80}")  # of a tensor


class WireError(ValueError):
    """The bytes are no frame of ours, or break a bound; the connection must be closed."""


class Kind(IntEnum):
    HELLO = 1  # who is calling: {"deployment", "source", "target"}
    WELCOME = 2  # the call is accepted; a TLS 1.3 client learns of a refusal no earlier than this
    BEAT = 3  # the sender lives: {"done": forwards finished, "queued": forwards waiting}
    WORK = 4  # hidden states for a stage
    DROP = 5  # sequences have ended: forget their caches
    FAULT = 6  # the ring is broken: {"host", "reason"}
    BYE = 7  # the epoch is retired: what closes now closes in order


class Flag(IntEnum):
    TUPLE = 1  # the layer returned a tuple
    SAMPLE = 2  # the last chunk of a prompt, or a decode step: the head's answer is wanted
    PREFILL = 4  # a chunk of a prompt


class Row(NamedTuple):
    """One sequence of a forward: `position` is its first position in it."""

    sequence: int
    position: int


class Lap(NamedTuple):
    """Where the time of a frame went at one stage, in microseconds: waiting for its turn, from bytes to tensors,
    computing, and back to bytes."""

    queued: int
    unpacked: int
    computed: int
    packed: int


@dataclass(frozen=True)
class Tensor:
    """`data`: row-major bytes of `shape` elements of `dtype`."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


@dataclass(frozen=True)
class Message:
    """Of WORK: the forward's `rows`, `tensors` by their place, `named` by their name, and one of `laps` for each stage
    it has been through. Of DROP: the `rows` that end."""

    kind: Kind
    epoch: int
    stage: int = 0
    rows: tuple[Row, ...] = ()
    flags: int = 0
    tensors: tuple[Tensor | None, ...] = ()
    text: dict[str, Any] | None = None
    named: Mapping[str, Tensor | None] = field(default_factory=dict)
    laps: tuple[Lap, ...] = ()


def encode(message: Message) -> Iterator[bytes | bytearray | memoryview]:
    """The frame, in pieces that are sent in turn, none empty: tensor bytes are never copied. Raises WireError."""
    pieces: list[bytes | bytearray | memoryview] = []
    if message.kind in (Kind.WORK, Kind.DROP):
        pieces = _pieces(_rows_out(message), [("", tensor) for tensor in message.tensors] + [*message.named.items()])
    elif message.text is not None:
        pieces = [json.dumps(message.text).encode()]
    length = sum(memoryview(piece).nbytes for piece in pieces)
    yield HEADER.pack(
        MAGIC,
        message.kind,
        message.flags,
        message.stage,
        message.epoch,
        length,
    )
    yield from pieces


def _rows_out(message: Message) -> bytearray:
    if len(message.rows) > MAX_ROWS or len(message.laps) > MAX_LAPS:
        raise WireError(f"{len(message.rows)} rows and {len(message.laps)} laps, at most {MAX_ROWS} and {MAX_LAPS}")
    head = bytearray(_COUNTS.pack(len(message.rows), len(message.laps)))
    for row in message.rows:
        head += _ROW.pack(*row)
    for lap in message.laps:
        head += _LAP.pack(*lap)
    return head


def _pieces(head: bytearray, tensors: list[tuple[str, Tensor | None]]) -> list[bytes | bytearray | memoryview]:
    if not tensors:
        return [head]
    if len(tensors) > MAX_TENSORS:
        raise WireError(f"{len(tensors)} tensors in one message, where at most {MAX_TENSORS} travel")
    head.append(len(tensors))
    for name, tensor in tensors:
        if name and not _NAME.fullmatch(name):
            raise WireError(f"a tensor cannot be called {name!r}")
        dtype, shape = (tensor.dtype, tensor.shape) if tensor is not None else ("", ())
        if dtype and dtype not in _CODES:
            raise WireError(f"a tensor of {dtype} cannot travel")
        head += struct.pack(f"!BBB{len(shape)}I", _CODES.get(dtype, 0), len(shape), len(name), *shape) + name.encode()
    pieces: list[bytes | bytearray | memoryview] = [head]
    at = len(head)
    for _, tensor in tensors:
        size = 0 if tensor is None else memoryview(tensor.data).nbytes
        if tensor is None or not size:
            continue
        if padding := -at % ALIGN:
            pieces.append(bytes(padding))
        pieces.append(tensor.data)
        at += padding + size
    return pieces


class Decoder:
    """Fill `buffer()`, say how much with `advance()`, get the messages that are now whole.

    `limit`: the largest body, in bytes, that will ever be allocated. After a WireError the decoder is spent.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._header: tuple[Any, ...] | None = None
        self._expect(HEADER.size)

    def _expect(self, size: int) -> None:
        self._store = bytearray(size)
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return memoryview(self._store)[self._filled :]

    def advance(self, count: int) -> Message | None:
        """`count` bytes were put into buffer(). Returns a message when one is complete."""
        self._filled += count
        if self._filled < len(self._store):
            return None
        if self._header is None:
            self._header = self._check(HEADER.unpack(self._store))
            length = self._header[-1]
            if length:
                self._expect(length)
                return None
            body = bytearray()
        else:
            body = self._store
        header, self._header = self._header, None
        self._expect(HEADER.size)
        return _message(header, body)

    def _check(self, header: tuple[Any, ...]) -> tuple[Any, ...]:
        magic, kind, _flags, _stage, _epoch, length = header
        if magic != MAGIC:
            raise WireError(f"not a frame: it begins with {magic!r}")
        if kind not in Kind._value2member_map_:
            raise WireError(f"unknown kind of message {kind}")
        allowed = {Kind.WORK: self.limit, Kind.BYE: 0}.get(Kind(kind), MAX_TEXT)
        if length > allowed:
            raise WireError(f"a body of {length} bytes where at most {allowed} are allowed")
        return header


def _message(header: tuple[Any, ...], body: bytearray) -> Message:
    _magic, number, flags, stage, epoch, _length = header
    kind = Kind(number)
    if kind is Kind.BYE:
        return Message(kind, epoch, stage, flags=flags)
    if kind not in (Kind.WORK, Kind.DROP):
        return Message(kind, epoch, stage, flags=flags, text=_text(body))
    view = memoryview(body)
    rows, laps, at = _rows_in(view)
    tensors, named = _tensors(view, at) if kind is Kind.WORK else ((), {})
    return Message(kind, epoch, stage, rows, flags, tensors, None, named, laps)


def _rows_in(body: memoryview) -> tuple[tuple[Row, ...], tuple[Lap, ...], int]:
    """The rows and laps, and where what follows them begins."""
    if len(body) < _COUNTS.size:
        raise WireError("a frame without rows")
    rows, laps = _COUNTS.unpack_from(body)
    middle = _COUNTS.size + rows * _ROW.size
    end = middle + laps * _LAP.size
    if not 1 <= rows <= MAX_ROWS or laps > MAX_LAPS or end > len(body):
        raise WireError(f"a frame of {rows} rows and {laps} laps in {len(body)} bytes")
    return (
        tuple(Row(*row) for row in _ROW.iter_unpack(body[_COUNTS.size : middle])),
        tuple(Lap(*lap) for lap in _LAP.iter_unpack(body[middle:end])),
        end,
    )


def _text(body: bytearray) -> dict[str, Any]:
    try:
        text = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a control message is not JSON: {error}") from error
    if not isinstance(text, dict):
        raise WireError("a control message is not a JSON object")
    return text


def _tensors(body: memoryview, at: int) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor | None]]:
    count = body[at] if at < len(body) else 0
    if not 1 <= count <= MAX_TENSORS:
        raise WireError(f"a WORK message carries 1 to {MAX_TENSORS} tensors")
    heads: list[tuple[str, str, tuple[int, ...]]] = []
    at += 1
    for _ in range(count):
        head, at = _head(body, at)
        heads.append(head)
    tensors: list[Tensor | None] = []
    named: dict[str, Tensor | None] = {}
    for name, dtype, shape in heads:
        tensor, at = _tensor(body, at, dtype, shape)
        if name in named or (named and not name):
            raise WireError(f"a tensor called {name!r} where another must be")
        if name:
            named[name] = tensor
        else:
            tensors.append(tensor)
    if at != len(body):
        raise WireError(f"{len(body) - at} bytes too many behind the last tensor")
    return tuple(tensors), named


def _head(body: memoryview, at: int) -> tuple[tuple[str, str, tuple[int, ...]], int]:
    """Name, dtype ("" of an absent tensor) and shape, and where the next begins."""
    if at + 3 > len(body):
        raise WireError("a tensor's header is cut short")
    code, rank, length = body[at], body[at + 1], body[at + 2]
    end = at + 3 + 4 * rank + length
    if (code and code not in _NAMES) or rank > (MAX_RANK if code else 0) or end > len(body):
        raise WireError(f"a tensor of unknown type {code}, rank {rank} or name of {length} bytes")
    name = bytes(body[end - length : end]).decode("latin-1")
    if name and not _NAME.fullmatch(name):
        raise WireError(f"a tensor cannot be called {name!r}")
    return (name, _NAMES.get(code, ""), struct.unpack_from(f"!{rank}I", body, at + 3)), end


def _tensor(body: memoryview, at: int, dtype: str, shape: tuple[int, ...]) -> tuple[Tensor | None, int]:
    if not dtype:
        return None, at
    size = _SIZES[dtype] * math.prod(shape)
    start = at + -at % ALIGN if size else at
    if start + size > len(body):
        raise WireError(f"a tensor of {size} bytes in a body that has {max(0, len(body) - start)} left")
    return Tensor(dtype, shape, body[start : start + size]), start + size
