"""`make bench-serve`: how close is the ring to the unsplit model? Prints tables, writes build/bench/serve.json.

Real runners on this machine, each with one thread, and the unsplit model in this process with one thread; runs of both
in turns, medians. `SHAPE=llama-3.2-1b make bench-serve` takes another shape than Qwen2.5-0.5B's; weights are random.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    TextStreamer,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from deployments import Deployment, deployment
from models import tokenizer

from edgesplit.broadcast.remote import status
from edgesplit.plan import Workload
from edgesplit.profiling.probes import message_sizes
from edgesplit.runner.hop import _server_context
from edgesplit.runner.wire import Lap

ROOT = Path(__file__).parents[2]
ROUNDS = 3  # of each measurement
TOKENS = 24  # of an answer
STREAMS = 8
PROMPT = 64
LONG = 512
CHUNK = 64

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2.5-0.5b": lambda: Qwen2Config(
        vocab_size=151936, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "llama-3.2-1b": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "small": lambda: Qwen2Config(
        vocab_size=4096, hidden_size=512, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=2048, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
}  # fmt: skip

say = Console(highlight=False)
Row = dict[str, Any]


def main() -> int:
    shape = os.environ.get("SHAPE", "qwen2.5-0.5b")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        say.print(f"making a checkpoint of {shape}'s shape ...", style="dim")
        model = make(SHAPES[shape](), Path(folder) / "model")
        rows = list(measure(model, Path(folder)))
    show(shape, rows)
    record("serve", shape, rows)
    return 0


def make(config: PreTrainedConfig, folder: Path) -> Path:
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder, max_shard_size="500MB")
    tokenizer().save_pretrained(folder)
    return folder


def measure(model: Path, folder: Path) -> Iterator[Row]:
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    workload = Workload(prompt_tokens=LONG, new_tokens=TOKENS, max_context=1024, concurrency=STREAMS)
    with deployment(folder, model=model, workload=workload, prefill_chunk=CHUNK, pins=()) as ring:
        ring.push(*equal_shares(whole.config))
        yield from one_stream(ring, whole)
        yield from many_streams(ring)
        yield from long_prompt(ring, whole)


def equal_shares(config: PreTrainedConfig, hosts: tuple[str, ...] = ("desk", "shelf", "attic")) -> tuple[str, ...]:
    """A placement on desk, the others in a row, desk: the head, which is as long as some layers, and as many layers as
    make it an equal share."""
    width, layers, entry, others = config.hidden_size, config.num_hidden_layers, hosts[0], hosts[1:]
    heads = config.num_key_value_heads * (width // config.num_attention_heads)
    layer = width * (2 * width + 2 * heads + 3 * config.intermediate_size)
    head = config.vocab_size * width / layer
    own = max(0, round((layers - len(others) * head) / len(hosts)))
    there = [others[number * len(others) // (layers - own)] for number in range(layers - own)]
    return (*(entry,) * (1 + own), *there, entry)


# --- one stream ---


def one_stream(ring: Deployment, whole: Any) -> Iterator[Row]:
    prompt = ids(PROMPT)
    split, unsplit = [], []
    per_token(ring, prompt)
    begin = counted(ring)
    for _ in range(ROUNDS):
        split.append(arrivals(ring, prompt))
        unsplit.append(alone(whole, prompt))
    ours, theirs = statistics.median(map(between, split)), statistics.median(unsplit)
    yield row("one stream, per token", ours, "ms", theirs, "unsplit on one core", 1.03)
    yield from breakdown(begin, counted(ring), split, ring)
    hop = turn(ring)["hop"]
    yield row("beyond compute, per hop, median", hop["median_s"] * 1e3, "ms", limit=0.5)
    yield row("beyond compute, per hop, 99 of 100", hop["p99_s"] * 1e3, "ms", limit=1)


Counted = dict[str, float]


def breakdown(begin: Counted, end: Counted, seen: list[list[float]], ring: Deployment) -> Iterator[Row]:
    """Means over all turns between, in milliseconds, so that the parts sum to the whole. `seen`: when tokens came."""
    spent = {name: value - begin.get(name, 0.0) for name, value in end.items()}
    turns = spent["turn_seconds_count"]
    mean = {name: spent[f"{name}_sum"] / turns * 1e3 for name in ("turn_seconds", "wire_seconds")}
    stages = {
        part: sum(value for name, value in spent.items() if name.startswith("stage_seconds_sum") and part in name)
        for part in Lap._fields
    }
    hops = len(ring.running.stages) - 1 if ring.running else 0
    (size, _) = message_sizes(ring.plan, ring.cargo.checkpoint.chain)
    tls = hops * tls_seconds(size) * 1e3
    token = statistics.mean((times[-1] - times[0]) / (len(times) - 1) for times in seen) * 1e3
    yield row("  the mean token, of which", token, "ms")
    yield row("    sampling and API", token - mean["turn_seconds"], "ms")
    for part, seconds in stages.items():
        yield row(f"    {part}, all stages", seconds / turns * 1e3, "ms")
    yield row("    TLS, both ends, measured apart", tls, "ms")
    yield row("    wire and waking up", mean["wire_seconds"] - tls, "ms")


def counted(ring: Deployment) -> Counted:
    """What the entry has counted so far, as it tells Prometheus."""
    connection = http.client.HTTPConnection(ring.plan.api.address, ring.plan.api.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        families = text_string_to_metric_families(connection.getresponse().read().decode())
        return {
            " ".join([sample.name.removeprefix("edgesplit_"), *sample.labels.values()]): sample.value
            for family in families
            for sample in family.samples
        }


def tls_seconds(size: int) -> float:
    """To seal a message and to open it, in memory; a runner does it with the cores' caches cold."""
    server, client = _server_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sender = client.wrap_bio(back, there)
    receiver = server.wrap_bio(there, back, server_side=True)
    for end in (sender, receiver, sender, receiver):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    message, times = bytes(size), []
    for _ in range(200):
        start = time.perf_counter()
        sender.write(message)
        left = size
        while left:
            left -= len(receiver.read(left))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def per_token(ring: Deployment, prompt: list[int]) -> float:
    return between(arrivals(ring, prompt))


