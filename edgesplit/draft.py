"""A first inventory and plan, as text: every key that a person will want to change, with a word on it.

Must not know: where the hosts come from, where the text goes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgesplit.inventory import DATA_PORT, SshTarget

ENTRY = "desk"
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Found:
    """A host that somebody has: its name, where ssh finds it, and more keys of the inventory. `way`: what tells it from
    other machines at its address (a port, a jump host)."""

    name: str
    ssh: SshTarget
    more: Mapping[str, Any] = field(default_factory=dict)
    way: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return str(self.more.get("data", {}).get("address", self.ssh.host))


def inventory(hosts: Iterable[Found], origin: str, here: str) -> str:
    """`origin`: where the hosts come from; `here`: where they reach this machine."""
    taken = {ENTRY}
    lines = [
        f"# The hosts of edgesplit, {origin}. docs/reference/inventory.md has every key.",
        "# Next: edgesplit check THIS-FILE tells what each of them lacks.",
        "# On x86-64 torch comes with CUDA's libraries, 4 GB; where there is no GPU, name an index of torch for CPUs:",
        "#     packages: {extra_index: ADDRESS}",
        "",
        "hosts:",
        "  # The entry is this machine: prompts and answers are read here and nowhere else.",
        f"  {ENTRY}:",
        "    connection: local",
        "    trusted: true",
        "    data:",
        f"      address: {_text(here)} # where the other hosts reach this one",
        "    # memory: 4GiB # most that weights, cache and workspace may take; without it, what is free",
    ]
    for host in hosts:
        lines += ["", *_host(_unique(host.name, taken), host)]
    return "\n".join(lines) + "\n"


def _host(name: str, host: Found) -> list[str]:
    given = {key: value for key, value in host.ssh.model_dump(exclude={"options"}).items() if value is not None}
    options = [f"      options: [{', '.join(map(_text, host.ssh.options))}]"] if host.ssh.options else []
    if len(given) == 1 and not options:
        target = [f"    ssh: {_text(host.ssh.host)}"]
    else:
        target = ["    ssh:", *(f"      {key}: {_text(value)}" for key, value in given.items()), *options]
    more = [f"    {key}: {_flow(value)}" for key, value in host.more.items()]
    trusted = [] if "trusted" in host.more else ["    # trusted: true # may hold pinned blocks"]
    return [f"  {_text(name)}:", *target, *more, *trusted]


def apart(hosts: Iterable[Found]) -> list[Found]:
    """Without those that are the same machine under another name; data ports that differ where an address is shared."""
    seen: dict[str, list[tuple[str, ...]]] = {}
    kept = []
    for host in hosts:
        others = seen.setdefault(host.address, [])
        if host.way in others:
            continue
        if others and "port" not in host.more.get("data", {}):
            data = {"address": host.address, "port": DATA_PORT + len(others)}
            host = replace(host, more={**host.more, "data": data})  # noqa: PLW2901
        others.append(host.way)
        kept.append(host)
    return kept


def plan(name: str, model: str, inventory_file: str, count: int) -> str:
    """`count`: hosts besides the entry."""
    return f"""\
# What edgesplit is to serve. docs/reference/plan.md has every key.
# Next: edgesplit profile THIS-FILE, then plan, then deploy.

name: {name}
inventory: {_text(inventory_file)}
model: {_text(model)} # an id on the Hugging Face hub, or a folder
dtype: bfloat16 # of weights and cache: float32, bfloat16 or float16
entry: {ENTRY} # reads prompts, writes answers

workload: # the requests that the split is made for
  prompt_tokens: 200
  new_tokens: 200
  max_context: 2048
  concurrency: {1 if count == 0 else 2} # requests at a time

pins: # only on trusted hosts: the text, and what is nearest to it
  - blocks: [embedding, layers.0-1, head]
"""


def deployment_name(model: str) -> str:
    """The model's name, as a deployment may be called."""
    return _plain(model.rstrip("/").rpartition("/")[2].lower()) or "model"


def _unique(name: str, taken: set[str]) -> str:
    plain = _plain(name) or "host"
    number = 2
    candidate = plain
    while candidate in taken:
        candidate, number = f"{plain}-{number}", number + 1
    taken.add(candidate)
    return candidate


def _plain(name: str) -> str:
    return _NAME.sub("-", name).strip("-._")[:56]


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(key)}: {_flow(inner)}' for key, inner in value.items())}}}"
    return _text(value)


def _text(value: object) -> str:
    """As YAML: a number as it is, a text quoted where a plain one could mean something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z~/][\w./~-]*", value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)


_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "~"}
