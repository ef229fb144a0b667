"""The data plane as an eavesdropper and as a stranger see it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployments import Deployment, deployment

from edgesplit.broadcast.authority import Secrets, create, issue, shard_key
from edgesplit.errors import DeployError
from edgesplit.runner.wire import MAGIC, Kind, Message, encode

pytestmark = pytest.mark.fleet

PROMPT = [40, 7, 99, 140, 23, 200, 81, 17]
ETH_P_ALL = 3
TLS_RECORDS = {20, 21, 22, 23}  # change cipher spec, alert, handshake, application data (RFC 8446, 5.1)


class Capture(threading.Thread):
    """Every TCP payload on the loopback interface to or from some ports, per direction of each connection."""

    def __init__(self, ports: set[int]) -> None:
        super().__init__()
        self._ports = ports
        self._over = threading.Event()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind(("lo", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        self._socket.settimeout(0.2)
        self.streams: dict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)

    def run(self) -> None:
        while not self._over.is_set():
            try:
                frame, address = self._socket.recvfrom(2**17)
            except TimeoutError:
                continue
            if address[2] != socket.PACKET_OUTGOING:  # loopback shows every packet twice
                self._take(frame[14:])

    def _take(self, packet: bytes) -> None:
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return
        start = (packet[0] & 15) * 4
        source, target, sequence = struct.unpack_from("!HHI", packet, start)
        data = packet[start + (packet[start + 12] >> 4) * 4 : struct.unpack_from("!H", packet, 2)[0]]
        if data and {source, target} & self._ports:
            self.streams[source, target][sequence] = data

    def stop(self) -> list[bytes]:
        """The streams, reassembled."""
        self._over.set()
        self.join()
        self._socket.close()
        return [b"".join(data for _, data in sorted(pieces.items())) for pieces in self.streams.values()]


@contextlib.contextmanager
def ring(tmp_path: Path) -> Iterator[Deployment]:
    with deployment(tmp_path) as made:
        yield made


def data_port(made: Deployment, host: str) -> int:
    return made.cargo.inventory.hosts[host].data.port


def records(stream: bytes) -> Iterator[int]:
    """The types of the TLS records of a stream, which must consist of nothing else."""
    at = 0
    while at + 5 <= len(stream):
        kind, major, _minor, length = struct.unpack_from("!BBBH", stream, at)
        assert (kind in TLS_RECORDS, major) == (True, 3), f"no TLS record at byte {at}: {stream[at : at + 16]!r}"
        yield kind
        at += 5 + length


@pytest.mark.skipif(os.geteuid() != 0, reason="capturing packets needs root")
def test_a_wire_capture_shows_tls_only(tmp_path: Path) -> None:
    with ring(tmp_path) as made:
        capture = Capture({data_port(made, host) for host in made.hosts})
        capture.start()
        made.push("desk", "desk", "shelf", "attic", "attic", "desk")
        made.complete(PROMPT, 20)
        streams = capture.stop()
    assert len(streams) >= 3  # desk -> shelf -> attic -> desk, at least the callers' directions
    assert sum(len(stream) for stream in streams) > 20 * 3 * 32 * 4  # the hidden states did pass here
    for stream in streams:
        assert {22, 23} & set(records(stream))
        assert MAGIC not in stream  # our own frames begin so
        assert b"desk" not in stream  # nor does a greeting show


def greet(made: Deployment, context: ssl.SSLContext, source: str) -> str:
    """Call shelf's runner as a stranger would; what it says, or how it hangs up."""
    raw = socket.create_connection(("127.0.0.1", data_port(made, "shelf")), timeout=5)
    with raw, contextlib.suppress(OSError), context.wrap_socket(raw) as sock:
        text = {"deployment": "tiny", "source": source, "target": "shelf"}
        sock.sendall(b"".join(encode(Message(Kind.HELLO, 1, text=text))))
        return sock.recv(4096).decode(errors="replace")
    return "hung up"


def context_of(folder: Path, names: tuple[str, str, str] | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if names is not None:
        context.load_cert_chain(folder / names[1], folder / names[2])
    return context


def test_strangers_are_refused_and_the_ring_serves_on(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    foreign = issue(create("tiny", now), "desk", now)
    (tmp_path / "foreign.pem").write_text(foreign.certificate)
    (tmp_path / "foreign.key").write_text(foreign.key)
    with ring(tmp_path) as made:
        made.push("desk", "desk", "shelf", "shelf", "shelf", "desk")
        expected = made.complete(PROMPT, 8)["token_ids"]
        nobody = context_of(tmp_path, None)
        other_authority = context_of(tmp_path, ("", "foreign.pem", "foreign.key"))
        shelf_itself = context_of(made.folder("shelf") / "keys", ("", "host.pem", "host.key"))
        assert greet(made, nobody, "desk") in ("hung up", "")
        assert greet(made, other_authority, "desk") in ("hung up", "")
        assert "the certificate is not desk's" in greet(made, shelf_itself, "desk")
        assert "is not a ring neighbour" in greet(made, shelf_itself, "attic")
        assert made.complete(PROMPT, 8)["token_ids"] == expected


def test_secrets_are_readable_by_their_owner_only_and_named_nowhere(tmp_path: Path) -> None:
    with ring(tmp_path) as made:
        made.push("desk", "desk", "shelf", "shelf", "shelf", "desk")
        made.complete(PROMPT, 4)
        assert (made.folder("desk") / "keys" / "controller.json").exists()
        assert not (made.folder("shelf") / "keys" / "controller.json").exists()
        for host in ("desk", "shelf"):
            for file in (made.folder(host) / "keys").iterdir():
                assert file.stat().st_mode & 0o077 == 0, file
            for name in ("runner.log", "audit.log", "manifest.json"):
                assert "PRIVATE KEY" not in (made.folder(host) / name).read_text()


def test_weights_are_sealed_and_no_host_has_their_keys_on_its_disk(tmp_path: Path) -> None:
    with ring(tmp_path) as made:
        made.push("desk", "desk", "shelf", "shelf", "shelf", "desk")
        expected = made.complete(PROMPT, 4)["token_ids"]
        secrets = Secrets.model_validate_json((made.folder("desk") / "keys" / "controller.json").read_text())
        weights = [b"".join(shard.chunks())[-64:] for shard in made.cargo.cut.blocks]
        keys = [shard_key(secrets, sha) for sha in made.cargo.cut.all()]
        hidden = [*weights, *keys, *(key.hex().encode() for key in keys)]
        for host in ("desk", "shelf"):
            files = [file for file in made.folder(host).rglob("*") if file.is_file()]
            found = {file.name: file.read_bytes() for file in files}
            assert sum(name.endswith(".sealed") for name in found) >= 3
            assert not [name for name, data in found.items() for secret in hidden if secret in data]
            if host != "desk":
                assert not [name for name, data in found.items() if secrets.shard_key.encode() in data]
            words = Path(f"/proc/{made.pid(host)}/cmdline").read_bytes()
            assert not any(secret in words for secret in hidden)
        shard = max((made.folder("shelf") / "shards").iterdir(), key=lambda file: file.stat().st_size)
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        with pytest.raises(DeployError, match="damaged, or sealed with another key"):
            made.push("desk", "shelf", "shelf", "shelf", "shelf", "desk")
        assert made.complete(PROMPT, 4)["token_ids"] == expected
