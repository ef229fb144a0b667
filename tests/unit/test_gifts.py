"""What one host gives another arrives whole and verified, or is the controller's to send; strangers get nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import LOCALHOST, free_port
from sealed import key, sealed

from edgesplit.broadcast.archive import runner_archive
from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.forecast import from_peers, shipping
from edgesplit.broadcast.gifts import End, hand_over
from edgesplit.broadcast.transition import Need, Phase, Presence, transition
from edgesplit.errors import HostError
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.hosts import commands
from edgesplit.hosts.host import LocalHost
from edgesplit.inventory import DataPlane, HostSpec, Inventory
from edgesplit.runner.sealing import SEGMENT, place
from edgesplit.split import split_from_placement

ARCHIVE = runner_archive()
DATA = {"shards/a.sealed": os.urandom(2 * SEGMENT), "shards/b.sealed": os.urandom(SEGMENT + 5000)}


def named(path: str) -> str:
    return hashlib.sha256(DATA[path]).hexdigest()


def things() -> list[Thing]:
    def never() -> Iterator[bytes]:
        raise AssertionError("the controller reads nothing")

    return [Thing(path, named(path), len(data), never, sealed=True) for path, data in DATA.items()]


def end(folder: Path, name: str) -> End:
    (folder / "shards").mkdir(parents=True)
    (folder / ARCHIVE.name).write_bytes(ARCHIVE.data)
    data = DataPlane(address=LOCALHOST, port=free_port())
    return End(LocalHost(name), HostSpec(connection="local", data=data), str(folder), ARCHIVE.name)


@pytest.fixture
def giver(tmp_path: Path) -> End:
    made = end(tmp_path / "giver", "shelf")
    for path, data in DATA.items():
        (tmp_path / "giver" / path).write_bytes(sealed(data, named(path)))
    return made


@pytest.fixture
def taker(tmp_path: Path) -> End:
    return end(tmp_path / "taker", "attic")


def there(taker: End) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(taker.folder, "shards").iterdir()}


def test_files_arrive_as_they_lay_and_what_is_there_is_not_given_again(giver: End, taker: End) -> None:
    whole = {path.removeprefix("shards/"): sealed(data, named(path)) for path, data in DATA.items()}
    Path(taker.folder, "shards/a.sealed.part").write_bytes(whole["a.sealed"][: place(1) + 100])
    said: list[str] = []
    with socket.create_server((LOCALHOST, giver.spec.data.port)):  # its runner serves: the port above is taken
        hand_over(things(), giver, taker, key, said.append)
    assert there(taker) == whole
    assert said[0] == "1 MiB from shelf"
    assert Path(taker.folder, "shards/b.sealed").stat().st_mode & 0o777 == 0o600


def test_a_damaged_gift_is_not_kept(giver: End, taker: End) -> None:
    file = Path(giver.folder, "shards/b.sealed")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(HostError, match="damaged, or sealed with another key"):
        hand_over(things(), giver, taker, key, lambda _: None)
    assert set(there(taker)) == {"a.sealed", "b.sealed.part"}


def test_what_the_giver_lacks_is_not_waited_for(giver: End, taker: End) -> None:
    Path(giver.folder, "shards/b.sealed").unlink()
    with pytest.raises(HostError):
        hand_over(things(), giver, taker, key, lambda _: None)
    assert "b.sealed" not in there(taker)


@contextmanager
def giving(giver: End, token: str) -> Iterator[int]:
    words = {"address": LOCALHOST, "ports": [giver.spec.data.port], "files": [["shards/b.sealed", 0]], "timeout": 20}
    line = commands.give(sys.executable, giver.folder, ARCHIVE.name, words).line
    pipe = subprocess.PIPE
    with subprocess.Popen(["/bin/sh", "-c", line], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{token}\n")
        process.stdin.close()
        yield int(json.loads(process.stdout.readline())["port"])
        process.stdout.read()


def test_strangers_get_nothing_and_hold_nobody_up(giver: End) -> None:
    token = os.urandom(32)
    with giving(giver, token.hex()) as port:
        silent = socket.create_connection((LOCALHOST, port))  # slow-loris
        with socket.create_connection((LOCALHOST, port)) as stranger:
            nonce = stranger.recv(16, socket.MSG_WAITALL)
            stranger.sendall(hmac.digest(os.urandom(32), nonce, "sha256"))
            assert stranger.recv(1) == b""
        with socket.create_connection((LOCALHOST, port)) as friend:
            friend.sendall(hmac.digest(token, friend.recv(16, socket.MSG_WAITALL), "sha256"))
            got = b"".join(iter(lambda: friend.recv(2**16), b""))
        silent.close()
    assert got == sealed(DATA["shards/b.sealed"], named("shards/b.sealed"))


# --- who gives what ---------------------------------------------------------------------------------------------------

MIB = 2**20
NEEDS = {"attic": Need({"runner.pyz": 10, "shards/a": 100 * MIB, "shards/b": 50 * MIB, "files/c": 10})}
BARE = Presence(folder=False, objects=frozenset(), epochs=None)


def fleet(uplink: float, **into_attic: float) -> Fleet:
    links = {name: {"attic": LinkProfile(rtt=0.001, bandwidth=rate)} for name, rate in into_attic.items()}
    return Fleet(hosts={}, links=links, uplinks={"attic": uplink}, measured_at=0.0, plan="")


def holding(*objects: str) -> Presence:
    return Presence(folder=True, objects=frozenset(objects), epochs=(1,), keys=True)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (fleet(1e6, desk=50e6, shelf=100e6), {"shards/a": "shelf", "shards/b": "desk"}),
        (fleet(50e6, desk=50e6, shelf=1e6), {}),  # no faster
        (fleet(70e6, desk=100e6, shelf=100e6), {}),  # faster, but not worth it
        (fleet(0.0, desk=100e6, shelf=100e6), {}),  # not measured
        (fleet(1e6), {}),  # not reached
    ],
)
def test_a_peer_gives_what_it_gives_faster(seen: Fleet, expected: dict[str, str]) -> None:
    presences = {
        "attic": BARE,
        "desk": holding("runner.pyz", "shards/a", "shards/b", "files/c"),
        "shelf": holding("runner.pyz", "shards/a"),
        "old": holding("other.pyz", "shards/a", "shards/b"),
    }
    assert from_peers(presences, NEEDS, seen, "runner.pyz").get("attic", {}) == expected


def test_gifts_are_told_and_forecast() -> None:
    presences = {"attic": BARE, "desk": holding("runner.pyz", "shards/a")}
    seen = fleet(1e6, desk=100e6)
    givers = from_peers(presences, NEEDS, seen, "runner.pyz")
    target = split_from_placement(("attic",)).at(1)
    (ship,) = [step for step in transition(None, target, presences, NEEDS, givers) if step.phase is Phase.SHIP]
    assert str(ship) == (
        "ship     attic: send 3 of 4 objects, 50 MiB and the controller's key; desk gives it 1, 100 MiB"
    )
    hosts = Inventory(hosts={"attic": HostSpec(connection="local")})
    assert shipping([ship], seen, hosts) == {"attic": pytest.approx((50 * MIB + 20) / 1e6 + 100 * MIB / 100e6)}
