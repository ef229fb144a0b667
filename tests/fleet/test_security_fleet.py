"""One ring of real runners, and whoever means it harm: eavesdroppers, strangers, neighbours, thieves, forgers.

Whatever they do, the ring gives the tokens that it gave before, or is brought back by the next deploy.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LOCALHOST
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deployments import Deployment, Quiet, deployment
from links import eventually
from profiles import fleet

from edgesplit.broadcast import authority
from edgesplit.broadcast import push as push_module
from edgesplit.broadcast import words as words_module
from edgesplit.broadcast.authority import HostKeys, Secrets, command_key, issue, shard_key, validity
from edgesplit.broadcast.cargo import split_of
from edgesplit.broadcast.note import Errand, now
from edgesplit.broadcast.push import push
from edgesplit.broadcast.recall import repeat
from edgesplit.broadcast.remote import ask, manifest, status
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.signing import Signer
from edgesplit.errors import DeployError, HostError
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import Host, LocalHost
from edgesplit.orchestrator.event import Event
from edgesplit.orchestrator.watch import Watch
from edgesplit.runner.identity import Identity, identity_of
from edgesplit.runner.wire import HEADER, MAGIC, Kind, Message, Row, Tensor, encode

pytestmark = pytest.mark.fleet

START = ("desk", "desk", "shelf", "shelf", "attic", "desk")
OTHER = ("desk", "shelf", "shelf", "attic", "attic", "desk")
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


@dataclass
class Ring:
    """A deployment, and what a thief could have got hold of: the keys of each epoch, each command as it was sent."""

    made: Deployment
    keys: list[dict[str, HostKeys]] = field(default_factory=list)
    commands: list[tuple[str, bytes]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # of what was run on the hosts
    expected: list[int] = field(default_factory=list)

    def port(self, host: str) -> int:
        return self.made.cargo.inventory.hosts[host].data.port

    def identity(self, host: str, back: int = 0) -> Identity:
        """In the ring that serves, or so many epochs before it."""
        return identity_of(self.keys[-1 - back][host].told())

    @property
    def epoch(self) -> int:
        return int(self.status("desk")["serving"])

    @property
    def secrets(self) -> Secrets:
        return Secrets.model_validate_json((self.made.folder("desk") / "keys" / "controller.json").read_text())

    def status(self, name: str) -> dict[str, Any]:
        cargo = self.made.cargo
        spec, archive = cargo.inventory.hosts[name], cargo.archive.name
        return status(self.made.hosts[name], spec, cargo.folder(name), archive)

    def tell(self, name: str, envelope: bytes) -> dict[str, Any]:
        cargo = self.made.cargo
        return ask(
            self.made.hosts[name], cargo.inventory.hosts[name], cargo.folder(name), cargo.archive.name, envelope, 5
        )

    def rotate(self) -> None:
        scene = look(self.made.cargo, self.made.hosts)
        again = repeat(self.made.cargo, scene)
        pushed = push(again, again.split, self.made.hosts, scene, Quiet(), Errand("rotate"))
        assert not pushed.warnings

    def serves(self) -> bool:
        return bool(self.made.complete(PROMPT, 8)["token_ids"] == self.expected)


def overheard(true: Callable[..., Any], lines: list[str]) -> Callable[..., Any]:
    def heard(self: LocalHost, command: Command, *rest: Any, **named: Any) -> Any:
        lines.append(command.line)
        return true(self, command, *rest, **named)

    return heard


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with deployment(tmp_path_factory.mktemp("security")) as made, pytest.MonkeyPatch.context() as patch:
        found = Ring(made)

        def issued(*words: Any) -> dict[str, HostKeys]:
            found.keys.append(issue(*words))
            return found.keys[-1]

        def asked(host: Host, *words: Any) -> dict[str, Any]:
            found.commands.append((host.name, words[-2]))
            return ask(host, *words)

        for name in ("run", "stream"):
            patch.setattr(LocalHost, name, overheard(getattr(LocalHost, name), found.lines))
        patch.setattr(push_module, "issue", issued)
        patch.setattr(words_module, "ask", asked)
        made.push(*START)
        found.expected = made.complete(PROMPT, 8)["token_ids"]
        yield found


# --- on the wire ---


def records(stream: bytes) -> Iterator[int]:
    """The types of the TLS records of a stream, which must consist of nothing else."""
    at = 0
    while at + 5 <= len(stream):
        kind, major, _minor, length = struct.unpack_from("!BBBH", stream, at)
        assert (kind in TLS_RECORDS, major) == (True, 3), f"no TLS record at byte {at}: {stream[at : at + 16]!r}"
        yield kind
        at += 5 + length


@pytest.mark.skipif(os.geteuid() != 0, reason="capturing packets needs root")
def test_a_wire_capture_shows_tls_only(ring: Ring) -> None:
    capture = Capture({ring.port(host) for host in ring.made.hosts})
    capture.start()
    ring.made.push(*OTHER)
    ring.made.complete(PROMPT, 20)
    streams = capture.stop()
    assert len(streams) >= 3  # desk -> shelf -> attic -> desk, at least the callers' directions
    assert sum(len(stream) for stream in streams) > 20 * 3 * 32 * 4  # the hidden states did pass here
    for stream in streams:
        assert {22, 23} & set(records(stream))
        assert MAGIC not in stream  # our own frames begin so
        assert b"desk" not in stream  # nor does a greeting show


# --- who calls the data port ---


def call(ring: Ring, who: Identity | None, words: bytes, host: str = "shelf") -> str:
    """Say this to a runner; what it answers, or how it hangs up. It is believed whatever it shows."""
    if who is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
    else:
        context = who.context(server=False)
    context.verify_mode = ssl.CERT_NONE
    raw = socket.create_connection((LOCALHOST, ring.port(host)), timeout=5)
    try:
        with raw, context.wrap_socket(raw) as sock:
            sock.sendall(words)
            return sock.recv(4096).decode(errors="replace") or "hung up"
    except OSError as error:
        return str(error)


def hello(epoch: int, source: str) -> bytes:
    text = {"deployment": "tiny", "source": source, "target": "shelf"}
    return b"".join(encode(Message(Kind.HELLO, epoch, text=text)))


def test_callers_who_are_not_the_neighbour_of_now_are_refused(ring: Ring) -> None:
    """Nobody, somebody else's, ours of another host, ours of an epoch before, and the right one at the wrong time."""
    epoch, stranger = ring.epoch, issue("tiny", ["desk"], validity(now(), ()))["desk"]
    ring.rotate()
    callers: list[tuple[Identity | None, bytes, str]] = [
        (None, hello(epoch + 1, "desk"), "certificate.required|hung up"),
        (identity_of(stranger.told()), hello(epoch + 1, "desk"), "unknown.ca|decrypt.error|hung up"),
        (ring.identity("desk", back=1), hello(epoch, "desk"), "unknown.ca|decrypt.error|hung up"),
        (ring.identity("attic"), hello(epoch + 1, "attic"), "attic is not a ring neighbour"),
        (ring.identity("attic"), hello(epoch + 1, "desk"), "the certificate is not desk's"),
        (ring.identity("shelf"), hello(epoch + 1, "shelf"), "shelf is not a ring neighbour"),
        (ring.identity("desk"), hello(epoch, "desk"), f"epoch {epoch} is not prepared"),
        (ring.identity("desk"), hello(epoch + 2, "desk"), f"epoch {epoch + 2} is not prepared"),
        (ring.identity("desk"), b"GET / HTTP/1.1\r\n\r\n" * 4, "hung up"),
        (ring.identity("desk"), HEADER.pack(MAGIC, Kind.HELLO, 0, 0, epoch + 1, 2**32 - 1), "hung up"),
    ]
    for who, words, answer in callers:
        assert re.search(f"(?i){answer}", call(ring, who, words)), (answer, words[:40])
    assert ring.serves()
    assert ring.epoch == epoch + 1


