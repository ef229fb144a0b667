"""`make bench-failover`: seconds from the death of a host to the next token, with standby and without. Prints a table,
writes build/bench/failover.json.

A lab of four hosts with real SSH and shaped links serves a model of 1 GB of random weights (float32) to steady
requests; one host of the ring loses its power while `watch` watches. Every answer is compared, token by token, with the
same request before. Needs root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from predict import say
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from deployments import Quiet
from models import tokenizer

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.note import Errand, signature
from edgesplit.broadcast.push import push
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.teardown import take_down
from edgesplit.broadcast.transition import Step
from edgesplit.fleet import Fleet
from edgesplit.hosts.fanout import connect
from edgesplit.hosts.host import Host
from edgesplit.inventory import load_inventory
from edgesplit.lab.lab import Lab
from edgesplit.lab.scenario import Scenario
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.orchestrator.watch import Watch
from edgesplit.plan import Api, ModelPlan, ModelSource, Pin, WatchPolicy, Workload
from edgesplit.profiling.collect import profile
from edgesplit.split import Split, split_from_placement

OUTPUT = Path(__file__).parents[2] / "build" / "bench" / "failover.json"
LAYERS = 20  # of 51 MB
ROUNDS = 2
TOKENS = 24
LAB: dict[str, Any] = {
    "name": "failover",
    "link": {"delay": "1ms", "rate": "200Mbit/s"},
    "hosts": {
        "desk": {"cores": 1.0, "memory": "3GiB", "inventory": {"trusted": True, "memory": "350MiB"}},
        **{
            name: {"cores": 1.0, "memory": "3GiB", "inventory": {"memory": "600MiB"}}
            for name in ("shelf", "attic", "shed")
        },
    },
}


@dataclass
class Client(threading.Thread):
    """One streamed request after another. `gaps`: (when it ended, seconds between two tokens)."""

    entry: Host
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[list[int]] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.answers.append(self.ask())
            except Exception as error:  # noqa: BLE001 - a lost request is what is counted
                self.lost.append(repr(error))

    def ask(self) -> list[int]:
        body = {"prompt": list(range(20, 36)), "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
                "return_token_ids": True, "stream": True}  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", 8099)
        connection.sock = self.entry.dial("127.0.0.1", 8099)
        connection.sock.settimeout(120)
        last, choice = time.monotonic(), {}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            for line in connection.getresponse():
                text = line.decode().removeprefix("data: ").strip()
                if not text or text == "[DONE]":
                    continue
                now = time.monotonic()
                self.gaps.append((now, now - last))
                last, choice = now, json.loads(text)["choices"][0]
        return list(choice["token_ids"])


class Phases(Quiet):
    """When the phases of a push ended, in seconds since the first began."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.began, self.seconds = 0.0, dict[str, float]()

    def begin(self, step: Step) -> None:  # noqa: ARG002 - as of any progress
        self.began = self.began or time.monotonic()

    def end(self, step: Step) -> None:
        self.seconds[step.phase.value] = round(time.monotonic() - self.began, 2)


def make(folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16}
    config = LlamaConfig(vocab_size=258, num_hidden_layers=LAYERS, max_position_embeddings=512, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def plan(model: Path, standby: float) -> ModelPlan:
    return ModelPlan(
        name="failover",
        model=ModelSource(source=str(model)),
        entry="desk",
        api=Api(port=8099),
        workload=Workload(prompt_tokens=16, new_tokens=TOKENS, max_context=64),
        prefill_chunk=16,
        pins=(Pin(blocks=("layers.0",)),),
        watch=WatchPolicy(interval=1.0, standby=standby, slowdown=20.0, min_gain=0.9),
    )


def failover(lab: Lab, cargo: Cargo, fleet: Fleet, hosts: dict[str, Host], target: Split) -> dict[str, Any]:
    pushed = push(cargo, target, hosts, look(cargo, hosts), Quiet(), Errand("bench"))
    client = Client(hosts["desk"])
    expected = client.ask()
    phases = Phases()
    with Watch(cargo, fleet, hosts, pushed.split, phases) as watch:
        ahead = until(watch, "standby", 180) if cargo.plan.watch.standby else until(watch, "", 8)
        client.start()
        until(watch, "", 5)
        phases.clear()
        lost, died = watch.running.hosts[1], time.monotonic()
        lab.kill(lost)
        took = until(watch, "moved", 180)
        time.sleep(3)
        client.stop.set()
        client.join(60)
    lab.start(lost)
    answers = [answer for answer in client.answers if answer != expected]
    return {
        "lost": lost,
        "ahead_s": ahead,
        "event_to_moved_s": took,
        "gap_s": max(gap for end, gap in client.gaps if end > died),
        "phases_s": phases.seconds,
        "requests": len(client.answers),
        "lost_requests": client.lost,
        "wrong": len(answers),
    }


def until(watch: Watch, kind: str, seconds: float) -> float:
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        for event in watch.round():
            if event.event != "reading":
                say.print(
                    f"  {event.event}: {event.text} {event.decision.moving if event.decision else ''}", style="dim"
                )
            if event.event == kind:
                return time.monotonic() - start
    if kind:
        raise SystemExit(f"no {kind} within {seconds} s")
    return seconds


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    model = make(folder / "model")
    checkpoint = open_checkpoint(model, str(model), "float32")
    shards = cut(checkpoint, folder / "hashes.json")
    lab = Lab.up(Scenario.model_validate_json(json.dumps(LAB)))
    try:
        inventory = load_inventory(Path(lab.layout.folder) / "inventory.yaml")
        with connect(inventory) as hosts:
            fleet = profile(hosts, plan(model, 0), inventory, checkpoint, time.time(), lambda _: None)
            target = split_from_placement(["desk", "desk", *["shelf"] * 10, *["attic"] * 9, "desk"])
            for number in range(ROUNDS):
                for standby in (0.5, 0.0) if number % 2 else (0.0, 0.5):
                    cargo = Cargo(plan(model, standby), inventory, checkpoint, shards)
                    try:
                        yield {"standby": bool(standby), **failover(lab, cargo, fleet, hosts, target)}
                    finally:
                        take_down("failover", inventory, hosts, signature("bench"))
    finally:
        lab.down()


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder)):
            say.print(row)
            rows.append(row)
    table = Table(title="a host of the ring loses its power: 1 GB in float32, links of 200 Mbit/s")
    for column in ("", "seconds until tokens come again", "runs", "requests", "lost", "wrong"):
        table.add_column(column, justify="right")
    for standby in (False, True):
        mine = [row for row in rows if row["standby"] is standby]
        gaps = [row["gap_s"] for row in mine]
        table.add_row("with standby" if standby else "without", f"{statistics.median(gaps):.1f}",
                      ", ".join(f"{gap:.1f}" for gap in gaps), str(sum(row["requests"] for row in mine)),
                      str(sum(len(row["lost_requests"]) for row in mine)),
                      str(sum(row["wrong"] for row in mine)))  # fmt: skip
    say.print(table)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
