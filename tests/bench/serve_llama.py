"""`make bench-serve_llama`: the ring beside llama.cpp's RPC backend, on the same hosts and links. Needs root.

`LLAMA_CPP=folder` holds `llama-server` and `ggml-rpc-server` (`rpc-server` in older ones), built with GGML_RPC; without
it the ring is measured alone. `PRECISIONS=int8` measures one of int8 beside Q8_0 and bfloat16 beside BF16, `LINKS=20`
one of the links; `HOSTS=5` takes five hosts, `CORES=1` a whole core for each; `SHAPE` as for `make bench-serve`.

Three hosts with half a core each, a thread on each; both have their layers on the same hosts, and are up together. The
client asks both by streaming HTTP through the same login. llama-server stands on the entry; each host has an RPC
server, the entry's own last, so that the head stays there. llama.cpp computes a prompt in one piece: smaller ones
(`-ub 128`) did not overlap.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import gguf_file
from conftest import free_port
from deployments import Deployment
from serve import SHAPES, Row, between, equal_shares, first_token, ids, make, record, row, say, show, together
from serve_fleet import served, tunnel
from transformers import AutoConfig

from edgesplit.lab.lab import Lab
from edgesplit.lab.scenario import Scenario

HOSTS = ("desk", "shelf", "attic", "cellar", "shed")[: int(os.environ.get("HOSTS", "3"))]
CORES = float(os.environ.get("CORES", "0.5"))
LAB = {"name": "llama", "hosts": {name: {"cores": CORES, "memory": "4GiB"} for name in HOSTS}}
ROUNDS = int(os.environ.get("ROUNDS", "3"))
TOKENS = 12
PROMPT = 64
LONG = 512
STREAMS = 8
CONTEXT = 1024
LINKS = ("20", "2", "0")  # ms one way at 100 Mbit/s; 0: no delay and no limit
PORT = 50052
PATIENCE = 120.0  # seconds for llama.cpp to load


class Precision(NamedTuple):
    plan: dict[str, Any]
    file: gguf_file.Kind


PRECISIONS = {
    "int8": Precision({"quantization": "int8"}, "Q8_0"),
    "bfloat16": Precision({"dtype": "bfloat16"}, "BF16"),
}


def main() -> int:
    shape = os.environ.get("SHAPE", "qwen2.5-0.5b")
    found = os.environ.get("LLAMA_CPP")
    if not found:
        say.print("no LLAMA_CPP=folder of llama.cpp's programs: the ring is measured alone")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        model = make(SHAPES[shape](), Path(folder) / "model")
        for name in os.environ.get("PRECISIONS", " ".join(PRECISIONS)).split():
            for each in measure(name, model, Path(folder), Path(found) if found else None):
                beside = f", {each['than']} {each['beside']:.4g}" if each["than"] else ""
                say.print(f"{each['what']}: {each['measured']:.4g} {each['unit']}{beside}", style="dim")
                rows.append(each)
    title = f"{shape}, {len(HOSTS)} hosts with {CORES:g} core each" + (", beside llama.cpp" if found else "")
    show(title, rows)
    record("serve_llama", title, rows)
    return 0


def measure(name: str, model: Path, folder: Path, programs: Path | None) -> Iterator[Row]:
    precision, shares = PRECISIONS[name], equal_shares(AutoConfig.from_pretrained(model), HOSTS)
    lab = Lab.up(Scenario.model_validate_json(json.dumps(LAB)))
    try:
        with contextlib.ExitStack() as stack:
            ring = stack.enter_context(served(lab, model, folder, **precision.plan))
            ring.push(*shares)
            llama = None
            if programs:
                file = gguf_file.write(model, folder / f"{precision.file}.gguf", precision.file)
                llama = stack.enter_context(llama_ring(lab, programs, file, shares))
                yield same(name, ring, llama)
            for delay in os.environ.get("LINKS", " ".join(LINKS)).split():
                set_links(lab, delay)
                yield from compare(f"{name}, {delay} ms", ring, llama)
    finally:
        lab.down()


def set_links(lab: Lab, delay: str) -> None:
    rate = "unlimited" if delay == "0" else "100Mbit/s"
    for one, other in itertools.combinations(HOSTS, 2):
        lab.set_link(one, other, delay=f"{delay}ms", rate=rate)


# --- llama.cpp ---


@dataclass
class Llama:
    """A llama-server."""

    port: int

    def stream(self, prompt: list[int], count: int) -> Iterator[list[int]]:
        """The tokens of an answer as they come."""
        body = {
            "prompt": prompt, "n_predict": count, "stream": True, "temperature": 0, "top_k": 1, "ignore_eos": True,
            "cache_prompt": False, "return_tokens": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                for line in response:
                    data = line.decode().removeprefix("data: ").strip()
                    if data and (tokens := json.loads(data)["tokens"]):
                        yield tokens

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


@contextlib.contextmanager
def llama_ring(lab: Lab, programs: Path, file: Path, placement: tuple[str, ...]) -> Iterator[Llama]:
    """`placement`: the host of each block; the entry's layers come last here. Its processes end with the lab."""
    layers = Counter(placement[1:])  # the head counts as a layer
    order = (*HOSTS[1:], HOSTS[0])
    rpc = next(path for name in ("ggml-rpc-server", "rpc-server") if (path := programs / name).exists())
    for name in order:
        start(lab, name, f"{rpc} -H 0.0.0.0 -p {PORT} -t 1")
    places = lab.layout.hosts
    servers = ",".join(f"{places[name].address}:{PORT}" for name in order)
    split = ",".join(str(layers[name]) for name in order)
    port = free_port()
    words = (
        f"{programs / 'llama-server'} -m {file} --host 127.0.0.1 --port {port} --rpc {servers} -ngl 99 -ts {split}"
        f" -t 1 -np {STREAMS} -c {STREAMS * CONTEXT} --fit off --cache-ram 0"
    )
    start(lab, HOSTS[0], words)
    llama = Llama(port)
    with tunnel(lab, port):
        end = time.monotonic() + PATIENCE
        while not llama.ready():
            if time.monotonic() > end:
                raise TimeoutError(f"llama-server is not ready after {PATIENCE:.0f} s")
            time.sleep(0.5)
        yield llama


