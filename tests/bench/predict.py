"""`make bench-predict`: how far are predicted times from measured ones? Prints tables, writes build/bench/predict.json.

A lab of four hosts with quotas and shaped links runs a model of random weights in forced splits; each split serves
each workload, and what a client sees is compared with what the cost model said before. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.note import signature
from edgesplit.broadcast.push import push
from edgesplit.broadcast.remote import present
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.teardown import take_down
from edgesplit.cli.render import Quiet
from edgesplit.fleet import Fleet
from edgesplit.hosts.fanout import connect
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory, load_inventory
from edgesplit.lab.lab import Lab
from edgesplit.lab.scenario import Scenario
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.plan import Api, ModelPlan, ModelSource, Workload
from edgesplit.profiling.collect import measure_links, profile
from edgesplit.profiling.probes import message_sizes
from edgesplit.revision.cost import Costs, evaluate
from edgesplit.revision.problem import pose
from edgesplit.split import Split, split_from_placement

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "predict.json"
REPEATS = 4  # requests of each client; the first warms up, the medians of the others count
CHUNK = 64
LAYERS = 12
LAB: dict[str, Any] = {
    "name": "predict",
    "link": {"delay": "1ms", "rate": "100Mbit/s"},
    "hosts": {
        "desk": {"cores": 1.0, "memory": "2GiB", "inventory": {"trusted": True}},
        "shelf": {"cores": 0.8, "memory": "2GiB"},
        "attic": {"cores": 0.5, "memory": "2GiB"},
        "cellar": {"cores": 0.35, "memory": "2GiB"},
    },
    "links": [
        {"between": ["desk", "attic"], "delay": "5ms", "rate": "50Mbit/s"},
        {"between": ["shelf", "attic"], "delay": "3ms", "rate": "20Mbit/s"},
        {"between": ["desk", "cellar"], "delay": "10ms", "rate": "10Mbit/s"},
        {"between": ["shelf", "cellar"], "delay": "2ms", "rate": "50Mbit/s"},
    ],
}
SPLITS = {
    "desk 12": [("desk", 12)],
    "desk 6, shelf 6": [("desk", 6), ("shelf", 6)],
    "desk 4, shelf 4, attic 4": [("desk", 4), ("shelf", 4), ("attic", 4)],
    "desk 9, attic 3": [("desk", 9), ("attic", 3)],
    "desk 2, shelf 8, cellar 2": [("desk", 2), ("shelf", 8), ("cellar", 2)],
    "desk 5, cellar 3, shelf 4": [("desk", 5), ("cellar", 3), ("shelf", 4)],
}
WORKLOADS = {
    "chat": Workload(prompt_tokens=32, new_tokens=32, max_context=512),
    "long": Workload(prompt_tokens=256, new_tokens=32, max_context=512),
    "story": Workload(prompt_tokens=160, new_tokens=64, max_context=512),
    "crowd": Workload(prompt_tokens=32, new_tokens=32, max_context=512, concurrency=3),
}
# The profile is fitted once over what all of them need.
PROFILED = Workload(prompt_tokens=256, new_tokens=64, max_context=512, concurrency=3)
say = Console(highlight=False)


@dataclass(frozen=True)
class Times:
    """Seconds a client sees."""

    first: float
    token: float


@dataclass
class Row:
    """One split under one workload."""

    split: str
    workload: str
    predicted: Times
    measured: Times
    spread: Times  # of the repeats: (largest - smallest) / median
    costs: Costs
    fleet: Fleet
    stages: list[dict[str, Any]] = field(default_factory=list)

    def error(self, what: str) -> float:
        return float(getattr(self.predicted, what) / getattr(self.measured, what) - 1)


def make_model(folder: Path) -> Path:
    """A llama of random weights, 20 MB a layer in float32: a layer takes a millisecond or two of a core."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=2048, hidden_size=640, intermediate_size=1728, num_hidden_layers=LAYERS, num_attention_heads=10,
        num_key_value_heads=10, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    # A word for every token, so that each is sent to the client as it comes.
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(2048)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


def plan(model: Path, work: Workload, address: str) -> ModelPlan:
    return ModelPlan(
        name="predict", model=ModelSource(source=str(model)), entry="desk", api=Api(address=address), workload=work,
        prefill_chunk=CHUNK,
    )  # fmt: skip


