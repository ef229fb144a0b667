"""`make bench-predict`: how far are predicted times from measured ones? Prints tables, writes build/bench/predict.json.

A lab of four hosts with quotas and shaped links runs a model of random weights in forced splits. The hosts are profiled
and every split is priced for every workload; then all splits serve in turns, several rounds of them, and what a client
sees is compared with what the cost model said before. `--workload NAME` measures one workload and keeps what is
known of the others; `--again` measures nothing, and predicts anew from the profiles that were kept. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deployments import Quiet
from rich.console import Console
from rich.table import Table

from edgesplit.broadcast.access import add
from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.note import Errand, signature
from edgesplit.broadcast.push import push
from edgesplit.broadcast.remote import present
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.teardown import take_down
from edgesplit.fleet import Fleet
from edgesplit.hosts.fanout import connect
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory, load_inventory
from edgesplit.lab.lab import Lab
from edgesplit.lab.scenario import Scenario
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.plan import Api, ModelPlan, ModelSource, Workload
from edgesplit.profiling.collect import profile
from edgesplit.revision.cost import Costs, evaluate
from edgesplit.revision.problem import pose
from edgesplit.revision.reality import compare, seen
from edgesplit.split import Split, split_from_placement

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "predict.json"
ROUNDS = 4  # turns of every split, unless told otherwise
REPEATS = 2  # requests of each client in a turn; the first warms up, the medians of the others count
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
STUDENT = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # of so many differences, what 95 % lie within, in standard errors
# The profile is fitted once over what all of them need.
PROFILED = Workload(prompt_tokens=256, new_tokens=64, max_context=512, concurrency=3)
say = Console(highlight=False, width=140)


@dataclass(frozen=True)
class Times:
    """Seconds a client sees."""

    first: float
    token: float


@dataclass(frozen=True)
class Row:
    """One split under one workload; `turns`: what a client saw, round by round."""

    split: str
    workload: str
    predicted: Times
    costs: dict[str, Any]
    turns: tuple[Times, ...]
    parts: tuple[dict[str, Any], ...]  # what the stages and links said of themselves, round by round
    fleet: dict[str, Any]  # as it was measured before

    @property
    def measured(self) -> Times:
        return middle(self.turns)

    def error(self, what: str) -> float:
        return float(getattr(self.predicted, what) / getattr(self.measured, what) - 1)

    def latencies(self) -> list[float]:
        """Seconds of a request, round by round."""
        return [latency(turn, WORKLOADS[self.workload]) for turn in self.turns]


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
    key: str = ""

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

    def fleet(self) -> Fleet:
        wish = plan(self.model, PROFILED, self.address)
        return profile(self.hosts, wish, self.inventory, self.checkpoint, time.time(), lambda _: None)

    def predict(self, split: Split, fleet: Fleet, name: str) -> Costs:
        return evaluate(split, pose(self.checkpoint.chain, fleet, self.plan(name), self.inventory))

    def deploy(self, cargo: Cargo, split: Split) -> Split:
        now = datetime.datetime.now(datetime.timezone.utc)
        self.key = self.key or add(self.hosts["desk"], cargo.folder("desk"), "bench", now)  # the API is beyond loopback
        return push(cargo, split, self.hosts, look(cargo, self.hosts), Quiet(), Errand("bench")).split

    def parts(self, cargo: Cargo, split: Split, fleet: Fleet, name: str) -> dict[str, Any]:
        """Stages and links, predicted and measured, as `edgesplit status` has them."""
        states = {
            host: present(self.hosts[host], cargo.folder(host), self.inventory.hosts[host])[1] for host in split.hosts
        }
        problem = pose(self.checkpoint.chain, fleet, self.plan(name), self.inventory)
        return compare(split, problem, seen(split, states)).model_dump(mode="json")


def placement(split: Sequence[tuple[str, int]]) -> list[str]:
    return ["desk", *(host for host, count in split for _ in range(count)), "desk"]


# --- a client ---


def ask(bench: Bench, prompt: list[int], count: int) -> Times:
    body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(bench.address, 8080, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bench.key}"}
    with contextlib.closing(connection):
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        with connection.getresponse() as response:
            arrivals = [time.perf_counter() for line in response if _has_token(line)]
    if len(arrivals) != count:
        raise RuntimeError(f"{len(arrivals)} of {count} tokens came")
    return Times(arrivals[0] - start, (arrivals[-1] - arrivals[0]) / (count - 1))


def _has_token(line: bytes) -> bool:
    data = line.decode().removeprefix("data: ").strip()
    return bool(data) and data != "[DONE]" and json.loads(data)["choices"][0]["finish_reason"] is None


def serve(bench: Bench, work: Workload) -> list[Times]:
    """What clients saw of a workload, one for each sequence that is in flight, each asking again and again."""

    def client(number: int) -> list[Times]:
        time.sleep(0.3 * number)  # their prompts do not come all at once
        prompts = [[(7 * turn + 13 * number + 3 * place) % 2000 + 2 for place in range(work.prompt_tokens)]
                   for turn in range(REPEATS)]  # fmt: skip
        return [ask(bench, prompt, work.new_tokens) for prompt in prompts][1:]

    with ThreadPoolExecutor(work.concurrency) as pool:
        return [seen for mine in pool.map(client, range(work.concurrency)) for seen in mine]


def middle(times: Sequence[Times]) -> Times:
    return Times(statistics.median(one.first for one in times), statistics.median(one.token for one in times))


# --- the run ---


def run(bench: Bench, cargo: Cargo, works: Sequence[str], rounds: int) -> list[Row]:
    """Each split is deployed once in a round, and serves all workloads then."""
    fleet = bench.fleet()
    splits = {name: split_from_placement(placement(stages)) for name, stages in SPLITS.items()}
    turns: dict[tuple[str, str], list[Times]] = defaultdict(list)
    parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for number in range(rounds):
        for name in list(splits) if number % 2 else reversed(splits):  # there and back: a drift hits all alike
            running = bench.deploy(cargo, splits[name])
            for work in works:
                turns[work, name].append(middle(serve(bench, WORKLOADS[work])))
                parts[work, name].append(bench.parts(cargo, running, fleet, work))
        say.print(f"  round {number + 1} of {rounds}", style="dim")
    kept = fleet.model_dump(mode="json")
    return [
        Row(name, work, *predicted(bench, split, fleet, work), tuple(turns[work, name]), tuple(parts[work, name]), kept)
        for work in works
        for name, split in splits.items()
    ]


def predicted(bench: Bench, split: Split, fleet: Fleet, work: str) -> tuple[Times, dict[str, Any]]:
    costs = bench.predict(split, fleet, work)
    said = Times(costs.time_to_first_token_seconds, costs.time_per_token_seconds)
    return said, costs.model_dump(mode="json")


def again(folder: Path, rows: Sequence[Row]) -> Iterator[Row]:
    """The same measurements beside what the model says now."""
    model = make_model(folder / "model")
    trusted = {name: host.get("inventory", {}).get("trusted", False) for name, host in LAB["hosts"].items()}
    hosts = {name: {"ssh": name, "data": {"address": name}, "trusted": one} for name, one in trusted.items()}
    inventory = Inventory.model_validate({"hosts": hosts})
    bench = Bench(inventory, {}, open_checkpoint(model, str(model), "float32"), model, folder)
    for row in rows:
        split = split_from_placement(placement(SPLITS[row.split]))
        said, costs = predicted(bench, split, Fleet.model_validate(row.fleet), row.workload)
        yield replace(row, predicted=said, costs=costs)


def latency(times: Times, work: Workload) -> float:
    return times.first + (work.new_tokens - 1) * times.token


# --- what it says ---


def show(rows: Sequence[Row]) -> dict[str, Any]:
    table = Table("workload", "split", *("first token: said", "seen", "off", "token: said", "seen", "off", "spread"),
                  box=None, pad_edge=False)  # fmt: skip
    for row in rows:
        said, measured = row.predicted, row.measured
        table.add_row(
            row.workload, row.split, f"{said.first * 1e3:.0f} ms", f"{measured.first * 1e3:.0f} ms",
            f"{row.error('first'):+.0%}", f"{said.token * 1e3:.1f} ms", f"{measured.token * 1e3:.1f} ms",
            f"{row.error('token'):+.0%}", f"{spread(row, 'first'):.0%} {spread(row, 'token'):.0%}",
        )  # fmt: skip
    say.print(table)
    errors = {what: statistics.median(abs(row.error(what)) for row in rows) for what in ("first", "token")}
    floor = {what: statistics.median(spread(row, what) for row in rows) / 2 for what in ("first", "token")}
    say.print(
        f"median absolute error of {len(rows)}: time to first token {errors['first']:.1%}, time per token "
        f"{errors['token']:.1%}; half the spread of the rounds: {floor['first']:.1%}, {floor['token']:.1%}\n"
    )
    orders = {work: _order([row for row in rows if row.workload == work]) for work in WORKLOADS}
    return {"errors": errors, "noise": floor, "orders": {work: found for work, found in orders.items() if found}}


def spread(row: Row, what: str) -> float:
    values = [getattr(turn, what) for turn in row.turns]
    return float((max(values) - min(values)) / statistics.median(values))


def _order(rows: Sequence[Row]) -> dict[str, Any]:
    """The three splits predicted to be best, against each other and the next ones: does the measurement agree?"""
    if not rows:
        return {}
    work = WORKLOADS[rows[0].workload]
    said = sorted(rows, key=lambda row: latency(row.predicted, work))
    verdicts = {}
    for place, better in enumerate(said[:3]):
        for worse in said[place + 1 :]:
            forecast = latency(worse.predicted, work) / latency(better.predicted, work) - 1
            gain, noise = compared(better.latencies(), worse.latencies())
            verdict = "tie" if abs(gain) <= noise else "right" if gain > 0 else "WRONG"
            verdicts[f"{better.split} < {worse.split}"] = (verdict, forecast, gain, noise)
    measured = [row.split for row in sorted(rows, key=lambda row: statistics.median(row.latencies()))]
    say.print(
        f"best three of {rows[0].workload}: {' < '.join(row.split for row in said[:3])}; medians measured: "
        f"{' < '.join(measured[:3])}"
    )
    for pair, (verdict, forecast, gain, noise) in verdicts.items():
        say.print(f"  {verdict:5}  {pair}: said {forecast:+.1%}, measured {gain:+.1%} +- {noise:.1%}")
    return {"predicted": [row.split for row in said], "measured": measured, "pairs": verdicts}


def compared(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """By what share the other takes longer, and how far off that may be (95 %, Student's t), told by the rounds: what
    disturbs a round is in both."""
    shares = [late / early - 1 for early, late in zip(one, other, strict=True)]
    error = statistics.stdev(shares) / len(shares) ** 0.5
    return statistics.fmean(shares), STUDENT[len(shares)] * error


def record(row: Row) -> dict[str, Any]:
    turns = [vars(turn) for turn in row.turns]
    return {**vars(row), "predicted": vars(row.predicted), "turns": turns}


def recorded(data: dict[str, Any]) -> Row:
    turns = tuple(Times(**turn) for turn in data["turns"])
    return Row(**{**data, "predicted": Times(**data["predicted"]), "turns": turns, "parts": tuple(data["parts"])})


def known() -> list[Row]:
    return [recorded(row) for row in json.loads(OUTPUT.read_text())["rows"]] if OUTPUT.exists() else []


def measured(folder: Path, works: Sequence[str], rounds: int) -> Iterator[Row]:
    model = make_model(folder / "model")
    checkpoint = open_checkpoint(model, str(model), "float32")
    lab = Lab.up(Scenario.model_validate_json(json.dumps(LAB)))
    try:
        inventory = load_inventory(lab.inventory)
        with connect(inventory) as hosts:
            bench = Bench(inventory, hosts, checkpoint, model, folder)
            try:
                yield from run(bench, bench.cargo(), works, rounds)
            finally:
                take_down("predict", inventory, hosts, signature("bench"))
    finally:
        lab.down()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append")
    parser.add_argument("--rounds", type=int, choices=list(STUDENT), default=ROUNDS)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    works = options.workload or list(WORKLOADS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the lab comes down then too
    rows = [row for row in known() if options.again or row.workload not in works]
    with tempfile.TemporaryDirectory() as place:
        rows = [*again(Path(place), rows)] if options.again else [*rows, *measured(Path(place), works, options.rounds)]
    rows.sort(key=lambda row: list(WORKLOADS).index(row.workload))
    result = show(rows)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({**result, "rows": [record(row) for row in rows]}, indent=2) + "\n")
    say.print(f"\nwritten to {OUTPUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
