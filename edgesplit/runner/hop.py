"""What a message costs from one host's worker to the next one's, measured as the ring does it: threads, frames, TLS.

A link of the ring is a connection per direction, so there are two here. Certificates are made on the spot and nobody
checks them: they cost the same, and the caller knows the token.
Must not know: the model, but for the size of a message.
"""

from __future__ import annotations

import datetime
import queue
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .link import SILENCE, Sender, receive, tune
from .scheduler import Work
from .typical import typical
from .wire import Kind, Message, Row, Tensor
from .worker import Worker

ECHOES = 20  # round trips of a small message
PAUSE = 0.03  # seconds between two; in a ring, threads sleep that long between two tokens, and wake up slowly
PATIENCE = 30.0  # seconds for one message
SLACK = 4096  # bytes of a frame beside its tensor


class _End:
    """One end: what arrives goes through a worker, as in a runner; `act` is called with it in the worker's thread."""

    def __init__(self, outgoing: ssl.SSLSocket, act: Callable[[Message], None], limit: int) -> None:
        self.limit = limit + SLACK
        self._worker: Worker = Worker(lambda work: act(work.payload))
        self._sender = Sender(outgoing, lambda: Message(Kind.BEAT, 0, text={}), lambda _: None)
        self._worker.start()
        self._sender.start()

    def send(self, size: int, wanted: int) -> None:
        """A tensor of `size` bytes that asks for one of `wanted` bytes back."""
        tensor = Tensor("float32", (1, 1, max(1, size // 4)), bytes(4 * max(1, size // 4)))
        self._sender.send(Message(Kind.WORK, 0, 0, (Row(0, wanted),), tensors=(tensor,)))

    def receive(self, source: str, message: Message) -> None:  # noqa: ARG002 - as any inbox of a link
        if message.kind is Kind.WORK:
            self._worker.add(Work(0, 0, (), prefill=False, sample=False, payload=message))

    def fault(self, host: str, reason: str) -> None:  # noqa: ARG002 - as any inbox of a link
        self.close()

    def close(self) -> None:
        self._sender.send(Message(Kind.BYE, 0))
        self._sender.close()
        self._worker.stop()


def answer(incoming: socket.socket, outgoing: socket.socket, largest: int) -> None:
    """The listening host's part, until the caller says goodbye: a message of the size that each one asks for."""
    context = _server_context()
    secured = [_secure(sock, context, server=True) for sock in (incoming, outgoing)]
    end = _End(secured[1], lambda message: end.send(message.rows[0].position, 0), largest)
    receive(secured[0], end, "caller")
    end.close()


def ask(outgoing: socket.socket, incoming: socket.socket, sizes: tuple[int, int]) -> dict[str, float]:
    """Seconds: {"echo": of a message of sizes[0] bytes there and back, "there", "back": until sizes[1] bytes have
    arrived and sizes[0] bytes the other way}.

    In the order of a ring: a prompt, the tokens of its answer, then the prompt that is timed. What the kernel knows of
    the way by then, and what it forgets over small messages, differs between its ways to control congestion."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secured = [_secure(sock, context, server=False) for sock in (outgoing, incoming)]
    arrived: queue.SimpleQueue[float] = queue.SimpleQueue()
    end = _End(secured[0], lambda _: arrived.put(time.perf_counter()), max(sizes))
    listener = _listening(secured[1], end)

    def trip(size: int, wanted: int) -> float:
        time.sleep(PAUSE)
        start = time.perf_counter()
        end.send(size, wanted)
        try:
            return arrived.get(timeout=PATIENCE) - start
        except queue.Empty:
            raise TimeoutError(f"nothing came back within {PATIENCE:g} s") from None

    token, chunk = sizes
    trip(chunk, chunk)
    found = {"echo": typical(trip(token, token) for _ in range(ECHOES))}
    found |= {"there": trip(chunk, token), "back": trip(token, chunk)}
    end.close()
    listener.join(SILENCE)
    return found


def _listening(sock: ssl.SSLSocket, end: _End) -> threading.Thread:
    thread = threading.Thread(target=receive, args=(sock, end, "listener"), name="receiver", daemon=True)
    thread.start()
    return thread


def _secure(sock: socket.socket, context: ssl.SSLContext, *, server: bool) -> ssl.SSLSocket:
    tune(sock)
    sock.settimeout(PATIENCE)
    secured = context.wrap_socket(sock, server_side=server)
    secured.settimeout(None)
    return secured


def _server_context() -> ssl.SSLContext:
    """TLS 1.3 with a certificate of this minute, of the kind deployments have."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "measurement")])
    until = now + datetime.timedelta(hours=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, until)
    certificate = made.sign(key, hashes.SHA256())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "both.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(pem)
    return context