@dataclass
class Bench:
    inventory: Inventory
    hosts: Mapping[str, Host]
    checkpoint: Checkpoint
    model: Path
    folder: Path

    @property
    def address(self) -> str:
        return self.inventory.hosts["desk"].data_address

    def plan(self, name: str) -> ModelPlan:
        return plan(self.model, WORKLOADS[name], self.address)

    def cargo(self) -> Cargo:
        """One deployment for all workloads: it lets the most sequences in that any of them has."""
        most = max(work.concurrency for work in WORKLOADS.values())
        wish = plan(self.model, Workload(max_context=512, concurrency=most), self.address)
        return Cargo(wish, self.inventory, self.checkpoint, cut(self.checkpoint, self.folder / "hashes.json"))

    def profile(self, hosts: Mapping[str, Host]) -> Fleet:
        wish = plan(self.model, PROFILED, self.address)
        return profile(hosts, wish, self.inventory, self.checkpoint, time.time(), lambda _: None)

    def again(self, fleet: Fleet, names: Sequence[str]) -> Fleet:
        """These hosts measured anew, one after the other: all at once they would compete for this machine's CPUs."""
        found = [self.profile({name: self.hosts[name]}) for name in names]
        sizes = message_sizes(plan(self.model, PROFILED, self.address), self.checkpoint.chain)
        mine = {name: self.hosts[name] for name in names}
        links, _ = measure_links(mine, self.inventory, sizes, lambda _: None)
        links = {source: {**row, **links.get(source, {})} for source, row in fleet.links.items()}
        hosts = {**fleet.hosts, **{name: host for one in found for name, host in one.hosts.items()}}
        return fleet.model_copy(update={"hosts": hosts, "links": links})

    def predict(self, split: Split, fleet: Fleet, name: str) -> Costs:
        return evaluate(split, pose(self.checkpoint.chain, fleet, self.plan(name), self.inventory))

    def deploy(self, cargo: Cargo, split: Split) -> Split:
        return push(cargo, split, self.hosts, look(cargo, self.hosts), Quiet(), reason="bench").split

    def states(self, cargo: Cargo, split: Split) -> list[dict[str, Any]]:
        """What each stage says of itself, and last the entry of the turns around the ring."""
        found, turn = [], None
        for number, stage in enumerate(split.stages):
            spec = self.inventory.hosts[stage.host]
            _, state = present(self.hosts[stage.host], cargo.folder(stage.host), spec)
            assert state is not None
            found.append(state["epochs"][str(split.epoch)]["stages"][str(number)])
            turn = state["entry"]["turn"] if state["entry"] else turn
        return [*found, turn]


def placement(split: Sequence[tuple[str, int]]) -> list[str]:
    return ["desk", *(host for host, count in split for _ in range(count)), "desk"]


# --- a client ---


def ask(address: str, prompt: list[int], count: int) -> Times:
    body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(address, 8080, timeout=120)
    with contextlib.closing(connection):
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            arrivals = [time.perf_counter() for line in response if _has_token(line)]
    if len(arrivals) != count:
        raise RuntimeError(f"{len(arrivals)} of {count} tokens came")
    return Times(arrivals[0] - start, (arrivals[-1] - arrivals[0]) / (count - 1))


def _has_token(line: bytes) -> bool:
    data = line.decode().removeprefix("data: ").strip()
    return bool(data) and data != "[DONE]" and json.loads(data)["choices"][0]["finish_reason"] is None


def serve(address: str, work: Workload) -> list[Times]:
    """What clients saw of a workload, one for each sequence that is in flight, each asking again and again."""

    def client(number: int) -> list[Times]:
        time.sleep(0.3 * number)  # their prompts do not come all at once
        prompts = [[(7 * turn + 13 * number + 3 * place) % 2000 + 2 for place in range(work.prompt_tokens)]
                   for turn in range(REPEATS)]  # fmt: skip
        return [ask(address, prompt, work.new_tokens) for prompt in prompts][1:]

    with ThreadPoolExecutor(work.concurrency) as pool:
        return [seen for mine in pool.map(client, range(work.concurrency)) for seen in mine]


def middle(times: Sequence[Times]) -> Times:
    return Times(statistics.median(one.first for one in times), statistics.median(one.token for one in times))


