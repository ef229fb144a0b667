"""Hidden states over mutual TLS 1.3: one thread and one socket per direction.

A link goes from one host to the next, and only that way after the greeting: the sender writes, the
receiver's thread reads, neither ever polls. A link is silent for at most BEAT seconds; SILENCE seconds without a byte
are a fault, so a frozen peer is noticed although its kernel still acknowledges.

Must not know: stages, sequences, what an epoch is in.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import queue
import socket
import ssl
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .manifest import fingerprint
from .seldom import Seldom
from .wire import Decoder, Kind, Message, WireError, encode

BEAT = 1.0  # seconds; a third of SILENCE, so that two lost beats are forgiven
SILENCE = 3.0  # seconds until a silent peer counts as lost: three missed beats
GREETING = 5.0  # seconds a stranger has to finish TLS and say HELLO, however he spreads his bytes
LINGER = 1.0  # seconds a refused caller has to read why
CALLERS = 32  # connections that may be greeting at once; of more, whoever has taken longest is hung up on
_TCP_INFO = struct.Struct("=24xI40xI")  # the head of Linux's tcp_info: of it, tcpi_unacked and tcpi_rtt (microseconds)
JOIN = 64 * 2**10  # frames up to this size leave in one TLS write
AT_ONCE = 32 * 2**10  # ... and up to this size fit into a kernel's empty buffer, so that the write cannot wait
log = logging.getLogger("runner")


class LinkError(OSError):
    """The link could not be made, or was refused; the message says why."""


def tune(sock: socket.socket) -> None:
    """No delay for small frames; a cut cable is an error after SILENCE, not after minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE * 1000))


def _write(sock: ssl.SSLSocket, message: Message) -> None:
    pieces = list(encode(message))
    for piece in (b"".join(pieces),) if _size(pieces) <= JOIN else pieces:
        sock.sendall(piece)


def _size(pieces: list[bytes | bytearray | memoryview]) -> int:
    return sum(len(piece) for piece in pieces)


def _unsent(sock: ssl.SSLSocket) -> bool:
    """Has the kernel bytes that the other end has not acknowledged? Then a write might have to wait for it."""
    left = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, left)
    return left[0] > 0


def _read(sock: ssl.SSLSocket, decoder: Decoder, deadline: float | None = None) -> Message:
    """The next message. Raises LinkError at the end of the stream, TimeoutError, WireError.

    Without a `deadline` (time.monotonic) every single read has the socket's own timeout.
    """
    while True:
        if deadline is not None:
            sock.settimeout(_left(deadline))
        count = sock.recv_into(decoder.buffer())
        if count == 0:
            raise LinkError("the connection was closed")
        message = decoder.advance(count)
        if message is not None:
            return message


def _left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the greeting took too long")
    return left


def _hang_up(sock: ssl.SSLSocket) -> None:
    """Close, but let the caller read our last words first: closing upon unread bytes would take them back."""
    with contextlib.suppress(OSError), socket.socket(fileno=sock.detach()) as plain:
        plain.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LINGER
        plain.settimeout(LINGER)
        while plain.recv(JOIN) and time.monotonic() < deadline:
            pass


