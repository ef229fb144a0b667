"""Real deployments for tests: real runners, on this machine or behind throwaway sshds, of small checkpoints."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import free_port
from models import make_checkpoint
from profiles import NAMES

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.note import Errand, signature
from edgesplit.broadcast.push import push
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.teardown import take_down
from edgesplit.broadcast.transition import Step
from edgesplit.hosts.fanout import connect
from edgesplit.hosts.host import Host
from edgesplit.inventory import DataPlane, HostSpec, Inventory, SshTarget
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.plan import Api, ModelPlan, ModelSource, Pin, WatchPolicy, Workload
from edgesplit.split import Split, split_from_placement


class Quiet:
    """Progress for nobody."""

    def begin(self, step: Step) -> None: ...

    def sent(self, step: Step, size: int) -> None: ...

    def note(self, step: Step, text: str) -> None: ...

    def end(self, step: Step) -> None: ...

    def undo(self) -> None: ...


@dataclass
class Deployment:
    """One plan over its hosts; `push` brings any placement up as the next epoch."""

    cargo: Cargo
    hosts: dict[str, Host]
    running: Split | None = None

    @property
    def plan(self) -> ModelPlan:
        return self.cargo.plan

    def push(self, *placement: str) -> Split:
        """`placement`: the host of each block."""
        scene = look(self.cargo, self.hosts)
        target = split_from_placement(placement)
        pushed = push(self.cargo, target, self.hosts, scene, Quiet(), Errand("test"))
        assert not pushed.warnings
        self.running = pushed.split
        return self.running

    def folder(self, host: str) -> Path:
        return Path(self.cargo.folder(host))

    def pid(self, host: str) -> int:
        return int((self.folder(host) / "runner.pid").read_text())

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The whole answer."""
        with self.post(path, body) as response:
            answer = json.loads(response.read())
        assert response.status == 200, answer
        return answer

    @contextlib.contextmanager
    def post(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.plan.api.address, self.plan.api.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                yield response

    def complete(self, prompt: list[int] | str, count: int, **more: Any) -> dict[str, Any]:
        """The choice of a whole answer; greedy, and past the end token, unless told otherwise."""
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        return self.ask("/v1/completions", **{**body, **more})["choices"][0]

    def stream(self, prompt: list[int] | str, count: int, **more: Any) -> Iterator[dict[str, Any]]:
        """The choices of a streamed answer, as they come; the last one carries all token ids."""
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        with self.post("/v1/completions", {**body, "stream": True, **more}) as response:
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if data and data != "[DONE]":
                    yield json.loads(data)["choices"][0]


def inventory(work: Path, targets: Mapping[str, SshTarget] | None = None, **changes: Any) -> Inventory:
    """desk, shelf and attic in folders of their own; behind ssh where `targets` are given."""
    hosts = {}
    for name in NAMES:
        ssh = targets[name] if targets else None
        hosts[name] = HostSpec(
            connection="ssh" if ssh else "local",
            ssh=ssh,
            trusted=name == "desk",
            cores=1,
            data=DataPlane(address="127.0.0.1", port=free_port()),
            python=sys.executable,
            work=str(work / name),
            **changes,
        )
    return Inventory(hosts=hosts)


def plan(model: Path, **changes: Any) -> ModelPlan:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": ModelSource(source=str(model)),
        "entry": "desk",
        "api": Api(port=free_port()),
        "workload": Workload(prompt_tokens=16, new_tokens=16, max_context=256, concurrency=2),
        "prefill_chunk": 8,
        "pins": (Pin(blocks=("layers.0",), to="trusted"),),
        "watch": WatchPolicy(interval=0.3, host_timeout=3.0, slowdown=3.0, patience=3, cooldown=1.0),
    }
    return ModelPlan(**{**values, **changes})


@contextlib.contextmanager
def deployment(
    folder: Path,
    family: str = "llama",
    layers: int = 4,
    targets: Mapping[str, SshTarget] | None = None,
    model: Path | None = None,
    **changes: Any,
) -> Iterator[Deployment]:
    """Hosts that hold nothing yet; whatever a test leaves on them is taken down. `model`: one that is made."""
    model = model or make_checkpoint(folder / "model", family, layers)
    wish = plan(model, **changes)
    hosts = inventory(folder / "work", targets)
    checkpoint = open_checkpoint(model, str(model), wish.dtype, quantization=wish.quantization)
    with connect(hosts) as doors:
        made = Deployment(Cargo(wish, hosts, checkpoint, cut(checkpoint, folder / "hashes.json")), doors)
        try:
            yield made
        finally:
            _, errors = take_down(wish.name, hosts, doors, signature("test"))
            for name in doors:
                with contextlib.suppress(OSError, ValueError, LookupError):
                    os.kill(made.pid(name), 9)
            assert not errors, errors


def unsplit(model: Path, prompt: list[int], count: int) -> tuple[list[int], Any]:
    """(tokens of the whole model's greedy `generate`, logits of the whole model over prompt and answer)."""
    import torch
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        answer = whole.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
        )
        return answer[0, len(prompt) :].tolist(), whole(answer).logits[0]