def spread(times: Sequence[Times]) -> Times:
    def share(values: list[float]) -> float:
        return (max(values) - min(values)) / statistics.median(values)

    return Times(share([one.first for one in times]), share([one.token for one in times]))


# --- the run ---


def run(bench: Bench, names: Sequence[str]) -> Iterator[Row]:
    cargo = bench.cargo()
    fleet = bench.profile(bench.hosts)
    try:
        for name in names:
            split = split_from_placement(placement(SPLITS[name]))
            running = bench.deploy(cargo, split)
            fleet = bench.again(fleet, split.hosts)  # just before, as other work on this machine comes and goes
            for work, asked in WORKLOADS.items():
                seen = serve(bench.address, asked)
                costs = bench.predict(split, fleet, work)
                predicted = Times(costs.time_to_first_token_seconds, costs.time_per_token_seconds)
                yield Row(name, work, predicted, middle(seen), spread(seen), costs, fleet, bench.states(cargo, running))
    finally:
        take_down("predict", bench.inventory, bench.hosts, signature("bench"))


def best(rows: Sequence[Row], seconds: Sequence[float]) -> list[str]:
    return [row.split for _, row in sorted(zip(seconds, rows, strict=True), key=lambda one: one[0])[:3]]


def latency(times: Times, work: Workload) -> float:
    return times.first + (work.new_tokens - 1) * times.token


def show(rows: Sequence[Row]) -> dict[str, Any]:
    table = Table("workload", "split", *("first token: said", "seen", "off", "token: said", "seen", "off", "spread"),
                  box=None, pad_edge=False)  # fmt: skip
    for row in sorted(rows, key=lambda row: (row.workload, row.split)):
        said, seen = row.predicted, row.measured
        table.add_row(
            row.workload, row.split, f"{said.first * 1e3:.0f} ms", f"{seen.first * 1e3:.0f} ms",
            f"{row.error('first'):+.0%}", f"{said.token * 1e3:.1f} ms", f"{seen.token * 1e3:.1f} ms",
            f"{row.error('token'):+.0%}", f"{row.spread.first:.0%} {row.spread.token:.0%}",
        )  # fmt: skip
    say.print(table)
    errors = {what: statistics.median(abs(row.error(what)) for row in rows) for what in ("first", "token")}
    floor = {what: statistics.median(getattr(row.spread, what) for row in rows) / 2 for what in ("first", "token")}
    say.print(
        f"median absolute error: time to first token {errors['first']:.1%}, time per token {errors['token']:.1%}; "
        f"half the spread of the repeats: {floor['first']:.1%}, {floor['token']:.1%}"
    )
    orders = {}
    for name, work in WORKLOADS.items():
        mine = [row for row in rows if row.workload == name]
        said, seen = (
            best(mine, [latency(getattr(row, what), work) for row in mine]) for what in ("predicted", "measured")
        )
        orders[name] = {"predicted": said, "measured": seen}
        say.print(
            f"best three of {name}: {' < '.join(said)}; measured {'the same' if said == seen else ' < '.join(seen)}"
        )
    return {"errors": errors, "noise": floor, "orders": orders}


def record(row: Row) -> dict[str, Any]:
    return {
        "split": row.split, "workload": row.workload, "predicted": vars(row.predicted), "measured": vars(row.measured),
        "spread": vars(row.spread), "costs": row.costs.model_dump(mode="json"), "stages": row.stages,
        "fleet": row.fleet.model_dump(mode="json"),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=len(SPLITS))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the lab comes down then too
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_model(folder / "model")
        checkpoint = open_checkpoint(model, str(model), "float32")
        lab = Lab.up(Scenario.model_validate_json(json.dumps(LAB)))
        try:
            inventory = load_inventory(lab.inventory)
            with connect(inventory) as hosts:
                bench = Bench(inventory, hosts, checkpoint, model, folder)
                rows = []
                for row in run(bench, list(SPLITS)[: options.splits]):
                    say.print(
                        f"  {row.split}, {row.workload}: {row.error('first'):+.0%} {row.error('token'):+.0%}",
                        style="dim",
                    )
                    rows.append(row)
        finally:
            lab.down()
    result = show(rows)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({**result, "rows": [record(row) for row in rows]}, indent=2) + "\n")
    say.print(f"\nwritten to {OUTPUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