@contextlib.contextmanager
def crowd(*places: Callable[[], socket.socket], count: int = 150) -> Iterator[None]:
    """Connections that say nothing, or a byte of something."""
    with contextlib.ExitStack() as stack:
        for number, place in enumerate(places * count):
            sock = stack.enter_context(place())
            with contextlib.suppress(OSError):
                sock.sendall(b"\x16" * (number % 3))
        yield


def test_crowds_that_dawdle_keep_nobody_out(ring: Ring) -> None:
    def tcp(port: int) -> Callable[[], socket.socket]:
        return lambda: socket.create_connection((LOCALHOST, port), timeout=5)

    start = time.monotonic()
    with crowd(tcp(ring.port("shelf")), tcp(ring.port("desk")), tcp(ring.made.plan.api.port)):
        assert ring.serves()
        ring.rotate()
        assert ring.serves()
    assert time.monotonic() - start < 20


def frames() -> dict[str, bytes]:
    work = Message(Kind.WORK, 1, 1, (Row(1, 0),), 0, (Tensor("float32", (1, 1, 32), bytes(128)),))
    whole = b"".join(encode(work))
    head = HEADER.unpack_from(whole)
    return {
        "changed": bytes([whole[0] ^ 1]) + whole[1:],
        "oversize": HEADER.pack(*head[:-1], 2**32 - 1),
        "cut": whole[:-7],
    }


