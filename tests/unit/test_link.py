"""Links over true TLS on the loopback: what is sent arrives, strangers stay out and learn why, silence is a fault."""

from __future__ import annotations

import contextlib
import datetime
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import LOCALHOST
from links import NOW, changing, eventually, identities, no_thread_left

from edgesplit.broadcast.authority import Validity
from edgesplit.runner import link
from edgesplit.runner.identity import Identity
from edgesplit.runner.link import Call, LinkError, Listener, Sender, connect
from edgesplit.runner.wire import HEADER, Decoder, Kind, Message, Row, Tensor, encode

LIMIT = 2**20


class Inbox:
    """Keeps what arrives."""

    limit = LIMIT

    def __init__(self) -> None:
        self.messages: queue.Queue[tuple[str, Message]] = queue.Queue()
        self.faults: queue.Queue[tuple[str, str]] = queue.Queue()

    def receive(self, source: str, message: Message) -> None:
        self.messages.put((source, message))

    def fault(self, host: str, reason: str) -> None:
        self.faults.put((host, reason))


class Shelf:
    """A listening host that knows one neighbour, desk."""

    def __init__(self) -> None:
        self.keys = identities("desk", "shelf", "attic")
        self.inbox = Inbox()
        self.listener = Listener((LOCALHOST, 0), self.keys["shelf"].context(server=True), self.admit)
        self.port: int = self.listener._socket.getsockname()[1]

    def admit(self, hello: Message, caller: str) -> Inbox | str:
        return (
            self.inbox
            if caller == self.keys["desk"].fingerprint
            else f"{(hello.text or {})['source']} is not my neighbour"
        )

    def call(self, fingerprint: str = "", source: str = "desk") -> Call:
        text = {"deployment": "tiny", "source": source, "target": "shelf"}
        return Call(
            LOCALHOST, self.port, fingerprint or self.keys["shelf"].fingerprint, Message(Kind.HELLO, 1, text=text)
        )

    def connect(self, who: str = "desk", **more: str) -> ssl.SSLSocket:
        return connect(self.call(**more), self.keys[who].context(server=False), time.monotonic())

    def raw(self) -> socket.socket:
        return socket.create_connection((LOCALHOST, self.port), timeout=5)

    @contextlib.contextmanager
    def sender(self, beat: Message | None = None) -> Iterator[Sender]:
        self.lost: queue.Queue[str] = queue.Queue()
        sender = Sender(self.connect(), lambda: beat or Message(Kind.BEAT, 1, text={}), self.lost.put)
        sender.start()
        try:
            yield sender
        finally:
            sender.close()
            sender.join(5)

    def still_works(self) -> bool:
        with self.sender() as sender:
            sender.send(Message(Kind.DROP, 1, rows=(Row(99, 0),)))
            return self.inbox.messages.get(timeout=5)[1].rows == (Row(99, 0),)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with no_thread_left():
        made = Shelf()
        made.listener.start()
        yield made
        made.listener.close()
        made.listener.join(5)