def arrivals(ring: Deployment, prompt: list[int]) -> list[float]:
    return [time.perf_counter() for _ in ring.stream(prompt, TOKENS)][:TOKENS]


def between(times: list[float]) -> float:
    """Milliseconds from one token to the next, the median: what else a machine does hits some of them."""
    return statistics.median(after - before for before, after in itertools.pairwise(times)) * 1e3


def alone(whole: Any, prompt: list[int]) -> float:
    times: list[float] = []

    class Clock(TextStreamer):
        def __init__(self) -> None:
            pass

        def put(self, _: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            pass

    tensor = torch.tensor([prompt])
    rules = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=1)
    with torch.inference_mode():
        whole.generate(tensor, attention_mask=torch.ones_like(tensor), generation_config=rules, streamer=Clock())
    return between(times[1:])  # the prompt is put first


def turn(ring: Deployment) -> dict[str, Any]:
    """Where the time of the recent turns went, as the entry tells."""
    cargo = ring.cargo
    said = status(ring.hosts["desk"], cargo.inventory.hosts["desk"], cargo.folder("desk"), cargo.archive.name)
    return dict(said["entry"]["turn"])


# --- several streams ---


def many_streams(ring: Deployment) -> Iterator[Row]:
    prompts = [ids(PROMPT, salt) for salt in range(STREAMS)]
    one, many = [], []
    for _ in range(ROUNDS):
        one.append(1e3 / per_token(ring, prompts[0]))
        many.append(together(ring, prompts))
    ours, theirs = statistics.median(many), statistics.median(one)
    yield row(f"{STREAMS} streams, tokens per second", ours, "1/s", theirs, "one stream", 2.5)


def together(ring: Deployment, prompts: list[list[int]], count: int = 2 * TOKENS) -> float:
    """Tokens per second while all of them answer with `count`."""
    times: list[list[float]] = [[] for _ in prompts]

    def client(number: int) -> None:
        for _ in ring.stream(prompts[number], count):
            times[number].append(time.perf_counter())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    return sum(begin <= at <= end for each in times for at in each) / (end - begin)


# --- a long prompt ---


def long_prompt(ring: Deployment, whole: Any) -> Iterator[Row]:
    prompt = ids(LONG)
    split, unsplit = [], []
    for _ in range(ROUNDS):
        split.append(first_token(ring, prompt))
        unsplit.append(unchunked(whole, prompt))
    yield row(
        f"prompt of {LONG}, first token",
        statistics.median(split),
        "ms",
        statistics.median(unsplit),
        "in one piece",
        0.5,
    )


def first_token(ring: Deployment, prompt: list[int]) -> float:
    start = time.perf_counter()
    for _ in ring.stream(prompt, 1):
        return (time.perf_counter() - start) * 1e3
    raise RuntimeError("no token came")


def unchunked(whole: Any, prompt: list[int]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        whole(torch.tensor([prompt]), logits_to_keep=1)
    return (time.perf_counter() - start) * 1e3


# --- tables ---


def ids(count: int, salt: int = 0) -> list[int]:
    return [2 + (7 * place + 31 * salt) % 250 for place in range(count)]


def row(
    what: str, measured: float, unit: str, beside: float | None = None, than: str = "", limit: float | None = None
) -> Row:
    ratio = None if beside is None else measured / beside
    return {"what": what, "measured": measured, "unit": unit, "beside": beside, "than": than, "ratio": ratio,
            "wanted": limit}  # fmt: skip


def record(name: str, title: str, rows: list[Row]) -> None:
    output = ROOT / "build" / "bench" / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"title": title, "rows": rows}, indent=2) + "\n")
    say.print(f"\nwritten to {output.relative_to(ROOT)}")


def show(title: str, rows: list[Row]) -> None:
    table = Table("what", "measured", "beside", "ratio", "wanted", box=None, pad_edge=False, title=title)
    for each in rows:
        beside = "" if each["beside"] is None else f"{each['beside']:.4g} {each['unit']} {each['than']}"
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.3f}"
        wanted = "" if each["wanted"] is None else f"{each['wanted']:g}"
        table.add_row(each["what"], f"{each['measured']:.4g} {each['unit']}", beside, ratio, wanted)
    say.print(table)


if __name__ == "__main__":
    sys.exit(main())
