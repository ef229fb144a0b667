"""SshHost: a host reached by SSH (paramiko), and the border where its exceptions are translated.

Must not know: what a command means, nor whom to trust (ssh_trust), nor where a target is (ssh_target).
"""

from __future__ import annotations

import io
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import paramiko

from edgesplit.errors import CommandFailed, HostError, LoginError, Unreachable
from edgesplit.hosts import known_hosts
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import Stream, no_answer
from edgesplit.hosts.ssh_target import Endpoint, jump_target, resolve
from edgesplit.hosts.ssh_trust import check_key, lines, login
from edgesplit.inventory import SshTarget

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_TIMEOUT = 10.0  # seconds for each of TCP, handshake and login
PACKET = 32704  # the most that paramiko puts into one packet of 32768: 1 byte more makes two
SESSIONS = 5  # commands at once: sshd's MaxSessions is 10, and it may count one for a moment after its end
MAX_JUMPS = 8
GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # twice as fast as the ctr that paramiko prefers

_DEAD_PEER = {"TCP_USER_TIMEOUT": 10_000, "TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5}  # ms, s, s; what the system has of it

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what it has to say reaches the user as our errors


# --- the border -------------------------------------------------------------------------------------------------------

_REACH = "check `ssh` of the host in the inventory, and that the host is up"
_BORDER: tuple[tuple[type[Exception], type[HostError], str, str], ...] = (  # the first that fits
    (socket.gaierror, Unreachable, "the name of {place} cannot be looked up: {error.strerror}", _REACH),
    (UnicodeError, Unreachable, "the name of {place} cannot be looked up: it is not a host name", _REACH),
    (ConnectionRefusedError, Unreachable, "{place} refused the connection", "is sshd running there, on that port?"),
    (TimeoutError, Unreachable, "{silence}", "is the host up, and not overloaded?"),
    (OSError, Unreachable, "cannot reach {place}: {error}", _REACH),
    (EOFError, Unreachable, "{place} hung up", ""),
    (paramiko.AuthenticationException, LoginError, "login at {place} failed: {error}", ""),
    (
        paramiko.ChannelException,
        Unreachable,
        "no channel to {place}: {error.text}",
        "nothing listens there, or sshd does not allow it (AllowTcpForwarding, MaxSessions)",
    ),
    (paramiko.SSHException, Unreachable, "SSH with {place} failed: {error}", ""),
)
_FOREIGN = tuple(row[0] for row in _BORDER)


@contextmanager
def _border(host: str, place: str, silence: str) -> Iterator[None]:
    """Within it, whatever paramiko and sockets raise becomes one of our errors."""
    try:
        yield
    except _FOREIGN as error:
        for foreign, ours, message, hint in _BORDER:
            if isinstance(error, foreign):
                raise ours(host, message.format(place=place, silence=silence, error=error), hint) from error


# --- a connection -----------------------------------------------------------------------------------------------------


def _dial_tcp(end: Endpoint, limit: float) -> socket.socket:
    """A socket that sends at once and notices a dead peer, be it while sending or while waiting."""
    connection = socket.create_connection((end.host, end.port), limit)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _DEAD_PEER.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _handshake(transport: paramiko.Transport, limit: float) -> None:
    done = threading.Event()
    transport.banner_timeout = transport.handshake_timeout = 2 * limit  # ours comes first, and says what it was
    transport.start_client(done)
    if not done.wait(limit):
        raise TimeoutError
    if not transport.is_active():
        raise transport.get_exception() or EOFError


def _prefer(transport: paramiko.Transport, kinds: list[str]) -> None:
    """Fast ciphers first, and first the kinds of host key by which we know the host."""
    options = transport.get_security_options()
    options.ciphers = (*GCM, *(name for name in options.ciphers if name not in GCM))
    known = {"rsa-sha2-512" if kind == "ssh-rsa" else kind for kind in kinds}
    options.key_types = tuple(sorted(options.key_types, key=lambda kind: kind not in known))


# --- what runs on a connection ----------------------------------------------------------------------------------------


def _packets(stdin: bytes | Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in [stdin] if isinstance(stdin, bytes) else stdin:
        data = rest + chunk
        whole = len(data) - len(data) % PACKET
        yield from (data[at : at + PACKET] for at in range(0, whole, PACKET))
        rest = data[whole:]
    if rest:
        yield rest


class _Exchange:
    """One command on one channel: its input is sent while a thread each drains its two outputs.

    At the deadline a timer closes the channel, which wakes whoever waits on it.
    """

    def __init__(self, channel: paramiko.Channel, seconds: float) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self._channel = channel
        self._late = threading.Event()
        self._timer = threading.Timer(seconds, self._expire)
        self._drains = [
            threading.Thread(target=_drain, args=(channel.recv, self.stdout), daemon=True),
            threading.Thread(target=_drain, args=(channel.recv_stderr, self.stderr), daemon=True),
        ]

    def _expire(self) -> None:
        self._late.set()
        with suppress(*_FOREIGN):
            self._channel.close()
        self._channel.event.set()  # exec_command waits for it, for ever if the connection died at the wrong moment

    def start(self, line: str) -> None:
        self._timer.start()
        try:
            self._channel.exec_command(f"exec /bin/sh -c {shlex.quote(line)}")  # whatever the login's own shell is
        except paramiko.SSHException:
            if self._late.is_set():
                raise TimeoutError from None
            raise
        for drain in self._drains:
            drain.start()

    def feed(self, stdin: bytes | Iterable[bytes]) -> None:
        """Send it all, or what the command takes of it: why it ended early, its status and stderr tell."""
        for packet in _packets(stdin):
            if not self._send(packet):
                return
        with suppress(*_FOREIGN):
            self._channel.shutdown_write()

    def _send(self, packet: bytes) -> bool:
        with suppress(*_FOREIGN):
            while packet:
                sent = self._channel.send(packet)
                if sent == 0:
                    return False
                packet = packet[sent:]
            return True
        return False

    def finish(self) -> int:
        """The exit status."""
        for drain in self._drains:
            drain.join()
        status = self._channel.recv_exit_status()
        if self._late.is_set():
            raise TimeoutError
        if status >= 0:
            return status
        if not self._channel.eof_received or not self._channel.get_transport().is_active():
            raise ConnectionError("the connection broke while the command ran")
        self.stderr += b"\nended by a signal"
        return 255  # as ssh says it

    def close(self) -> None:
        self._timer.cancel()
        with suppress(*_FOREIGN):
            self._channel.close()


def _drain(read: Callable[[int], bytes], into: bytearray) -> None:
    with suppress(*_FOREIGN):  # a broken connection shows in the exit status
        while data := read(1 << 20):
            into += data


class _Tunnel:
    """A channel with the manners of a socket: a file made of it keeps it open, and its errors are OSErrors."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._closed = False
        self._files = 0

    def send(self, data: bytes, /) -> int:
        with _as_socket():
            return self._channel.send(data)

    def sendall(self, data: bytes, /) -> None:
        with _as_socket():
            self._channel.sendall(data)

    def recv(self, size: int, /) -> bytes:
        with _as_socket():
            return self._channel.recv(size)

    def makefile(self, mode: Literal["rb"], /) -> io.BufferedReader:  # noqa: ARG002 - a socket's signature
        self._files += 1
        return io.BufferedReader(_TunnelFile(self))

    def settimeout(self, seconds: float | None, /) -> None:
        self._channel.settimeout(seconds)

    def close(self) -> None:
        self._closed = True
        self.release(0)

    def release(self, files: int = 1) -> None:
        self._files -= files
        if self._closed and self._files == 0:
            with suppress(*_FOREIGN):
                self._channel.close()


class _TunnelFile(io.RawIOBase):
    def __init__(self, tunnel: _Tunnel) -> None:
        self._tunnel = tunnel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._tunnel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._tunnel.release()


@contextmanager
def _as_socket() -> Iterator[None]:
    try:
        yield
    except (paramiko.SSHException, EOFError) as error:
        raise ConnectionResetError(str(error)) from error


# --- the host ---------------------------------------------------------------------------------------------------------


class SshHost:
    """A host reached by SSH: connects at its first use, and again when the connection was lost between two uses.

    A command that gets no answer in time is left to itself: it may go on over there.
    """

    def __init__(
        self, name: str, spec: SshTarget, config_file: Path | None = None, connect_timeout: float = CONNECT_TIMEOUT
    ) -> None:
        self.name = name
        self._spec = spec
        self._config_file = config_file
        self._limit = connect_timeout
        self._place = spec.host
        self._hops: tuple[str, ...] = ()  # of a jump: the jumps before it, where a chain names them
        self._depth = 0
        self._jump: SshHost | None = None
        self._transport: paramiko.Transport | None = None
        self._full: list[paramiko.Transport] = []
        self._lock = threading.Lock()
        self._sessions = threading.BoundedSemaphore(SESSIONS)

    def run(self, command: Command, stdin: bytes | Iterable[bytes] = b"", timeout: float = 60.0) -> str:
        deadline = time.monotonic() + timeout
        silence = no_answer(command, timeout)
        if not self._sessions.acquire(timeout=timeout):
            raise Unreachable(self.name, silence)
        try:
            with _border(self.name, self._place, silence):
                channel = self._channel("session", deadline)
            with closing(_Exchange(channel, deadline - time.monotonic())) as exchange:
                with _border(self.name, self._place, silence):
                    exchange.start(command.line)
                exchange.feed(stdin)  # outside the border: an exception of `stdin` is its own
                with _border(self.name, self._place, silence):
                    status = exchange.finish()
        finally:
            self._sessions.release()
        if status != 0:
            raise CommandFailed(self.name, command.title, status, exchange.stderr.decode("utf-8", "replace"))
        return exchange.stdout.decode("utf-8", "replace")

    def dial(self, address: str, port: int, timeout: float = 10.0) -> Stream:
        there = f"{address} port {port} (dialled from the host)"
        with _border(self.name, there, f"no answer from {there} within {timeout:g} s"):
            channel = self._channel("direct-tcpip", time.monotonic() + timeout, (address, port))
        channel.settimeout(timeout)
        return _Tunnel(channel)

    def close(self) -> None:
        with self._lock:
            self._drop()
            for full in self._full:
                full.close()
            if self._jump is not None:
                self._jump.close()

    def _channel(self, kind: str, deadline: float, to: tuple[str, int] = ("", 0)) -> paramiko.Channel:
        """A new channel, over a new connection if the one we have turns out to be dead, or full."""
        for tries_left in (2, 1, 0):
            transport = self._connected(deadline)
            left = max(0.1, deadline - time.monotonic())
            try:
                return transport.open_channel(kind, to, ("127.0.0.1", 0), timeout=left)
            except paramiko.ChannelException:
                if kind != "session" or not tries_left:
                    raise
                self._set_aside(transport)
            except paramiko.SSHException:
                if transport.is_active() and time.monotonic() >= deadline:
                    raise TimeoutError from None
                if transport.is_active() or not tries_left:
                    raise
            except (EOFError, OSError):  # broken, whether its thread has noticed or not
                transport.close()
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _set_aside(self, full: paramiko.Transport) -> None:
        """Leave a connection to the sessions it has: commands that never end may fill it for good."""
        with self._lock:
            if self._transport is full:
                self._full.append(full)
                self._transport = None

    def _connected(self, deadline: float) -> paramiko.Transport:
        with self._lock:
            if self._transport is None or not self._transport.is_active():
                self._drop()
                self._transport = self._connect(max(0.1, min(self._limit, deadline - time.monotonic())))
            return self._transport

    def _connect(self, limit: float) -> paramiko.Transport:
        end = resolve(self.name, self._spec, self._config_file)
        self._place = end.place
        silence = f"no answer from {end.place} within {limit:.3g} s"
        with _border(self.name, end.place, silence), ExitStack() as undo:
            carrier = self._carrier(end, limit)
            undo.callback(carrier.close)
            transport = paramiko.Transport(cast("socket.socket", carrier))
            undo.callback(transport.close)
            known = known_hosts.parse(lines(*end.known_hosts))
            _prefer(transport, known_hosts.kinds(known, end.known_as))
            _handshake(transport, limit)
            check_key(self.name, end, known, transport.get_remote_server_key())
            login(self.name, end, transport, limit)
            undo.pop_all()
        return transport

    def _carrier(self, end: Endpoint, limit: float) -> socket.socket | _Tunnel:
        """What the SSH connection runs over: TCP from here, or a channel through the last of the jumps."""
        jumps = self._hops or end.jumps
        if not jumps or jump_target(self.name, jumps[-1]).host == self._spec.host:  # `Host *` names the jump itself too
            return _dial_tcp(end, limit)
        if self._jump is None:
            if self._depth == MAX_JUMPS:
                raise Unreachable(
                    self.name, f"more than {MAX_JUMPS} ProxyJumps", "do they name each other in a circle?"
                )
            self._jump = SshHost(self.name, jump_target(self.name, jumps[-1]), self._config_file, self._limit)
            self._jump._hops, self._jump._depth = jumps[:-1], self._depth + 1
        return _Tunnel(self._jump._channel("direct-tcpip", time.monotonic() + limit, (end.host, end.port)))

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