def work(size: int) -> Message:
    data = bytes(range(256)) * (size // 256)
    return Message(Kind.WORK, 1, 2, (Row(3, 4),), 5, (Tensor("int64", (size // 8,), data), None))


# --- what is sent arrives ---


@pytest.mark.parametrize("size", [256, link.JOIN, LIMIT - 4096])
def test_a_message_arrives_intact(shelf: Shelf, size: int) -> None:
    with shelf.sender() as sender:
        sender.send(work(size))
        source, message = shelf.inbox.messages.get(timeout=5)
    sent, got = work(size).tensors[0], message.tensors[0]
    assert sent is not None
    assert got is not None
    assert (source, message.stage, message.rows, message.flags) == ("desk", 2, (Row(3, 4),), 5)
    assert (got.dtype, got.shape, bytes(got.data)) == (sent.dtype, sent.shape, sent.data)


def test_messages_keep_their_order(shelf: Shelf) -> None:
    with shelf.sender() as sender:
        for number in range(200):
            sender.send(Message(Kind.DROP, 1, rows=(Row(number, 0),)))
        assert [shelf.inbox.messages.get(timeout=5)[1].rows[0].sequence for _ in range(200)] == list(range(200))


def test_a_small_message_leaves_in_the_callers_thread_and_no_message_is_waited_for(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor overtakes one that waits: for the kernel to be rid of others, or because it is large."""
    large, drops = work(link.AT_ONCE + 8192), [Message(Kind.DROP, 1, rows=(Row(number, 0),)) for number in range(4)]
    with shelf.sender() as sender:
        threads = set[str]()
        true = link.encode
        monkeypatch.setattr(link, "encode", lambda what: threads.add(threading.current_thread().name) or true(what))
        eventually(lambda: not link._unsent(sender._sock))
        sender.send(drops[0])
        assert threads == {threading.current_thread().name}
        sender.send(large)
        monkeypatch.setattr(link, "_unsent", lambda _: True)
        sender.send(drops[1])
        with sender._lock:  # a write that takes long
            sender.send(drops[2])
        monkeypatch.undo()
        sender.send(drops[3])
        came = [shelf.inbox.messages.get(timeout=5)[1] for _ in range(5)]
    assert [message.kind for message in came] == [Kind.DROP, Kind.WORK, *[Kind.DROP] * 3]
    assert [message.rows[0].sequence for message in came if message.kind is Kind.DROP] == [0, 1, 2, 3]


def test_a_goodbye_is_no_fault(shelf: Shelf) -> None:
    with shelf.sender() as sender:
        sender.send(Message(Kind.BYE, 1))
    eventually(lambda: threading.active_count() and not _receivers())
    assert shelf.inbox.faults.empty()
    assert shelf.lost.empty()


def _receivers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "receiver"]


# --- strangers stay out, and learn why ---


def test_a_caller_without_a_certificate_is_refused(shelf: Shelf) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=shelf.keys["desk"].authority)
    with pytest.raises(LinkError, match=r"(?i)certificate.required"):
        connect(shelf.call(), context, time.monotonic() + 5)
    assert shelf.still_works()


def test_a_caller_of_another_authority_is_refused(shelf: Shelf) -> None:
    ours, theirs = shelf.keys["desk"], identities("desk")["desk"]
    forged = Identity(ours.authority, theirs.certificate, theirs.key)  # believes us, is not believed
    with pytest.raises(LinkError, match=r"(?i)unknown.ca|decrypt.error"):
        connect(shelf.call(), forged.context(server=False), time.monotonic() + 5)
    assert shelf.still_works()


def test_a_caller_who_is_not_the_named_neighbour_is_refused(shelf: Shelf) -> None:
    with pytest.raises(LinkError, match="refused: attic is not my neighbour"):
        shelf.connect("attic", source="attic")
    with pytest.raises(LinkError, match="refused: desk is not my neighbour"):
        shelf.connect("attic", source="desk")
    assert shelf.still_works()


def test_a_listener_with_another_certificate_gets_no_word(shelf: Shelf) -> None:
    with pytest.raises(LinkError, match="a certificate that is not in the manifest"):
        shelf.connect(fingerprint=shelf.keys["attic"].fingerprint)
    assert shelf.inbox.messages.empty()
    assert shelf.still_works()


def test_a_listener_of_another_authority_gets_no_word(shelf: Shelf) -> None:
    other = identities("desk")["desk"]
    with pytest.raises(LinkError, match=r"(?i)certificate verify failed"):
        connect(shelf.call(), other.context(server=False), time.monotonic() + 5)


def test_a_certificate_of_yesterday_or_tomorrow_is_refused(shelf: Shelf) -> None:
    hour = datetime.timedelta(hours=1)
    for begin, why in ((NOW - 2 * hour, "certificate has expired"), (NOW + hour, "certificate is not yet valid")):
        old = identities("desk", "shelf", valid=Validity(begin, begin + hour))
        shelf.listener.context = old["shelf"].context(server=True)
        with pytest.raises(LinkError, match=why):
            connect(shelf.call(), old["desk"].context(server=False), time.monotonic() + 5)
        credulous = old["desk"].context(server=False)
        credulous.verify_mode = ssl.CERT_NONE
        with pytest.raises(LinkError, match=r"(?i)expired|bad.certificate"):
            connect(shelf.call(old["shelf"].fingerprint), credulous, time.monotonic() + 5)


def test_with_new_certificates_open_links_go_on_and_old_ones_open_none(shelf: Shelf) -> None:
    with shelf.sender() as sender:
        before, shelf.keys = shelf.keys, identities("desk", "shelf")
        shelf.listener.context = shelf.keys["shelf"].context(server=True)
        with pytest.raises(LinkError, match=r"(?i)certificate verify failed"):
            connect(shelf.call(), before["desk"].context(server=False), time.monotonic() + 5)
        sender.send(Message(Kind.DROP, 1, rows=(Row(7, 0),)))
        assert shelf.inbox.messages.get(timeout=5)[1].rows == (Row(7, 0),)
    assert shelf.still_works()


def test_a_byte_changed_on_the_way_is_a_fault(shelf: Shelf) -> None:
    with changing(shelf.port) as (port, change):
        call = Call(LOCALHOST, port, shelf.keys["shelf"].fingerprint, shelf.call().hello)
        with connect(call, shelf.keys["desk"].context(server=False), time.monotonic() + 5) as sock:
            sock.sendall(b"".join(encode(work(256))))
            assert shelf.inbox.messages.get(timeout=5)
            change.set()
            sock.sendall(b"".join(encode(work(256))))
            source, reason = shelf.inbox.faults.get(timeout=5)
    assert source == "desk"
    assert "bad record mac" in reason.lower().replace("_", " ")
    assert shelf.inbox.messages.empty()
    assert shelf.still_works()


def test_older_tls_is_refused(shelf: Shelf) -> None:
    context = shelf.keys["desk"].context(server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(LinkError, match=r"(?i)protocol.version"):
        connect(shelf.call(), context, time.monotonic() + 5)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(99), bytes(5000), b""])
def test_plain_tcp_and_garbage_are_dropped_without_harm(shelf: Shelf, garbage: bytes) -> None:
    with shelf.raw() as stranger, contextlib.suppress(ConnectionError):
        stranger.sendall(garbage)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass
    assert shelf.inbox.faults.empty()
    assert shelf.still_works()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 3,
        b"".join(encode(Message(Kind.DROP, 1, rows=(Row(1, 0),)))),
        b"".join(encode(work(256))),
    ],
)
def test_a_neighbour_must_greet_first(shelf: Shelf, words: bytes) -> None:
    with _tls(shelf) as sock:
        sock.sendall(words)
        assert sock.recv(100) == b""
    assert shelf.inbox.messages.empty()


@contextlib.contextmanager
def _tls(shelf: Shelf, who: str = "desk") -> Iterator[ssl.SSLSocket]:
    """TLS with the right keys, and not a word yet."""
    with shelf.raw() as raw, shelf.keys[who].context(server=False).wrap_socket(raw) as sock:
        yield sock


def test_a_caller_that_greets_byte_by_byte_is_not_waited_for(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GREETING", 0.3)
    monkeypatch.setattr(link, "LINGER", 0.1)
    start = time.monotonic()
    with _tls(shelf) as sock, contextlib.suppress(OSError):
        for byte in b"".join(encode(shelf.call().hello)):
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
            if not _receivers():
                break
    eventually(lambda: not _receivers())
    assert time.monotonic() - start < 2 * link.GREETING + link.LINGER
    monkeypatch.undo()
    assert shelf.still_works()


def test_a_caller_that_says_nothing_is_not_waited_for(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GREETING", 0.1)
    with shelf.raw() as stranger:
        assert stranger.recv(100) == b""


def test_only_so_many_strangers_are_greeted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CALLERS", 2)
    monkeypatch.setattr(link, "GREETING", 5.0)
    monkeypatch.setattr(link, "LINGER", 0.1)
    with no_thread_left(), contextlib.ExitStack() as stack:
        shelf = Shelf()
        shelf.listener.start()
        stack.callback(shelf.listener.close)
        silent = [stack.enter_context(shelf.raw()) for _ in range(3)]
        assert silent[0].recv(1) == b""  # hung up on long before its time is over
        desk = shelf.keys["desk"].context(server=False)
        connect(shelf.call(), desk, time.monotonic()).close()  # a neighbour gets in at the first call
        assert silent[1].recv(1) == b""


# --- calling ---


def test_a_call_is_repeated_until_the_deadline(shelf: Shelf) -> None:
    shelf.listener.close()
    start = time.monotonic()
    with pytest.raises(LinkError, match=f"no link to {LOCALHOST}:{shelf.port}: .*refused"):
        connect(shelf.call(), shelf.keys["desk"].context(server=False), start + 0.15)
    assert 0.15 < time.monotonic() - start < 2


def test_whoever_is_no_runner_is_told_from_one(shelf: Shelf) -> None:
    identity = shelf.keys["attic"]
    with socket.create_server((LOCALHOST, 0)) as server:
        thread = threading.Thread(target=_http, args=(server, identity))
        thread.start()
        call = Call(LOCALHOST, server.getsockname()[1], identity.fingerprint, shelf.call().hello)
        with pytest.raises(LinkError, match="does not speak our protocol: not a frame"):
            connect(call, shelf.keys["desk"].context(server=False), time.monotonic())
        thread.join(5)


def _http(server: socket.socket, identity: Identity) -> None:
    raw, _ = server.accept()
    with raw, identity.context(server=True).wrap_socket(raw, server_side=True) as sock:
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        sock.recv(1000)


# --- faults ---


def test_a_neighbour_that_closes_without_goodbye_is_a_fault(shelf: Shelf) -> None:
    shelf.connect().close()
    assert shelf.inbox.faults.get(timeout=5) == ("desk", "the connection was closed")


def test_a_neighbour_that_dies_is_a_fault(shelf: Shelf) -> None:
    sock = shelf.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset, as a crash does
    sock.close()
    assert shelf.inbox.faults.get(timeout=5)[0] == "desk"


def test_silence_is_a_fault_and_beats_break_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SILENCE", 0.4)
    monkeypatch.setattr(link, "BEAT", 0.05)
    with shelf.sender(Message(Kind.BEAT, 1, text={"done": 7})) as sender:
        for _ in range(10):  # more than SILENCE
            assert shelf.inbox.messages.get(timeout=5)[1].text == {"done": 7}
        assert shelf.inbox.faults.empty()
        sender.send(Message(Kind.BYE, 1))
    with shelf.connect():  # open, and dumb: a frozen process
        assert shelf.inbox.faults.get(timeout=5) == ("desk", "silent for 0.4 s")


def test_a_frame_over_the_limit_is_a_fault_and_ends_the_link(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BEAT", 0.02)
    with shelf.sender() as sender:
        sender.send(work(2 * LIMIT))
        source, reason = shelf.inbox.faults.get(timeout=5)
        assert source == "desk"
        assert f"at most {LIMIT} are allowed" in reason
        assert "sending failed" in shelf.lost.get(timeout=5)  # beats find the link closed


def test_garbage_behind_a_greeting_is_a_fault(shelf: Shelf) -> None:
    with shelf.connect() as sock:
        sock.sendall(bytes(100))
        assert "not a frame" in shelf.inbox.faults.get(timeout=5)[1]


def test_a_link_the_other_end_closes_is_lost(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BEAT", 0.02)

    def refuse(_source: str, _message: Message) -> None:
        raise OSError("no more of this")

    monkeypatch.setattr(shelf.inbox, "receive", refuse)
    with shelf.sender():
        assert "sending failed" in shelf.lost.get(timeout=5)
    assert shelf.lost.empty()  # told once


def test_what_cannot_be_encoded_is_a_fault_of_the_link(shelf: Shelf) -> None:
    with shelf.sender() as sender:
        sender.send(Message(Kind.WORK, 1, rows=(Row(1, 0),), tensors=(Tensor("float64", (1,), bytes(8)),)))
        assert "float64 cannot travel" in shelf.lost.get(timeout=5)
        sender.send(Message(Kind.BEAT, 1, text={}))
    assert shelf.lost.empty()  # told once


# --- the listener ---


def test_the_listener_outlives_a_failing_accept(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    true = shelf.listener._socket
    fails = iter([True])

    class Flaky:
        def accept(self) -> Any:
            if next(fails, False):
                raise OSError("too many open files")
            return true.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(true, name)

    monkeypatch.setattr(shelf.listener, "_socket", Flaky())
    assert shelf.still_works()  # the accept() under way
    assert shelf.still_works()


def test_closing_twice_is_no_error(shelf: Shelf) -> None:
    shelf.listener.close()
    shelf.listener.close()


def test_hello_fits_what_a_stranger_may_send(shelf: Shelf) -> None:
    decoder, data = Decoder(0), b"".join(encode(shelf.call().hello))
    decoder.buffer()[:] = data[: HEADER.size]
    assert decoder.advance(HEADER.size) is None