@pytest.mark.parametrize("what", ["changed", "oversize", "cut"])
def test_a_neighbour_that_sends_nonsense_breaks_the_ring_and_no_runner(ring: Ring, what: str) -> None:
    """Only who has the neighbour's key of this epoch gets so far."""
    processes, before = {host: ring.made.pid(host) for host in ring.made.hosts}, ring.status("shelf")["rss"]
    with socket.create_connection((LOCALHOST, ring.port("shelf")), timeout=5) as raw:
        context = ring.identity("desk").context(server=False)
        with contextlib.suppress(OSError), context.wrap_socket(raw) as sock:
            sock.sendall(hello(ring.epoch, "desk"))
            assert sock.recv(4096)
            sock.sendall(frames()[what])
    eventually(lambda: ring.status("shelf")["epochs"][str(ring.epoch)]["state"] == "broken")
    assert ring.status("shelf")["rss"] < before + 64 * 2**20
    ring.rotate()
    assert ring.serves()
    assert {host: ring.made.pid(host) for host in ring.made.hosts} == processes


# --- who commands ---


def test_commands_that_are_not_the_controllers_newest_are_refused_and_logged(ring: Ring) -> None:
    key, serial, later, epoch = command_key(ring.secrets), time.time_ns(), time.time() + 60, ring.epoch
    true, forger = Signer("tiny", key), Signer("tiny", Ed25519PrivateKey.generate())
    tampered = json.loads(true.seal("retire", "shelf", serial, later, epoch=epoch + 7))
    tampered["payload"] = tampered["payload"].replace(f'"epoch": {epoch + 7}', f'"epoch": {epoch}')
    attacks = [
        (forger.seal("retire", "shelf", serial, later, epoch=epoch), "signature is not the deployment's"),
        (json.dumps(tampered).encode(), "signature is not the deployment's"),
        (b'{"verb": "retire", "epoch": 1}', "not a signed command"),
        (true.seal("retire", "shelf", serial, time.time() - 1, epoch=epoch), "expired"),
        (true.seal("retire", "desk", serial, later, epoch=epoch), "the command is for desk"),
        (Signer("other", key).seal("retire", "shelf", serial, later, epoch=epoch), "for deployment other"),
        *((said, "replayed or older command") for host, said in ring.commands if host == "shelf"),
    ]
    for envelope, why in attacks:
        with pytest.raises(HostError, match=why):
            ring.tell("shelf", envelope)
    trail = (ring.made.folder("shelf") / "audit.log").read_text()
    assert trail.count("refused: ") >= len(attacks)
    assert ring.epoch == epoch
    assert ring.serves()


def test_an_older_epoch_is_not_prepared_again(ring: Ring) -> None:
    """All that belongs to it, and a fresh signature of the true key."""
    ring.rotate()
    said = next(json.loads(said) for host, said in ring.commands if host == "shelf" and b"manifest" in said)
    old = json.loads(said["payload"])
    beside = {"keys": said["keys"], "identity": said["identity"]}
    signer = Signer("tiny", command_key(ring.secrets))
    words = {"epoch": old["epoch"], "manifest": old["manifest"]}
    with pytest.raises(HostError, match=f"epoch {old['epoch']} is older than {ring.epoch}, which serves"):
        ring.tell("shelf", signer.seal("prepare", "shelf", time.time_ns(), time.time() + 60, beside, **words))
    assert ring.serves()


# --- keys ---


def test_keys_are_rotated_under_an_answer(ring: Ring) -> None:
    count = 120
    undisturbed = ring.made.complete(PROMPT, count)["token_ids"]
    before, pieces = ring.epoch, []
    for piece in ring.made.stream(PROMPT, count):
        pieces.append(piece)
        if len(pieces) == 10:
            ring.rotate()
    assert pieces[-1]["token_ids"] == undisturbed
    assert ring.epoch == before + 1
    first, second = ring.keys[-2:]
    assert {keys.authority for keys in first.values()}.isdisjoint(keys.authority for keys in second.values())