def start(lab: Lab, host: str, words: str) -> None:
    line = f"{words} >$HOME/{Path(words.split(maxsplit=1)[0]).name}.log 2>&1 </dev/null &"
    subprocess.run(["ssh", "-F", f"{lab.layout.folder}/ssh_config", host, line], check=True)


def same(name: str, ring: Deployment, llama: Llama) -> Row:
    """Is it the same model? Answers part where two tokens score nearly equal."""
    ours = ring.complete(ids(PROMPT), TOKENS)["token_ids"]
    theirs = [token for tokens in llama.stream(ids(PROMPT), TOKENS) for token in tokens]
    alike = next((at for at in range(TOKENS) if ours[at] != theirs[at]), TOKENS)
    return row(f"{name}: tokens until answers part, of {TOKENS}", alike, "")


# --- side by side ---


def compare(name: str, ring: Deployment, llama: Llama | None) -> Iterator[Row]:
    """In turns."""
    sides: list[Any] = [ring, llama] if llama else [ring]
    seen: dict[str, list[list[float]]] = {what: [[] for _ in sides] for what in ("first", "token", "streams")}
    for salt in range(ROUNDS):
        for number, side in enumerate(sides):
            seen["first"][number].append(first_token(side, ids(LONG, salt)))
        for number, side in enumerate(sides):
            times = [time.perf_counter() for _ in side.stream(ids(PROMPT, salt), TOKENS)]
            seen["token"][number].append(between(times[:TOKENS]))
        for number, side in enumerate(sides):
            prompts = [ids(PROMPT, STREAMS * salt + each) for each in range(STREAMS)]
            seen["streams"][number].append(together(side, prompts, 2 * TOKENS))
    units = {"first": "ms", "token": "ms", "streams": "1/s"}
    texts = {
        "first": f"prompt of {LONG}, first token",
        "token": "one stream, per token",
        "streams": f"{STREAMS} streams, tokens per second",
    }
    for what, measured in seen.items():
        ours, *theirs = (statistics.median(each) for each in measured)
        wanted = 1.0 if theirs and name.endswith("20 ms") else None
        yield row(f"{name}: {texts[what]}", ours, units[what], *([theirs[0], "llama.cpp", wanted] if theirs else []))


if __name__ == "__main__":
    sys.exit(main())
