"""`make bench-lab`: how exact is the lab? Prints a table, writes build/bench/lab.json. Needs root."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgesplit.lab.lab import Lab
from edgesplit.lab.scenario import Scenario

ROOT = Path(__file__).parents[2]
AGENT = Path(__file__).parent / "lab_agent.py"
OUTPUT = ROOT / "build" / "bench" / "lab.json"
HOSTS = ("a", "b", "c", "d", "e")
ROUNDS = 3  # of each measurement; the median counts
GOODPUT = 1448 / 1538  # of a TCP segment with timestamps in an Ethernet frame, with preamble and gap
ECHOES = "200"

say = Console(highlight=False)
Row = dict[str, Any]


def main() -> int:
    rows = [*up_and_down()]
    lab = Lab.up(scenario())
    try:
        for measure in (round_trips, rates, losses, quotas):
            for row in measure(lab):
                say.print(f"  {row['what']}: {row['measured']:.4g} {row['unit']}", style="dim")
                rows.append(row)
    finally:
        lab.down()
    show(rows)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=2) + "\n")
    say.print(f"\nwritten to {OUTPUT.relative_to(ROOT)}")
    return 0


def scenario() -> Scenario:
    return Scenario.model_validate({"name": "bench", "hosts": {name: {"memory": "256MiB"} for name in HOSTS}})


def row(what: str, asked: float | None, measured: float, unit: str, **more: float) -> Row:
    return {"what": what, "asked": asked, "measured": measured, "unit": unit, **more}


def show(rows: list[Row]) -> None:
    table = Table("what", *("asked", "measured", "off by"), box=None, pad_edge=False)
    for each in rows:
        asked, measured = each["asked"], each["measured"]
        extra = ", ".join(
            f"{key} {value:.3g}" for key, value in each.items() if key not in ("what", "asked", "measured", "unit")
        )
        off = "" if not asked else f"{measured / asked - 1:+.1%}"
        unit = each["unit"]
        table.add_row(
            each["what"], "" if asked is None else f"{asked:.4g} {unit}", f"{measured:.4g} {unit}", f"{off}  {extra}"
        )
    say.print(table)


# --- up and down ---


def up_and_down() -> Iterator[Row]:
    ups, downs = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        lab = Lab.up(scenario())
        ups.append(time.perf_counter() - start)
        start = time.perf_counter()
        lab.down()
        downs.append(time.perf_counter() - start)
    yield row(f"up, {len(HOSTS)} hosts", None, statistics.median(ups), "s")
    yield row("down", None, statistics.median(downs), "s")


# --- on the hosts ---


def agent(lab: Lab, host: str, *words: str) -> subprocess.Popen[str]:
    command = ["ssh", "-F", f"{lab.layout.folder}/ssh_config", host, sys.executable, "-S", str(AGENT), *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> Any:
    text, _ = process.communicate(timeout=120)
    return json.loads(text)


def between(lab: Lab, source: str, target: str, *words: str) -> Any:
    """Run an agent's verb on `source` against a server on `target`."""
    address = lab.layout.hosts[target].address
    server = agent(lab, target, "serve", address)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    found = answer(agent(lab, source, words[0], address, *words[1:]))
    server.communicate(timeout=60)
    return found


@contextmanager
def busy(lab: Lab, seconds: float) -> Iterator[None]:
    """Every CPU of the machine has other things to do."""
    burners = [agent(lab, name, "burn", str(seconds)) for name in HOSTS[2:]]
    time.sleep(0.5)
    yield
    for burner in burners:
        burner.communicate()


def switch_seconds(lab: Lab) -> float:
    switch = lab.status().switch
    assert switch is not None
    return switch.cpu_seconds


# --- measurements ---


def round_trips(lab: Lab) -> Iterator[Row]:
    for delay in (0.0, 0.001, 0.0025, 0.01):
        lab.set_link("a", "b", delay=delay)
        yield _round_trip(lab, delay, "RTT")
    lab.set_link("a", "b", delay=0.001)
    with busy(lab, 6):
        yield _round_trip(lab, 0.001, "RTT, machine busy")
    lab.set_link("a", "b", delay=0)


def _round_trip(lab: Lab, delay: float, what: str) -> Row:
    found = [sorted(between(lab, "a", "b", "echo", ECHOES)) for _ in range(1 if "busy" in what else ROUNDS)]
    median = statistics.median(statistics.median(times) for times in found)
    p95 = statistics.median(times[int(len(times) * 0.95)] for times in found)
    return row(f"{what}, delay {delay * 1e3:g} ms", 2e3 * delay, median * 1e3, "ms", p95=p95 * 1e3)


def rates(lab: Lab) -> Iterator[Row]:
    for megabits in (2, 10, 50, 100, 500, None):
        lab.set_link("a", "b", rate=None if megabits is None else megabits * 1e6 / 8, delay=0.001)
        found, shares = [], []
        for _ in range(ROUNDS):
            used, start = switch_seconds(lab), time.perf_counter()
            found.append(_slope(between(lab, "a", "b", "bulk", "3")) * 8 / 1e6)
            shares.append((switch_seconds(lab) - used) / (time.perf_counter() - start))
        asked = None if megabits is None else megabits * GOODPUT
        what = f"TCP, {megabits} Mbit/s" if megabits else "TCP, no limit"
        yield row(what, asked, statistics.median(found), "Mbit/s", switch_cpu=statistics.median(shares))
    lab.set_link("a", "b", rate=None, delay=0)


def _slope(marks: list[tuple[float, int]]) -> float:
    """Bytes per second after the first second."""
    late = [mark for mark in marks if mark[0] >= 1.0]
    return (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0])


def losses(lab: Lab) -> Iterator[Row]:
    for share in (0.01, 0.1):
        lab.set_link("a", "b", one_way=True, loss=share)
        before = _lane(lab)
        sent = answer(agent(lab, "a", "datagrams", lab.layout.hosts["b"].address, "10000"))
        time.sleep(0.1)
        yield row(f"loss {share:.0%}", share * 100, (_lane(lab) - before) / sent * 100, "%")
    lab.set_link("a", "b", loss=0, rate=12.5e6, delay=0.001)
    lab.set_link("a", "b", one_way=True, loss=0.001)
    found = [_slope(between(lab, "a", "b", "bulk", "3")) * 8 / 1e6 for _ in range(ROUNDS)]
    yield row("TCP, 100 Mbit/s, loss 0.1%", None, statistics.median(found), "Mbit/s")
    lab.set_link("a", "b", loss=0, rate=None, delay=0)


def _lane(lab: Lab) -> int:
    return next(lane.lost for lane in lab.status().links if (lane.source, lane.target) == ("a", "b"))


def quotas(lab: Lab) -> Iterator[Row]:
    for cores in (0.05, 0.1, 0.25, 0.5, 1.0):
        lab.set_host("c", cores=cores)
        found = []
        for _ in range(ROUNDS):
            used, wall = answer(agent(lab, "c", "burn", "3"))
            found.append(used / wall)
        yield row(f"quota {cores:g} cores", cores, statistics.median(found), "cores")


if __name__ == "__main__":
    sys.exit(main())
