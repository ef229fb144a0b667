"""Files arrive whole and verified whatever cuts their way, and no byte that is there is sent again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from conftest import LOCALHOST, Sshd, SshdFactory
from sealed import key, sealed

from edgesplit.broadcast import ship
from edgesplit.broadcast.archive import runner_archive
from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.ship import Shipment
from edgesplit.errors import CommandFailed, HostError, Unreachable
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host, LocalHost
from edgesplit.hosts.ssh import SshHost
from edgesplit.inventory import HostSpec
from edgesplit.runner.sealing import SEGMENT, place

SPEC = HostSpec(connection="local", python=sys.executable)
ARCHIVE = runner_archive()
RUNNER = Thing(ARCHIVE.name, ARCHIVE.sha256, len(ARCHIVE.data), lambda: iter([ARCHIVE.data]))


class Cut(Exception):
    """The power went."""


def thing(path: str, data: bytes, until: int | None = None) -> Thing:
    """`until`: where its reading breaks off."""

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(data) if until is None else until, 10_000):
            yield data[at : min(at + 10_000, len(data) if until is None else until)]
        if until is not None:
            time.sleep(0.05)  # what was sent arrives
            raise Cut

    return Thing(path, hashlib.sha256(data).hexdigest(), len(data), chunks)


def shipment(host: Host, folder: Path, things: list[Thing], sent: list[int], **parts: int) -> Shipment:
    named = {path.replace("_", "/", 1): size for path, size in parts.items()}
    return Shipment(host, SPEC, str(folder), ARCHIVE.name, things, sent.append, key, named)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A deployment's folder that has the runner already."""
    shipment(LocalHost("pi"), tmp_path / "tiny", [RUNNER], []).carry_out()
    return tmp_path / "tiny"


def test_the_runner_comes_first_and_receives_the_rest(tmp_path: Path) -> None:
    files = {"shards/a": os.urandom(700_001), "shards/empty": b"", "files/b": b"small"}
    sent: list[int] = []
    things = [thing(path, data) for path, data in files.items()]
    shipment(LocalHost("pi"), tmp_path / "tiny", [*things, RUNNER], sent).carry_out()
    assert {path: (tmp_path / "tiny" / path).read_bytes() for path in files} == files
    assert sum(sent) == sum(map(len, files.values())) + RUNNER.size
    found = [path for path in (tmp_path / "tiny").rglob("*") if path.is_file()]
    assert len(found) == 4
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_a_cut_at_any_byte_is_gone_on_from(folder: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    data = {"shards/a": os.urandom(50_000), "shards/b": os.urandom(150_001)}
    for _ in range(4):
        until = chance.randrange(len(data["shards/b"]))
        broken = [thing("shards/a", data["shards/a"]), thing("shards/b", data["shards/b"], until)]
        with pytest.raises(Cut):
            shipment(LocalHost("pi"), folder, broken, []).carry_out()
        part = folder / "shards" / "b.part"
        there = part.stat().st_size if part.exists() else 0
        assert part.read_bytes() == data["shards/b"][:there] if there else True
        assert (folder / "shards" / "a").read_bytes() == data["shards/a"]
        sent: list[int] = []
        shipment(LocalHost("pi"), folder, [thing("shards/b", data["shards/b"])], sent, shards_b=there).carry_out()
        assert sum(sent) == len(data["shards/b"]) - there
        assert (folder / "shards" / "b").read_bytes() == data["shards/b"]
        (folder / "shards" / "b").unlink()


def test_what_is_to_be_sealed_is_never_there_in_the_clear_and_is_gone_on_from(folder: Path) -> None:
    data = b"weights " * (SEGMENT // 4)  # two segments
    data += b"and the rest"
    whole = Thing("shards/a", hashlib.sha256(data).hexdigest(), len(data), lambda: iter([data]), sealed=True)
    broken = dataclasses.replace(whole, chunks=thing("shards/a", data, SEGMENT + 5000).chunks)
    with pytest.raises(Cut):
        shipment(LocalHost("pi"), folder, [broken], []).carry_out()
    part = folder / "shards" / "a.part"
    assert part.stat().st_size == place(1)
    assert b"weights" not in part.read_bytes()
    sent: list[int] = []
    shipment(LocalHost("pi"), folder, [whole], sent, shards_a=part.stat().st_size).carry_out()
    assert sum(sent) == len(data) - SEGMENT
    assert (folder / "shards" / "a").read_bytes() == sealed(data, whole.sha256)


def test_a_sealed_beginning_of_something_else_is_sent_again(folder: Path) -> None:
    data = os.urandom(SEGMENT + 10)
    whole = Thing("shards/a", hashlib.sha256(data).hexdigest(), len(data), lambda: iter([data]), sealed=True)
    (folder / "shards").mkdir()
    (folder / "shards" / "a.part").write_bytes(sealed(os.urandom(SEGMENT + 10), "another"))
    sent: list[int] = []
    shipment(LocalHost("pi"), folder, [whole], sent, shards_a=place(1)).carry_out()
    assert (folder / "shards" / "a").read_bytes() == sealed(data, whole.sha256)
    assert sum(sent) >= len(data)


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * 2000, b"x" * 2500])
def test_a_beginning_of_something_else_is_found_out(folder: Path, part: bytes) -> None:
    data = os.urandom(2000)
    (folder / "shards").mkdir()
    (folder / "shards" / "a.part").write_bytes(part)
    sent: list[int] = []
    shipment(LocalHost("pi"), folder, [thing("shards/a", data)], sent, shards_a=len(part)).carry_out()
    assert (folder / "shards" / "a").read_bytes() == data
    assert sum(sent) >= len(data)


