"""SshHost: a host reached by SSH (paramiko), and the border where its exceptions are translated.

Must not know: what a command means, whom to trust (ssh_trust), how to log in (ssh_login), where a target is
(ssh_target), what the connection runs over (ssh_carrier).
"""

from __future__ import annotations

import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import cast

import paramiko

from edgesplit.errors import HostError, LoginError, Unreachable
from edgesplit.hosts import ssh_bulk, ssh_carrier, ssh_trust
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import CLOSED, Stream, failed, no_answer
from edgesplit.hosts.known_hosts import Entry
from edgesplit.hosts.lines import Lines
from edgesplit.hosts.ssh_carrier import Carrier, Piped, Tunnel
from edgesplit.hosts.ssh_lines import SshLines
from edgesplit.hosts.ssh_login import login
from edgesplit.hosts.ssh_target import Endpoint, jump_target, resolve
from edgesplit.inventory import SshTarget

CONNECT_TIMEOUT = 10.0  # seconds for each of TCP, handshake and login
SESSIONS = 5  # commands at once: sshd's MaxSessions is 10, and it may count one for a moment after its end
MAX_JUMPS = 8
YOUNG = {"mlkem768x25519-sha256"}  # what an older ssh does not list because it does not know it
GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # twice as fast as the ctr that paramiko prefers

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


class _Transport(paramiko.Transport):
    """Asks for exactly the kinds of host key it was told to; paramiko would add some."""

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return tuple(self.get_security_options().key_types)


def _limit(name: str, end: Endpoint, transport: paramiko.Transport, entries: tuple[Entry, ...]) -> None:
    """What ssh's configuration allows, fast ciphers first, and first the host keys by which we know the host."""
    options = transport.get_security_options()
    for kind, allowed in end.algorithms.items():
        ours = getattr(options, kind)
        common = tuple(one for one in ours if one in allowed or one in YOUNG)
        if not common:
            hint = f"allow one of {', '.join(ours)} in ssh's configuration of {end.host}"
            raise Unreachable(name, f"none of the {kind} that ssh's configuration allows can be used", hint)
        setattr(options, kind, common)
    options.ciphers = tuple(sorted(options.ciphers, key=lambda cipher: cipher not in GCM))
    options.key_types = ssh_trust.wanted(end, entries, tuple(options.key_types))


def _handshake(transport: paramiko.Transport, limit: float) -> None:
    done = threading.Event()
    transport.banner_timeout = transport.handshake_timeout = 2 * limit  # ours comes first, and says what it was
    transport.start_client(done)
    if not done.wait(limit):
        raise TimeoutError
    if not transport.is_active():
        error = transport.get_exception() or EOFError()
        if isinstance(error, _FOREIGN):
            raise error
        raise paramiko.SSHException(f"what it sends makes no sense: {error}") from error  # a key that is none, say


@contextmanager
def _explained(carrier: Carrier) -> Iterator[None]:
    """A connection over a command that breaks is told in the command's own words."""
    try:
        yield
    except (EOFError, paramiko.SSHException) as error:
        said = carrier.said() if isinstance(carrier, Piped) else ""
        if not said:
            raise
        raise ConnectionError(f"its ProxyCommand says: {said}") from error


# --- what runs on a connection ----------------------------------------------------------------------------------------


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

    def start(self, line: str, *, drain: bool = True) -> None:
        """`drain`: gather what it prints; else whoever started it reads the channel."""
        self._timer.start()
        try:
            self._channel.exec_command(f"exec /bin/sh -c {shlex.quote(line)}")  # whatever the login's own shell is
        except paramiko.SSHException:
            if self._late.is_set():
                raise TimeoutError from None
            raise
        self._drains = self._drains if drain else []
        for each in self._drains:
            each.start()

    def wait_for_ever(self) -> None:
        self._timer.cancel()

    def feed(self, stdin: bytes | Iterable[bytes]) -> None:
        """Send it all, or what the command takes of it: why it ended early, its status and stderr tell."""
        for piece in ssh_bulk.pieces(stdin):
            if not self._send(piece):
                return
        with suppress(*_FOREIGN):
            self._channel.shutdown_write()

    def _send(self, piece: memoryview) -> bool:
        with suppress(*_FOREIGN):
            while piece:
                sent = ssh_bulk.send(self._channel, piece)
                if sent == 0:
                    return False
                piece = piece[sent:]
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


# --- the host ---------------------------------------------------------------------------------------------------------


