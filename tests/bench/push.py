"""`make bench-push`: sending weights to a host over loopback SSH, beside scp, sftp, rsync and paramiko's own put.

Prints a table, writes build/bench/push.json. Runs take turns, so that a disturbance hits all alike; medians count.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import paramiko
from conftest import Sshd, SshdFarm, SshKeys, free_port
from rich.console import Console
from rich.table import Table

from edgesplit.broadcast.archive import runner_archive
from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.gifts import End, hand_over
from edgesplit.broadcast.ship import Shipment
from edgesplit.hosts.host import LocalHost
from edgesplit.hosts.ssh import SshHost
from edgesplit.inventory import DataPlane, HostSpec
from edgesplit.runner.sealing import SEGMENT, Sealer

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "push.json"
SIZE = int(os.environ.get("PUSH_MB", "512")) * 2**20
ROUNDS = int(os.environ.get("PUSH_ROUNDS", "5"))
PIECE = 2**20
US, SEALED, PEER = "edgesplit", "edgesplit, sealed on disk", "edgesplit, from host to host"
SCP, PUT = "scp", "paramiko put"
GOALS = {SCP: 1.2, PUT: 3.0}

say = Console(highlight=False)
Act = Callable[[], None]


def main() -> int:
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if sshd is None:
        say.print("sshd is not installed: nothing to send to")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        farm = SshdFarm(folder, sshd, SshKeys(folder, "ssh-keygen"))
        try:
            rows = measure(folder, farm(Subsystem="sftp internal-sftp"))
        finally:
            farm.stop()
    show(rows)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({"bytes": SIZE, "rounds": ROUNDS, "seconds": rows}, indent=2) + "\n")
    say.print(f"\nwritten to {OUTPUT.relative_to(ROOT)}")
    return 0


def measure(folder: Path, server: Sshd) -> dict[str, list[float]]:
    """Way -> seconds of each round; no round for what is not installed."""
    source, target = folder / "source", folder / "target" / "file"
    target.parent.mkdir()
    with source.open("wb") as file:
        for _ in range(SIZE // PIECE):
            file.write(os.urandom(PIECE))
    with source.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    seconds: dict[str, list[float]] = {}
    with closing(SshHost("bench", server.target())) as host:
        plain, sealed = (ours(host, target.parent, source, sha, sealed=sealed) for sealed in (False, True))
        peer = from_peer(folder, source, sha)
        ways = {US: plain, SEALED: sealed, PEER: peer, **others(server, source, target)}
        for number in range(ROUNDS):
            for way, act in ways.items():
                target.unlink(missing_ok=True)
                seconds.setdefault(way, [])
                if act is None:
                    continue
                start = time.perf_counter()
                act()
                seconds[way].append(time.perf_counter() - start)
                assert target.stat().st_size >= SIZE, way
            say.print(f"  round {number + 1} of {ROUNDS}", style="dim")
    return seconds


def ours(host: SshHost, folder: Path, source: Path, sha: str, *, sealed: bool) -> Act:
    """What a deployment does, connection and runner archive aside, which it has once per host."""
    key = os.urandom(32)
    archive = runner_archive()
    spec = HostSpec(connection="local", python=sys.executable)

    def ship(thing: Thing) -> None:
        Shipment(host, spec, str(folder), archive.name, [thing], lambda _: None, lambda _: key).carry_out()

    def chunks() -> Iterator[bytes]:
        with source.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    ship(Thing(archive.name, archive.sha256, len(archive.data), lambda: iter([archive.data])))
    return lambda: ship(Thing("file", sha, SIZE, chunks, sealed=sealed))


def from_peer(folder: Path, source: Path, sha: str) -> Act:
    """Two hosts that are this machine, without SSH between them."""
    archive, token = runner_archive(), os.urandom(32)
    data = DataPlane(address="127.0.0.1", port=free_port())
    spec = HostSpec(connection="local", python=sys.executable, data=data)
    giver, taker = (End(LocalHost(name), spec, str(folder / name), archive.name) for name in ("giver", "target"))
    (folder / "giver").mkdir()
    for end in (giver, taker):
        Path(end.folder, archive.name).write_bytes(archive.data)
    sealer, left = Sealer(token), SIZE
    with source.open("rb") as plain, Path(giver.folder, "file").open("wb") as sealed:
        while piece := plain.read(SEGMENT):
            left -= len(piece)
            sealed.write(sealer.seal(piece, last=not left))
    thing = Thing("file", sha, SIZE, lambda: iter([]), sealed=True)
    return lambda: hand_over([thing], giver, taker, lambda _: token, void)


def others(server: Sshd, source: Path, target: Path) -> dict[str, Act | None]:
    options = ["-F", os.devnull, "-i", str(server.key), "-o", f"UserKnownHostsFile={server.known_hosts}"]
    place = f"{server.user}@{server.host}"
    rsh = " ".join(["ssh", *options, "-p", str(server.port)])

    def put() -> None:
        with paramiko.SSHClient() as client:
            client.load_host_keys(str(server.known_hosts))
            client.connect(server.host, server.port, server.user, key_filename=str(server.key))
            client.open_sftp().put(str(source), str(target))

    def run(*words: str, text: str = "") -> Act | None:
        if shutil.which(words[0]) is None:
            return None
        return lambda: void(subprocess.run(words, input=text.encode(), check=True, stdout=subprocess.DEVNULL))

    return {
        SCP: run("scp", "-q", *options, "-P", str(server.port), str(source), f"{place}:{target}"),
        "sftp": run("sftp", "-q", *options, "-P", str(server.port), "-b", "-", place, text=f"put {source} {target}\n"),
        "rsync": run("rsync", "--whole-file", "--inplace", "-e", rsh, str(source), f"{place}:{target}"),
        PUT: put,
    }


def void(_: object) -> None:
    """An act has no answer."""


def show(rows: dict[str, list[float]]) -> None:
    table = Table("way", "MB/s", "seconds", "edgesplit is faster by", box=None, pad_edge=False)
    mine = statistics.median(rows[US])
    for way, seconds in rows.items():
        if not seconds:
            table.add_row(way, "not installed")
            continue
        took = statistics.median(seconds)
        goal = f"   goal {GOALS[way]:g}" if way in GOALS else ""
        table.add_row(
            way,
            f"{SIZE / took / 1e6:.0f}",
            f"{took:.2f}",
            "" if way in (US, SEALED, PEER) else f"{took / mine:.2f}{goal}",
        )
    say.print(f"{SIZE / 2**20:.0f} MiB over loopback SSH, medians of {ROUNDS} rounds; edgesplit verifies a hash too")
    say.print(table)


if __name__ == "__main__":
    sys.exit(main())
