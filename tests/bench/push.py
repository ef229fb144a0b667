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
from functools import partial
from pathlib import Path

import paramiko
from conftest import Sshd, SshdFarm, SshKeys, free_port
from rich.console import Console
from rich.table import Table

from edgesplit.broadcast.archive import runner_archive
from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.gifts import End, hand_over
from edgesplit.broadcast.ship import Shipment
from edgesplit.hosts import commands
from edgesplit.hosts.host import LocalHost
from edgesplit.hosts.ssh import SshHost
from edgesplit.inventory import DataPlane, HostSpec
from edgesplit.runner.sealing import SEGMENT, Sealer

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "push.json"
SIZE = int(os.environ.get("PUSH_MB", "512")) * 2**20
ROUNDS = int(os.environ.get("PUSH_ROUNDS", "5"))
PIECE, BLOCK = 2**20, 32 * 2**20  # of a model of some billions of parameters
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
    source, target = folder / "source", folder / "target"
    source.mkdir()
    target.mkdir()
    for number in range(SIZE // BLOCK):
        (source / f"{number:02}").write_bytes(os.urandom(BLOCK))
    blocks = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(source.iterdir())}
    seconds: dict[str, list[float]] = {}
    with closing(SshHost("bench", server.target())) as host:
        plain, sealed = (ours(host, target, blocks, sealed=sealed) for sealed in (False, True))
        ways = {US: plain, SEALED: sealed, PEER: from_peer(folder, blocks), **others(server, source, target)}
        for number in range(ROUNDS):
            for way, act in ways.items():
                for old in (target / file.name for file in blocks):
                    old.unlink(missing_ok=True)
                seconds.setdefault(way, [])
                if act is None:
                    continue
                start = time.perf_counter()
                act()
                seconds[way].append(time.perf_counter() - start)
                assert all((target / file.name).stat().st_size >= BLOCK for file in blocks), way
            say.print(f"  round {number + 1} of {ROUNDS}", style="dim")
    return seconds


def ours(host: SshHost, folder: Path, blocks: dict[Path, str], *, sealed: bool) -> Act:
    """What a deployment does, connections and runner archive aside, which it has once per host."""
    key = os.urandom(32)
    archive = runner_archive()
    spec = HostSpec(connection="local", python=sys.executable)

    def ship(*things: Thing) -> None:
        Shipment(host, spec, str(folder), archive.name, things, void, lambda _: key).carry_out()

    ship(Thing(archive.name, archive.sha256, len(archive.data), lambda: iter([archive.data])))
    host.second().run(commands.clock())
    things = [Thing(file.name, sha, BLOCK, partial(pieces, file), sealed=sealed) for file, sha in blocks.items()]
    return lambda: ship(*things)


def pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


def from_peer(folder: Path, blocks: dict[Path, str]) -> Act:
    """Two hosts that are this machine, without SSH between them."""
    archive, key = runner_archive(), os.urandom(32)
    data = DataPlane(address="127.0.0.1", port=free_port())
    spec = HostSpec(connection="local", python=sys.executable, data=data)
    giver, taker = (End(LocalHost(name), spec, str(folder / name), archive.name) for name in ("giver", "target"))
    (folder / "giver").mkdir()
    for end in (giver, taker):
        Path(end.folder, archive.name).write_bytes(archive.data)
    for file in blocks:
        sealer, data_of = Sealer(key), file.read_bytes()
        with Path(giver.folder, file.name).open("wb") as sealed:
            for at in range(0, BLOCK, SEGMENT):
                sealed.write(sealer.seal(data_of[at : at + SEGMENT], last=at + SEGMENT == BLOCK))
    things = [Thing(file.name, sha, BLOCK, lambda: iter([]), sealed=True) for file, sha in blocks.items()]
    return lambda: hand_over(things, giver, taker, lambda _: key, void)


def others(server: Sshd, source: Path, target: Path) -> dict[str, Act | None]:
    options = ["-F", os.devnull, "-i", str(server.key), "-o", f"UserKnownHostsFile={server.known_hosts}"]
    place = f"{server.user}@{server.host}"
    rsh = " ".join(["ssh", *options, "-p", str(server.port)])
    files = [str(file) for file in sorted(source.iterdir())]

    def put() -> None:
        with paramiko.SSHClient() as client:
            client.load_host_keys(str(server.known_hosts))
            client.connect(server.host, server.port, server.user, key_filename=str(server.key))
            session = client.open_sftp()
            for file in files:
                session.put(file, str(target / Path(file).name))

    def run(*words: str, text: str = "") -> Act | None:
        if shutil.which(words[0]) is None:
            return None
        return lambda: void(subprocess.run(words, input=text.encode(), check=True, stdout=subprocess.DEVNULL))

    return {
        SCP: run("scp", "-q", *options, "-P", str(server.port), *files, f"{place}:{target}"),
        "sftp": run(
            "sftp", "-q", *options, "-P", str(server.port), "-b", "-", place, text=f"put {source}/* {target}\n"
        ),
        "rsync": run("rsync", "--whole-file", "--inplace", "-e", rsh, *files, f"{place}:{target}"),
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
    say.print(f"{SIZE / 2**20:.0f} MiB in blocks of {BLOCK / 2**20:.0f}, over loopback SSH; medians of {ROUNDS} rounds")
    say.print("edgesplit verifies a hash, too")
    say.print(table)


if __name__ == "__main__":
    sys.exit(main())
