"""`make bench-serve_fleet`: the ring on hosts with half a core each and links of their own. Needs root.

Three stages of equal work in a lab, so that all of them compute at the same time on a machine of two cores. Compared
with the sum of compute, delays and bytes over bandwidth, and with itself: one stream, and a prompt in one piece, over
the same stages and on one of the hosts. `SHAPE` as for `make bench-serve`, of which this is the second part.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import free_port
from deployments import Deployment
from serve import SHAPES, Row, between, equal_shares, first_token, ids, make, record, row, show, together, turn
from transformers import AutoConfig

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.note import signature
from edgesplit.broadcast.teardown import take_down
from edgesplit.hosts.fanout import connect
from edgesplit.inventory import load_inventory
from edgesplit.lab.lab import Lab
from edgesplit.lab.scenario import Scenario
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.plan import Api, ModelPlan, ModelSource, Workload
from edgesplit.profiling.probes import message_sizes
from edgesplit.runner.wire import Lap

NAMES = ("desk", "shelf", "attic")
CORES = 0.5
RATE = 100e6 / 8  # bytes per second
ROUNDS = 3
TOKENS = 12
STREAMS = 8
LONG = 512
CHUNK = 64
LAB = {
    "name": "serve",
    "link": {"delay": "2ms", "rate": "100Mbit/s"},
    "hosts": {name: {"cores": CORES, "memory": "5GiB"} for name in NAMES},
}
SLACK = 1.05  # wanted: of compute, delays and bytes over bandwidth


def main() -> int:
    shape = os.environ.get("SHAPE", "qwen2.5-0.5b")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        model = make(SHAPES[shape](), Path(folder) / "model")
        rows = list(measure(model, Path(folder)))
    title = f"{shape}, three hosts with {CORES} core each, 100 Mbit/s"
    show(title, rows)
    record("serve_fleet", title, rows)
    return 0


def measure(model: Path, folder: Path) -> Iterator[Row]:
    thirds = equal_shares(AutoConfig.from_pretrained(model))
    lab = Lab.up(Scenario.model_validate_json(json.dumps(LAB)))
    try:
        with served(lab, model, folder) as ring:
            for delay in (20, 2):
                for one, other in zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True):
                    lab.set_link(one, other, delay=f"{delay}ms")
                ring.push(*thirds)  # a new epoch: the entry's medians begin anew
                yield from one_stream(ring, delay)
            yield from many_streams(lab, ring)
            by_decode = long_prompt(ring)
            ring.push(*layered(len(thirds) - 2))
            pieces = long_prompt(ring)
        with served(lab, model, folder, prefill_chunk=LONG) as unchunked:
            unchunked.push(*layered(len(thirds) - 2))
            at_once = long_prompt(unchunked)
            unchunked.push(*("desk" for _ in thirds))
            alone = long_prompt(unchunked)
        what = f"prompt of {LONG}, first token, in pieces of {CHUNK}"
        yield row(what, pieces, "ms", at_once, "at once over the same stages, of equal layers", 0.5)
        yield row(what, pieces, "ms", alone, "at once on one host")
        yield row("  with stages of equal decode steps instead", by_decode, "ms", alone, "at once on one host")
    finally:
        lab.down()


def layered(layers: int) -> tuple[str, ...]:
    """Three stages of equal layers, and the head, which a prompt needs once, where its embedding is."""
    each = [layers // 3 + (place < layers % 3) for place in range(3)]
    first, *others = ((name,) * count for name, count in zip(NAMES, each, strict=True))
    return ("desk", *first, *itertools.chain(*others), "desk")


def long_prompt(ring: Deployment) -> float:
    return statistics.median(first_token(ring, ids(LONG, salt)) for salt in range(ROUNDS))


@contextlib.contextmanager
def served(lab: Lab, model: Path, folder: Path, **changes: Any) -> Iterator[Deployment]:
    """Hosts that hold nothing yet. `changes`: what the plan says otherwise."""
    inventory = load_inventory(lab.inventory)
    hosts = {
        name: spec.model_copy(update={"trusted": name == "desk", "cores": 1}) for name, spec in inventory.hosts.items()
    }
    inventory = inventory.model_copy(update={"hosts": hosts})
    values: dict[str, Any] = {
        "name": "serve",
        "model": ModelSource(source=str(model)),
        "entry": "desk",
        "prefill_chunk": CHUNK,
        "api": Api(port=free_port()),
        "workload": Workload(prompt_tokens=LONG, new_tokens=TOKENS, max_context=1024, concurrency=STREAMS),
    }
    wish = ModelPlan(**{**values, **changes})
    checkpoint = open_checkpoint(model, str(model), wish.dtype, quantization=wish.quantization)
    with connect(inventory) as doors:
        ring = Deployment(Cargo(wish, inventory, checkpoint, cut(checkpoint, folder / "hashes.json")), doors)
        try:
            with tunnel(lab, wish.api.port):
                yield ring
        finally:
            take_down(wish.name, inventory, doors, signature("bench"))


@contextlib.contextmanager
def tunnel(lab: Lab, port: int) -> Iterator[None]:
    """The API of desk, which listens on its loopback, on this machine's."""
    words = ["ssh", "-F", f"{lab.layout.folder}/ssh_config", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{port}", "desk"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def one_stream(ring: Deployment, delay: int) -> Iterator[Row]:
    """A token against compute, the ways of `delay` ms and the bytes; what a hop takes beyond them."""
    seen, turns = [], []
    for salt in range(ROUNDS):
        times = [time.perf_counter() for _ in ring.stream(ids(CHUNK, salt), TOKENS)]
        seen.append(between(times[:TOKENS]))
        turns.append(turn(ring))
    hops = len(turns[0]["stages"]) - 1
    middle = {
        name: statistics.median(sum(stage[f"{name}_s"] for stage in each["stages"]) for each in turns) * 1e3
        for name in Lap._fields
    }
    wire = statistics.median(each["wire_s"] for each in turns) * 1e3
    sent = message_sizes(ring.plan, ring.cargo.checkpoint.chain)[0] * hops / RATE * 1e3
    ways = hops * delay
    token, floor = statistics.median(seen), middle["computed"] + ways + sent
    yield row(f"one stream, links of {delay} ms", token, "ms", floor, "compute + delays + bytes", SLACK)
    for name, value in middle.items():
        yield row(f"  {name}, all stages", value, "ms")
    yield row("  delays of the links", ways, "ms")
    yield row("  bytes over bandwidth", sent, "ms")
    yield row("  links beyond these, per hop", (wire - ways - sent) / hops, "ms")
    yield row("  sampling and API", token - sum(middle.values()) - wire, "ms")
    hop, way = turns[-1]["hop"], (ways + sent) / hops
    yield row("  beyond compute and wire, per hop, median", hop["median_s"] * 1e3 - way, "ms", limit=0.5)
    yield row("  beyond compute and wire, per hop, 99 of 100", hop["p99_s"] * 1e3 - way, "ms", limit=1)


def many_streams(lab: Lab, ring: Deployment) -> Iterator[Row]:
    prompts = [ids(CHUNK, salt) for salt in range(STREAMS)]
    one, many, busy = [], [], []
    for _ in range(ROUNDS):
        times = [time.perf_counter() for _ in ring.stream(prompts[0], TOKENS)]
        one.append(1e3 / between(times[:TOKENS]))
        before, start = cpu_seconds(lab), time.perf_counter()
        many.append(together(ring, prompts))
        busy.append((cpu_seconds(lab) - before) / (time.perf_counter() - start) / CORES / len(NAMES))
    times = statistics.median(many), "1/s", statistics.median(one)
    yield row(f"{STREAMS} streams, tokens per second", *times, "one stream", 2.5)
    yield row("  share of their quotas that the hosts used", statistics.median(busy) * 100, "%")


def cpu_seconds(lab: Lab) -> float:
    """What the hosts have computed so far, together."""
    return sum(host.cpu_seconds for host in lab.status().hosts.values())


if __name__ == "__main__":
    sys.exit(main())