def test_a_file_that_is_not_what_it_should_be_never_arrives(folder: Path) -> None:
    good = thing("shards/a", b"right")
    wrong = Thing(good.path, good.sha256, good.size, lambda: iter([b"wrong"]))
    with pytest.raises(CommandFailed, match=r"content hash .* is not") as failure:
        shipment(LocalHost("pi"), folder, [wrong], []).carry_out()
    assert failure.value.status == commands.DAMAGED
    assert list((folder / "shards").iterdir()) == []


def test_a_host_without_python(folder: Path) -> None:
    sending = shipment(LocalHost("pi"), folder, [thing("shards/a", b"a")], [])
    sending.spec = HostSpec(connection="local", python="/nowhere/python3")
    with pytest.raises(HostError, match="there is no Python /nowhere/python3 that can be run"):
        sending.carry_out()


def test_a_sender_that_was_believed_dead_does_no_harm(folder: Path) -> None:
    """It holds the same bytes, and writes them where they belong."""
    data = os.urandom(300_000)
    one = thing("shards/a", data)
    line = commands.receive_all(sys.executable, str(folder), ARCHIVE.name, [(one.path, one.sha256, one.size, 0)]).line
    with subprocess.Popen(["/bin/sh", "-c", line], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as ghost:
        assert ghost.stdin is not None
        ghost.stdin.write(struct.pack("!I", 2) + b"{}" + data[:200_000])
        ghost.stdin.flush()
        part = folder / "shards" / "a.part"
        while not part.exists() or part.stat().st_size < 100_000:
            time.sleep(0.01)
        shipment(LocalHost("pi"), folder, [one], [], shards_a=100_000).carry_out()
        ghost.stdin.write(data[200_000:])
        ghost.stdin.close()
    assert (folder / "shards" / "a").read_bytes() == data


def test_what_is_of_no_more_use_goes_after_a_while(folder: Path) -> None:
    (folder / "shards").mkdir()
    for name, age in {"kept": 100, "used": 100, "old": 100, "young": 1, "half.part": 100}.items():
        (folder / "shards" / name).write_bytes(b"x")
        os.utime(folder / "shards" / name, (time.time() - age, time.time() - age))
    words = {"folders": ["shards", "files"], "keep": ["shards/kept"], "used": ["shards/used"], "age": 50}
    for age, left in ((50, {"kept", "used", "young"}), (0, {"kept"})):
        LocalHost("pi").run(commands.tidy(sys.executable, str(folder), ARCHIVE.name, {**words, "age": age}))
        assert {path.name for path in (folder / "shards").iterdir()} == left


# --- over SSH, with a cable that is cut -------------------------------------------------------------------------------


@contextmanager
def cable(server: Sshd, cuts: list[int]) -> Iterator[int]:
    """A port that leads to the server; connection after connection is cut when so many bytes have gone there."""
    listener = socket.create_server((LOCALHOST, 0))

    def lead(near: socket.socket, limit: int | None) -> None:
        with near, socket.create_connection((server.host, server.port)) as far:
            back = threading.Thread(target=_copy, args=(far, near, None), daemon=True)
            back.start()
            _copy(near, far, limit)
            for end in (near, far):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=lead, args=(near, cuts.pop(0) if cuts else None), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def _copy(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    with suppress(OSError):
        while limit is None or limit > 0:
            data = source.recv(1 << 14 if limit is None else min(limit, 1 << 14))
            if not data:
                return
            target.sendall(data)
            limit = None if limit is None else limit - len(data)


@pytest.mark.ssh
def test_over_a_cable_that_is_cut_again_and_again(sshd: SshdFactory, folder: Path) -> None:
    server = sshd()
    _, kind, blob = server.host_line.split()
    server.known_hosts.write_text(f"[{LOCALHOST}]:* {kind} {blob}\n")
    chance = random.Random(3)  # noqa: S311
    data = {f"shards/{name}": os.urandom(chance.randrange(3_000_000)) for name in "abcdefgh"}
    whole = sum(map(len, data.values()))
    cuts = [chance.randrange(10_000, whole // 3) for _ in range(4)] + [100]  # the last in the handshake
    with cable(server, cuts) as port, closing(SshHost("pi", server.target(port=port))) as host:
        sent: list[int] = []
        shipment(host, folder, [thing(path, bytes_) for path, bytes_ in data.items()], sent).carry_out()
    assert not cuts
    assert {path: (folder / path).read_bytes() for path in data} == data
    assert sum(sent) < 2 * whole  # what was on its way is lost with each cut: some of 5 windows of 2 MB


@pytest.mark.ssh
@pytest.mark.parametrize("second", ["good", "refused"])
def test_much_goes_over_two_connections_or_else_over_one(
    sshd: SshdFactory, folder: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.setattr(ship, "TWO_LANES", 1_000_000)
    server = sshd()
    data = {f"shards/{name}": os.urandom(400_000) for name in "abcdef"}
    sent: list[int] = []
    with closing(SshHost("pi", server.target())) as host:
        if second == "refused":
            stranger = server.target(key=str(sshd.keys.pair("stranger")))
            monkeypatch.setattr(host, "_second", SshHost("pi", stranger))
        shipment(host, folder, [thing(path, bytes_) for path, bytes_ in data.items()], sent).carry_out()
        assert server.log.count("Accepted publickey") == {"good": 2, "refused": 1}[second]
    assert {path: (folder / path).read_bytes() for path in data} == data
    assert sum(sent) == sum(map(len, data.values()))


@pytest.mark.ssh
def test_a_host_that_stays_away_is_given_up(sshd: SshdFactory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "PAUSES", (0.01, 0.01))
    server = sshd()
    with (
        cable(server, [100] * 5) as port,
        closing(SshHost("pi", server.target(port=port))) as host,
        pytest.raises(Unreachable),
    ):
        shipment(host, folder, [thing("shards/a", b"a")], []).carry_out()
