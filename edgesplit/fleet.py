"""THE STATE: what was measured of the hosts and links, the paper's C_i(t) (eq. 1), as a value.

Must not know: how it was measured (profiling does), nor what it is good for (revision does).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgesplit.values import Name, Value, digest

Nonnegative = Annotated[float, Field(ge=0)]


class StageTimes(Value):
    """Measured on the host with real layers of the model at the plan's dtype; seconds.

    A stage of n layers takes overhead + n * layer for one forward: one decode step at the workload's context, or one
    prefill chunk of `chunk_tokens` tokens. `*_head` is what final norm and head add, for one position.
    """

    decode_layer: Nonnegative
    decode_overhead: Nonnegative
    prefill_layer: Nonnegative
    prefill_overhead: Nonnegative
    head: Nonnegative
    chunk_tokens: int
    context: int


class HostProfile(Value):
    """One host. `memory_available` is what a process may still take now (cgroup limits respected)."""

    cores: Nonnegative
    memory_total: int
    memory_available: int
    load: Nonnegative  # 1-minute load average
    python: str
    packages: dict[str, str]  # torch, transformers, cryptography ... -> version
    device: str  # "cpu" or what torch names the accelerator
    runtime_bytes: int  # resident memory of a runner before it holds weights
    times: StageTimes


class LinkProfile(Value):
    """Between two hosts, one direction, over the data plane. `rtt` in seconds, `bandwidth` in bytes per second."""

    rtt: Nonnegative
    bandwidth: Annotated[float, Field(gt=0)]


class Fleet(Value):
    """Hosts that can be used, by name, and the links between them as links[source][target]; what is absent is none.

    `problems`: host -> why it cannot be used. `measured_at`: seconds since the epoch.
    `slowdown`: host -> factor on its compute times as seen since (1.0 when not named).
    """

    hosts: dict[Name, HostProfile]
    links: dict[Name, dict[Name, LinkProfile]]
    problems: dict[Name, str] = Field(default_factory=dict)
    slowdown: dict[Name, Nonnegative] = Field(default_factory=dict)
    measured_at: float
    plan: str  # digest of what the times depend on: checkpoint, dtype, workload

    @property
    def digest(self) -> str:
        return digest(self)

    def without(self, *names: str) -> Fleet:
        """The fleet if these hosts were gone."""
        return self.model_copy(
            update={
                "hosts": {name: host for name, host in self.hosts.items() if name not in names},
                "links": {
                    source: {target: link for target, link in row.items() if target not in names}
                    for source, row in self.links.items()
                    if source not in names
                },
            }
        )