def test_with_expired_certificates_no_ring_comes_up(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = ring.epoch
    monkeypatch.setattr(authority, "LIFETIME", datetime.timedelta(hours=-1))
    with pytest.raises(DeployError, match="certificate has expired"):
        ring.made.push(*START)
    assert ring.epoch == epoch
    assert ring.serves()


def test_no_host_has_secrets_on_its_disk_or_shows_them(ring: Ring) -> None:
    """But the two that the entry must keep, in files that only its user can read."""
    ring.made.complete(PROMPT, 4)
    weights = [b"".join(shard.chunks())[-64:] for shard in ring.made.cargo.cut.blocks]
    shards = [shard_key(ring.secrets, sha) for sha in ring.made.cargo.cut.all()]
    lines = [line.encode() for epoch in ring.keys for keys in epoch.values() for line in keys.key.splitlines()[1:-1]]
    kept = [ring.secrets.shard_key.encode(), *(line.encode() for line in ring.secrets.command_key.splitlines()[1:-1])]
    said = "\n".join(ring.lines).encode()  # every word that a list of processes could show
    assert b" prepare" not in said
    assert b" control " in said
    hidden = [*weights, *shards, *(key.hex().encode() for key in shards), *lines]
    for host in ring.made.hosts:
        files = [file for file in ring.made.folder(host).rglob("*") if file.is_file()]
        found = {str(file): file.read_bytes() for file in files}
        assert sum(name.endswith(".sealed") for name in found) >= 2
        assert not [file for file in files if file.parent.name == "keys" and file.stat().st_mode & 0o077]
        secrets = [*hidden, *(kept if host != "desk" else [])]
        assert not [name for name, data in found.items() for secret in secrets if secret in data]
        others = b"".join(data for name, data in found.items() if not name.endswith("controller.json"))
        process = Path(f"/proc/{ring.made.pid(host)}")
        shown = [others, (process / "cmdline").read_bytes(), (process / "environ").read_bytes(), said]
        assert not [secret for secret in [*hidden, *kept] for text in shown if secret in text]


def test_a_shard_that_was_changed_is_not_served(ring: Ring) -> None:
    ring.made.push(*OTHER)
    ring.made.push(*START)
    shard = ring.made.folder("attic") / "shards" / f"{ring.made.cargo.cut.blocks[3].sha256}.sealed"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DeployError, match="damaged, or sealed with another key"):
        ring.made.push(*OTHER)
    assert ring.serves()


def test_every_step_is_in_the_audit_log(ring: Ring) -> None:
    """Of the first deploy, on a host that has been in the ring ever since."""
    trail = (ring.made.folder("shelf") / "audit.log").read_text().splitlines()
    first = [
        line.split(" ", 1)[1] for line in trail[: next(n for n, line in enumerate(trail) if "given back" in line) + 1]
    ]
    kinds = ["epoch 1: .*: test", "epoch 1: ship, send", "epoch 1: start,", "prepare epoch 1", "link epoch 1"]
    kinds += ["commit epoch 1", "epoch 1: the lock is given back"]
    assert len(first) == len(kinds), first
    assert all(re.match(kind, line) for kind, line in zip(kinds, first, strict=True)), first
    assert any("given up, this host is put back" in line for line in trail)


def test_a_watch_rotates_keys_that_are_old(ring: Ring) -> None:
    made = ring.made
    made.push(*START)
    before = ring.epoch
    policy = made.plan.watch.model_copy(update={"rotate": 0.5, "min_gain": 1.0, "standby": 0.0})
    cargo = replace(made.cargo, plan=made.plan.model_copy(update={"watch": policy}))
    running = split_of(manifest(made.hosts["desk"], made.cargo.folder("desk")))
    with Watch(cargo, fleet(), made.hosts, running, Quiet(), claim=False) as watch:
        deadline, events = time.monotonic() + 30, list[Event]()
        while time.monotonic() < deadline and not (events and events[-1].event == "moved"):
            events.extend(event for event in watch.round() if event.event != "reading")
    assert [event.event for event in events[-2:]] == ["move", "moved"]
    assert "rotate: the ring's keys are" in events[-2].text
    assert watch.running.same_stages(running)
    assert ring.epoch == before + 1
    assert ring.serves()