class SshHost:
    """A host reached by SSH: connects at its first use, and again when the connection was lost between two uses.

    A command that gets no answer in time is left to itself: it may go on over there.
    """

    def __init__(
        self, name: str, spec: SshTarget, connect_timeout: float | None = None, *, accept_new: bool = False
    ) -> None:
        """`connect_timeout`: seconds, in place of what ssh's configuration says. `accept_new`: host keys."""
        self.name = name
        self._spec = spec
        self._limit = connect_timeout
        self._accept_new = accept_new
        self._place = spec.host
        self._hops: tuple[str, ...] = ()  # of a jump: the jumps before it, where a chain names them
        self._depth = 0
        self._jump: SshHost | None = None
        self._transport: paramiko.Transport | None = None
        self._full: list[paramiko.Transport] = []
        self._second: SshHost | None = None
        self._closed = False
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
            raise failed(self.name, command, status, bytes(exchange.stderr))
        return exchange.stdout.decode("utf-8", "replace")

    def stream(self, command: Command, stdin: bytes = b"", silence: float = 60.0) -> Lines:
        silent = f"'{command.title}' has said nothing for {silence:g} s"
        with _border(self.name, self._place, silent):
            deadline = time.monotonic() + silence
            channel = self._channel("session", deadline)
            exchange = _Exchange(channel, deadline - time.monotonic())
            try:
                exchange.start(command.line, drain=False)
                exchange.feed(stdin)
            except BaseException:
                exchange.close()
                raise
        exchange.wait_for_ever()
        channel.settimeout(silence)
        border = partial(_border, self.name, self._place, silent)
        return SshLines(channel, exchange, border, lambda *end: failed(self.name, command, *end))

    def dial(self, address: str, port: int, timeout: float = 10.0) -> Stream:
        there = f"{address} port {port} (dialled from the host)"
        with _border(self.name, there, f"no answer from {there} within {timeout:g} s"):
            channel = self._channel("direct-tcpip", time.monotonic() + timeout, (address, port))
        channel.settimeout(timeout)
        return Tunnel(channel)

    def second(self) -> SshHost:
        """sshd opens what a connection brings in one process, and that is what sending waits for (decision 0036)."""
        with self._lock:
            if self._second is None:
                self._second = SshHost(self.name, self._spec, self._limit, accept_new=self._accept_new)
                self._second._hops, self._second._depth = self._hops, self._depth
            return self._second

    def hang_up(self) -> None:
        """Without the lock: whoever connects holds it."""
        for transport in (self._transport, *self._full):
            if transport is not None:
                transport.close()
        if self._second is not None:
            self._second.hang_up()

    def close(self) -> None:
        self._closed = True
        self.hang_up()
        with self._lock:
            self._drop()
            for other in (self._second, self._jump):
                if other is not None:
                    other.close()

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
            if self._closed:
                raise Unreachable(self.name, CLOSED)
            if self._transport is None or not self._transport.is_active():
                self._drop()
                end = resolve(self.name, self._spec)
                limit = self._limit or end.patience or CONNECT_TIMEOUT
                self._transport = self._connect(end, max(0.1, min(limit, deadline - time.monotonic())))
            return self._transport

    def _connect(self, end: Endpoint, limit: float) -> paramiko.Transport:
        self._place = end.place
        silence = f"no answer from {end.place} within {limit:.3g} s"
        with _border(self.name, end.place, silence), ExitStack() as undo:
            carrier = self._carrier(end, limit)
            undo.callback(carrier.close)
            transport = _Transport(cast("socket.socket", carrier), packetizer_class=ssh_bulk.Sealer)
            undo.callback(transport.close)
            entries = ssh_trust.known(end)
            _limit(self.name, end, transport, entries)
            with _explained(carrier):
                _handshake(transport, limit)
            key, accept = transport.get_remote_server_key(), self._accept_new or end.accept_new
            ssh_trust.check_key(self.name, end, entries, key, accept_new=accept)
            login(self.name, end, transport, limit)
            undo.pop_all()
        return transport

    def _carrier(self, end: Endpoint, limit: float) -> Carrier:
        """What the SSH connection runs over: TCP from here, a command, or a channel through the last of the jumps."""
        jumps = self._hops or end.jumps
        last = jump_target(self.name, jumps[-1], self._spec) if jumps else None
        if last is None or last.host == self._spec.host:  # `Host *` names the jump itself too
            return Piped(end.proxy) if end.proxy else ssh_carrier.tcp(end, limit)
        if self._jump is None:
            if self._depth == MAX_JUMPS:
                raise Unreachable(
                    self.name, f"more than {MAX_JUMPS} ProxyJumps", "do they name each other in a circle?"
                )
            self._jump = SshHost(self.name, last, self._limit, accept_new=self._accept_new)
            self._jump._hops, self._jump._depth = jumps[:-1], self._depth + 1
        return Tunnel(self._jump._channel("direct-tcpip", time.monotonic() + limit, (end.host, end.port)))

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
