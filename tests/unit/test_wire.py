"""The wire protocol, both ends against each other in memory: any message, under any chunking, or a WireError."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from ctypes import addressof, c_char
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesplit.runner.wire import (
    ALIGN,
    HEADER,
    MAGIC,
    MAX_RANK,
    MAX_ROWS,
    MAX_TENSORS,
    MAX_TEXT,
    Decoder,
    Flag,
    Kind,
    Lap,
    Message,
    Row,
    Tensor,
    WireError,
    encode,
)

LIMIT = 4096
ONE = (Row(1, 0),)
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "bool": 1}


def raw(message: Message) -> bytes:
    return b"".join(encode(message))


def decode(data: bytes, cuts: Sequence[int] = (), limit: int = LIMIT) -> Iterator[Message]:
    """Feed `data` in pieces that end at the cuts, as a socket would."""
    decoder, edges = Decoder(limit), sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        at = start
        while at < end:
            place = decoder.buffer()
            count = min(len(place), end - at)
            place[:count] = data[at : at + count]
            at += count
            message = decoder.advance(count)
            if message is not None:
                yield message


def plain(message: Message) -> Message:
    """With bytes for the views, so that messages compare."""
    tensors = tuple(t and Tensor(t.dtype, t.shape, bytes(t.data)) for t in message.tensors)
    named = {name: t and Tensor(t.dtype, t.shape, bytes(t.data)) for name, t in message.named.items()}
    return Message(
        message.kind,
        message.epoch,
        message.stage,
        message.rows,
        message.flags,
        tensors,
        message.text,
        named,
        message.laps,
    )


@st.composite
def tensor(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(SIZES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = SIZES[dtype] * math.prod(shape)
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


numbers = {
    "epoch": st.integers(0, 2**32 - 1),
    "stage": st.integers(0, 2**16 - 1),
    "flags": st.integers(0, 7),
}
word = st.integers(0, 2**32 - 1)
rows = st.lists(st.builds(Row, st.integers(0, 2**64 - 1), word), min_size=1, max_size=5).map(tuple)
laps = st.lists(st.builds(Lap, word, word, word, word), max_size=3).map(tuple)
names = st.from_regex(r"[0-9A-Za-z_./-]{1,80}", fullmatch=True)
work = st.builds(
    Message,
    st.just(Kind.WORK),
    tensors=st.lists(st.none() | tensor(), min_size=1, max_size=3).map(tuple),
    named=st.dictionaries(names, st.none() | tensor(), max_size=3),
    rows=rows,
    laps=laps,
    **numbers,
)
talk = st.builds(
    Message,
    st.sampled_from([Kind.HELLO, Kind.WELCOME, Kind.BEAT, Kind.FAULT]),
    text=st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3),
    **numbers,
)
drop = st.builds(Message, st.just(Kind.DROP), rows=rows, **numbers)
bare = st.builds(Message, st.just(Kind.BYE), **numbers)


@given(st.lists(work | talk | drop | bare, min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=8))
@settings(deadline=None, max_examples=60)
def test_any_messages_arrive_whole_under_any_chunking(messages: list[Message], cuts: list[int]) -> None:
    assert [plain(message) for message in decode(b"".join(map(raw, messages)), cuts)] == messages


def test_every_single_byte_may_come_alone() -> None:
    message = Message(Kind.WORK, 3, 1, (Row(7, 5),), Flag.TUPLE, (Tensor("float32", (1, 2), bytes(8)), None))
    data = raw(message)
    assert [plain(got) for got in decode(data, range(len(data)))] == [message]


@given(st.lists(st.none() | tensor(), min_size=1, max_size=MAX_TENSORS).map(tuple))
@settings(deadline=None, max_examples=40)
def test_tensor_bytes_begin_where_a_processor_likes_them(tensors: tuple[Tensor | None, ...]) -> None:
    body = raw(Message(Kind.WORK, 1, rows=ONE, tensors=tensors))[HEADER.size :]
    (message,) = decode(raw(Message(Kind.WORK, 1, rows=ONE, tensors=tensors)), limit=len(body))
    for got in message.tensors:
        if got is not None and got.data:
            view = memoryview(got.data)
            start, body_start = addressof(c_char.from_buffer(view)), addressof(c_char.from_buffer(view.obj))
            assert (start - body_start) % ALIGN == 0


def test_tensor_bytes_are_not_copied_on_either_end() -> None:
    data = bytearray(64)
    pieces = list(encode(Message(Kind.WORK, 1, rows=ONE, tensors=(Tensor("float32", (16,), data),))))
    assert any(piece is data for piece in pieces)
    assert all(memoryview(piece).nbytes for piece in pieces)
    (message,) = decode(b"".join(pieces))
    assert isinstance(message.tensors[0], Tensor)
    assert isinstance(message.tensors[0].data, memoryview)


def frame(kind: int = Kind.WORK, body: bytes = b"", length: int | None = None, magic: bytes = MAGIC) -> bytes:
    return HEADER.pack(magic, kind, 0, 0, 1, len(body) if length is None else length) + body


def body(tensors: bytes = b"", rows: int = 1, laps: int = 0) -> bytes:
    return struct.pack("!HH", rows, laps) + bytes(12 * rows + 16 * laps) + tensors


def header(code: int, *shape: int, name: bytes = b"") -> bytes:
    return struct.pack(f"!BBB{len(shape)}I", code, len(shape), len(name), *shape) + name


ALIGNED = body(b"\1" + header(1, 2))
ALIGNED += bytes(-len(ALIGNED) % ALIGN)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame(magic=b"HTTP"), "not a frame"),
        (frame(kind=0), "unknown kind of message 0"),
        (frame(kind=99), "unknown kind of message 99"),
        (frame(length=LIMIT + 1), f"{LIMIT + 1} bytes where at most {LIMIT}"),
        (frame(Kind.HELLO, length=MAX_TEXT + 1), f"at most {MAX_TEXT}"),
        (frame(Kind.DROP, b"x"), "without rows"),
        (frame(Kind.DROP, body(rows=0)), "of 0 rows"),
        (frame(Kind.DROP, body(rows=MAX_ROWS + 1)), f"of {MAX_ROWS + 1} rows"),
        (frame(Kind.DROP, body(rows=2)[:-1]), "of 2 rows and 0 laps in 27 bytes"),
        (frame(Kind.DROP, body(laps=1)[:-1]), "of 1 rows and 1 laps in 31 bytes"),
        (frame(body=b""), "without rows"),
        (frame(Kind.BYE, b"x"), "at most 0"),
        (frame(Kind.BEAT, b""), "not JSON"),
        (frame(Kind.BEAT, b"\xff{"), "not JSON"),
        (frame(Kind.BEAT, b"[" * 60_000), "not JSON"),
        (frame(Kind.BEAT, b'{"done": ' + b"1" * 5000 + b"}"), "not JSON"),
        (frame(Kind.BEAT, b"[1]"), "not a JSON object"),
        (frame(body=body(b"")), "carries 1 to"),
        (frame(body=body(b"\0")), "carries 1 to"),
        (frame(body=body(bytes([MAX_TENSORS + 1]))), "carries 1 to"),
        (frame(body=body(b"\1")), "cut short"),
        (frame(body=body(b"\2" + header(1, 0))), "cut short"),
        (frame(body=body(b"\1" + header(0, 1))), "type 0, rank 1"),
        (frame(body=body(b"\1" + header(0, name=b"mask")[:-1])), "name of 4 bytes"),
        (frame(body=body(b"\1" + header(0, name=b"a mask"))), "cannot be called 'a mask'"),
        (frame(body=body(b"\1" + header(0, name=b"\xff"))), "cannot be called"),
        (frame(body=body(b"\1" + header(0, name=b"x" * 81))), "cannot be called"),
        (frame(body=body(b"\2" + header(0, name=b"mask") * 2)), "called 'mask' where another must be"),
        (frame(body=body(b"\2" + header(0, name=b"mask") + header(0))), "called '' where another must be"),
        (frame(body=body(b"\1" + header(9, 1) + bytes(4))), "unknown type 9"),
        (frame(body=body(b"\1" + header(1, *[1] * (MAX_RANK + 1)) + bytes(64))), f"rank {MAX_RANK + 1}"),
        (frame(body=body(b"\1" + header(1, 2, 2)[:-1])), "rank 2"),
        (frame(body=body(b"\1" + header(1, 2**32 - 1, 2**32 - 1))), "bytes in a body"),
        (frame(body=ALIGNED + bytes(7)), "8 bytes in a body that has 7"),
        (frame(body=ALIGNED + bytes(9)), "1 bytes too many"),
        (frame(body=body(b"\1\0\0\0x")), "1 bytes too many"),
    ],
)
def test_whatever_breaks_a_bound_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        list(decode(data))


def test_a_length_over_the_limit_allocates_nothing() -> None:
    decoder = Decoder(LIMIT)
    decoder.buffer()[:] = frame(length=2**32 - 1)
    with pytest.raises(WireError):
        decoder.advance(HEADER.size)
    assert len(decoder.buffer()) <= HEADER.size


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"a mask": None}, "cannot be called 'a mask'"),
        ({"x" * 81: None}, "cannot be called"),
        ({str(number): None for number in range(MAX_TENSORS)}, f"{MAX_TENSORS + 1} tensors"),
    ],
)
def test_names_and_numbers_that_could_not_be_read_are_not_sent(named: dict[str, None], words: str) -> None:
    with pytest.raises(WireError, match=words):
        list(encode(Message(Kind.WORK, 1, rows=ONE, tensors=(None,), named=named)))


def test_a_dtype_without_a_code_cannot_travel() -> None:
    with pytest.raises(WireError, match="float64 cannot travel"):
        list(encode(Message(Kind.WORK, 1, rows=ONE, tensors=(Tensor("float64", (1,), bytes(8)),))))


def feed(data: bytes) -> None:
    """Until it ends or is refused; never more room than the limits allow."""
    decoder = Decoder(LIMIT)
    while data:
        place = decoder.buffer()
        assert 0 < len(place) <= max(LIMIT, MAX_TEXT)
        count = min(len(place), len(data))
        place[:count] = data[:count]
        data = data[count:]
        try:
            decoder.advance(count)
        except WireError:
            return


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=60)
def test_random_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    feed(data)


@given(st.sampled_from([int(kind) for kind in Kind]), st.binary(max_size=120))
@settings(deadline=None, max_examples=100)
def test_random_bodies_raise_nothing_but_wire_errors(kind: int, body: bytes) -> None:
    feed(frame(kind, body))


@given(work, st.integers(0, 10_000), st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_a_flipped_byte_raises_nothing_but_wire_errors(message: Message, place: int, value: int) -> None:
    data = bytearray(raw(message))
    data[place % len(data)] = value
    feed(bytes(data))