class Sender(threading.Thread):
    """The sending end of a link. `fault(reason)` is called once, from the thread, when the link breaks."""

    def __init__(self, sock: ssl.SSLSocket, beat: Callable[[], Message], fault: Callable[[str], None]) -> None:
        super().__init__(name="sender", daemon=True)
        self._sock, self._beat, self._fault = sock, beat, fault
        self._lock = threading.Lock()  # of the socket
        self._waiting: deque[Message | None] = deque()  # each stays in it until it is sent
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # rings once for each
        self._failed = False

    def send(self, message: Message) -> None:
        """Never waits. A small message leaves at once where the way is clear, as waking the thread takes longer than
        that (decision 0043); else the thread sends it, in turn."""
        if not (self._lock.acquire(blocking=False) and self._sent_at_once(message)):
            self._waiting.append(message)
            self._bell.put(None)

    def _sent_at_once(self, message: Message) -> bool:
        """With the socket's lock, which it gives back."""
        try:
            if self._waiting or _unsent(self._sock):
                return False
            pieces = list(encode(message))
            if _size(pieces) > AT_ONCE:
                return False
            self._sock.sendall(b"".join(pieces))
        except (OSError, WireError, ValueError) as error:
            self._fail(error)
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Say goodbye after what is queued, then close."""
        self._waiting.append(None)
        self._bell.put(None)

    def _fail(self, error: Exception) -> None:
        self.close()
        if not self._failed:
            self._failed = True
            self._fault(f"sending failed: {error}")

    def round_trip(self) -> float | None:
        """Seconds, as the kernel sees it between a message and its acknowledgement. None where it does not tell, or
        while messages are on their way: then they would measure each other."""
        try:
            told = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            unacknowledged, smoothed = _TCP_INFO.unpack(told)
        except (OSError, AttributeError, struct.error):
            return None
        return None if unacknowledged else smoothed / 1e6

    def run(self) -> None:
        try:
            while self._send_next():
                pass
        except (OSError, WireError) as error:
            self._fail(error)
        finally:
            self._sock.close()

    def _send_next(self) -> bool:
        """What waits longest, or a beat where nothing came for a while; False at the end."""
        try:
            self._bell.get(timeout=BEAT)
        except queue.Empty:
            with self._lock:
                _write(self._sock, self._beat())
            return True
        message = self._waiting[0]
        if message is not None:
            with self._lock:
                _write(self._sock, message)
                self._waiting.popleft()
        return message is not None


@dataclass(frozen=True)
class Call:
    """Whom to call, and what to say."""

    address: str
    port: int
    fingerprint: str
    hello: Message


def connect(call: Call, context: ssl.SSLContext, deadline: float) -> ssl.SSLSocket:
    """Call a runner until it answers or `deadline` (time.monotonic) passes. Raises LinkError, at once if refused."""
    while True:
        try:
            return _call(call, context)
        except LinkError:
            raise
        except OSError as error:
            if time.monotonic() > deadline:
                raise LinkError(f"no link to {call.address}:{call.port}: {error}") from error
            time.sleep(0.1)


def _call(call: Call, context: ssl.SSLContext) -> ssl.SSLSocket:
    """One attempt. Raises LinkError when it was refused, any other OSError when it may be tried again."""
    deadline = time.monotonic() + GREETING
    raw = socket.create_connection((call.address, call.port), timeout=GREETING)
    with raw:  # empty once TLS has taken it over
        tune(raw)
        raw.settimeout(_left(deadline))
        sock = context.wrap_socket(raw, do_handshake_on_connect=False)
    try:
        _introduce(sock, call, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


def _introduce(sock: ssl.SSLSocket, call: Call, deadline: float) -> None:
    place = f"{call.address}:{call.port}"
    try:
        sock.do_handshake()
        if fingerprint(sock.getpeercert(binary_form=True) or b"") != call.fingerprint:
            raise LinkError(f"{place} shows a certificate that is not in the manifest")
        _write(sock, call.hello)
        answer = _read(sock, Decoder(0), deadline)
    except WireError as error:
        raise LinkError(f"{place} does not speak our protocol: {error}") from error
    except ssl.SSLError as error:
        if not _final(error):
            raise
        raise LinkError(f"no link to {place}: {error}") from error
    if answer.kind is not Kind.WELCOME:
        raise LinkError(f"{place} refused: {(answer.text or {}).get('reason', answer.kind.name)}")
    sock.settimeout(None)


def _final(error: ssl.SSLError) -> bool:
    """Is one side's certificate refused (by us, or by the other end's alert), so that calling again is no use?"""
    return isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in (error.reason or "")


class Inbox(Protocol):
    """Who takes what arrives on an accepted link."""

    limit: int

    def receive(self, source: str, message: Message) -> None: ...

    def fault(self, host: str, reason: str) -> None: ...


Admit = Callable[[Message, str], Any]  # (HELLO, fingerprint) -> Inbox, or a str that says why not


class Listener(threading.Thread):
    """Accepts links on one port for all epochs; each gets a thread of its own once it has called."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, admit: Admit) -> None:
        super().__init__(name="listener", daemon=True)
        self.context = context  # for whoever calls from now on; open links keep theirs
        self._admit = admit
        self._greeting: dict[int, socket.socket] = {}  # by number, in the order they called
        self._lock, self._called, self._grumble = threading.Lock(), 0, Seldom()
        self._socket = socket.create_server(address, backlog=CALLERS)
        self._closed = threading.Event()

    def run(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:  # closed; or, for the moment, out of descriptors
                if self._closed.wait(0.1):
                    return
                continue
            threading.Thread(target=self._greet, args=(sock, self._hear(sock)), name="receiver", daemon=True).start()

    def _hear(self, sock: socket.socket) -> int:
        """The caller's number. Of too many, whoever has taken longest is hung up on: a neighbour takes milliseconds."""
        with self._lock:
            if len(self._greeting) >= CALLERS:
                oldest = self._greeting.pop(next(iter(self._greeting)))
                with contextlib.suppress(OSError):  # gone by itself
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)  # below TLS, which another thread is at
                self._grumble("a caller was hung up on: too many others call")
            self._called += 1
            self._greeting[self._called] = sock
            return self._called

    def _replace(self, number: int, sock: socket.socket) -> None:
        """`sock` stands for the caller from now on. Raises LinkError where he was to be hung up on meanwhile."""
        with self._lock:
            if number in self._greeting:
                self._greeting[number] = sock
                return
        sock.close()
        raise LinkError("hung up on")

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accept() that the thread sits in; close alone does not
        self._socket.close()

    def _greet(self, raw: socket.socket, number: int) -> None:
        try:
            link = self._take(raw, number)
        except OSError:
            return  # gone before the first byte
        finally:
            with self._lock:
                self._greeting.pop(number, None)
        if link is not None:
            receive(*link)

    def _take(self, raw: socket.socket, number: int) -> tuple[ssl.SSLSocket, Inbox, str] | None:
        with raw:  # empty once TLS has taken it over
            tune(raw)
            sock = self.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        self._replace(number, sock)
        try:
            return sock, *self._welcome(sock)
        except (OSError, WireError) as error:
            self._grumble(f"a caller was turned away: {error}")
            _hang_up(sock)
            return None

    def _welcome(self, sock: ssl.SSLSocket) -> tuple[Inbox, str]:
        """Who is it, and for whom? Raises OSError, WireError; a caller that got so far has been told."""
        deadline = time.monotonic() + GREETING
        sock.settimeout(GREETING)
        sock.do_handshake()
        hello = _read(sock, Decoder(0), deadline)
        if hello.kind is not Kind.HELLO or hello.text is None:
            raise WireError("the first message must be HELLO")
        verdict = self._admit(hello, fingerprint(sock.getpeercert(binary_form=True) or b""))
        if isinstance(verdict, str):
            _write(sock, Message(Kind.FAULT, hello.epoch, text={"reason": verdict}))
            raise LinkError(verdict)
        _write(sock, Message(Kind.WELCOME, hello.epoch, text={}))
        return verdict, str(hello.text.get("source"))


def receive(sock: ssl.SSLSocket, inbox: Inbox, source: str) -> None:
    decoder = Decoder(inbox.limit)
    sock.settimeout(SILENCE)
    try:
        while True:
            message = _read(sock, decoder)
            if message.kind is Kind.BYE:
                return
            inbox.receive(source, message)
            if hasattr(socket, "TCP_QUICKACK"):  # nothing goes back this way that an acknowledgement could wait for
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    except TimeoutError:
        inbox.fault(source, f"silent for {SILENCE:g} s")
    except (OSError, WireError) as error:
        inbox.fault(source, str(error))
    finally:
        sock.close()
