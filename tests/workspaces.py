"""A plan, its inventory, a small checkpoint and a profile nobody had to measure, as files; and the CLI on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import free_port
from typer.testing import CliRunner

from edgesplit.cli.app import app
from edgesplit.cli.workspace import Workspace
from edgesplit.fleet import Fleet, HostProfile, LinkProfile, StageTimes
from edgesplit.profiling.collect import measured_for

MIB = 2**20
_SEEN: dict[str, bytes] = {}  # model -> what the first look at it leaves, so that not every test need look
REMADE = {
    *(f"chain-{dtype}.json" for dtype in ("float32", "bfloat16", "float16")),
    "hashes.json",
}  # what a verb may write although it fails
Hosts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a run of the CLI left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The message behind `error:`, its lines joined; "" when there is none."""
        return _behind("error:", self.err)

    @property
    def hint(self) -> str:
        return _behind("hint:", self.err)


def _behind(mark: str, text: str) -> str:
    lines = iter(text.splitlines())
    said = [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]
    if not said:
        return ""
    tail = text.split(f"{mark} {said[0]}", 1)[1].splitlines()[1:]
    for line in tail:
        if not line.startswith(" "):
            break
        said.append(line.strip())
    return "\n".join(said)


def edgesplit(*words: object, answer: str = "") -> Outcome:
    """The real command line, in this process; `answer` is what is typed."""
    done = CliRunner().invoke(app, [str(word) for word in words], input=answer, catch_exceptions=False)
    return Outcome(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class Desk:
    """A folder with plan.yaml, inventory.yaml and the work folders of the hosts; desk is the trusted entry."""

    folder: Path

    @property
    def plan(self) -> Path:
        return self.folder / "plan.yaml"

    @property
    def inventory(self) -> Path:
        return self.folder / "inventory.yaml"

    @property
    def cache(self) -> Path:
        return self.folder / ".edgesplit" / str(self.read(self.plan)["name"])

    def work(self, host: str) -> Path:
        return self.folder / "work" / host

    @staticmethod
    def read(file: Path) -> dict[str, Any]:
        return dict(json.loads(file.read_text()))

    def change_plan(self, **changes: Any) -> None:
        """Over the plan's keys; None takes one away."""
        new = {**self.read(self.plan), **changes}
        self.plan.write_text(json.dumps({key: value for key, value in new.items() if value is not None}))

    def change_host(self, host: str, **changes: Any) -> None:
        data = self.read(self.inventory)
        data["hosts"][host] = {**data["hosts"].get(host, {}), **changes}
        self.inventory.write_text(json.dumps(data))

    def run(self, verb: str, *words: object, answer: str = "") -> Outcome:
        return edgesplit(verb, self.plan, *words, answer=answer)

    def profile(self, **layer: float) -> Fleet:
        """A profile as if just measured: `layer` seconds per layer, by host; 1 ms for the others."""
        space = Workspace.open(self.plan, None)
        names = list(space.inventory.hosts)
        fleet = Fleet(
            hosts={name: host_profile(layer.get(name, 1e-3)) for name in names},
            links={a: {b: LinkProfile(rtt=1e-4, bandwidth=1e9) for b in names if b != a} for a in names},
            measured_at=0.0,
            plan=measured_for(space.checkpoint, space.plan, space.inventory),
        )
        space.save(space.profile_name, fleet)
        _SEEN[str(self.read(self.plan)["model"])] = (self.cache / "chain-float32.json").read_bytes()
        return fleet

    def planned(self) -> None:
        """Profile and split, as `deploy` wants them."""
        self.profile()
        done = self.run("plan")
        assert done.code == 0, done.err

    def files(self) -> dict[str, bytes]:
        """Everything below the folder but what verbs may remake."""
        paths = (path for path in self.folder.rglob("*") if path.is_file() and path.name not in REMADE)
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """No file below the folder changes in here."""
        before = self.files()
        yield
        after = self.files()
        assert {name for name in before | after if before.get(name) != after.get(name)} == set()


def host_profile(layer: float = 1e-3) -> HostProfile:
    times = StageTimes(decode_layer=layer, decode_overhead=1e-3, prefill_layer=layer, prefill_overhead=1e-3, head=1e-3,
                       chunk_tokens=16, context=24)  # fmt: skip
    return HostProfile(cores=1, memory_total=16 * 2**30, memory_available=8 * 2**30, load=0.1, python="3.11.7",
                       packages={"torch": "2.13.0"}, device="cpu", runtime_bytes=400 * MIB, times=times)  # fmt: skip


def lay(folder: Path, checkpoint: Path, names: tuple[str, ...] = ("desk", "shelf"), **changes: Any) -> Desk:
    """`changes`: over the plan. Local hosts, with ports that are free now."""
    desk = Desk(folder)
    hosts: Hosts = {
        name: {
            "connection": "local",
            "trusted": name == "desk",
            "cores": 1,
            "data": {"port": free_port()},
            "work": str(desk.work(name)),
        }
        for name in names
    }
    folder.mkdir(parents=True, exist_ok=True)
    desk.inventory.write_text(json.dumps({"hosts": hosts}))
    plan: Mapping[str, Any] = {
        "name": "tiny",
        "inventory": "inventory.yaml",
        "model": str(checkpoint),
        "entry": "desk",
        "api": {"port": free_port()},
        "workload": {"prompt_tokens": 16, "new_tokens": 16, "max_context": 128},
        "prefill_chunk": 16,
    }
    desk.plan.write_text(json.dumps({**plan, **changes}))
    if str(checkpoint) in _SEEN:
        desk.cache.mkdir(parents=True)
        (desk.cache / "chain-float32.json").write_bytes(_SEEN[str(checkpoint)])
    return desk
