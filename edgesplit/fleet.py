"""THE STATE: what was measured of the hosts and links, the paper's C_i(t) (eq. 1), as a value.

Must not know: how it was measured (profiling does), nor what it is good for (revision does).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgesplit.values import Name, Value, digest

Nonnegative = Annotated[float, Field(ge=0)]


# What a message costs beside the way, where nobody measured it: mutual TLS 1.3 over a blocking socket adds 20 us (4 KB)
# to 52 us (16 KB) to a hop on the loopback.
HOP_SECONDS = 50e-6


class StageTimes(Value):
    """What a forward of a stage of n layers takes on this host: overhead + n x (what `step` or `piece` says), seconds.

    Fitted to forwards of real layers of the model at the plan's precision. A layer's decode step of one sequence behind
    `context` tokens takes `decode_layer`; each token of context more or less, `decode_position`; each sequence more in
    the same step, `decode_row`. A piece of `chunk_tokens` tokens of a prompt takes `prefill_layer` in a layer; each
    token more or less, `prefill_token`; each pair of its tokens and of those before it, `prefill_pair`. None: in
    proportion. `head`: final norm and head add so much for one position; `sample`: choosing a token.
    """

    decode_layer: Nonnegative
    decode_overhead: Nonnegative
    prefill_layer: Nonnegative
    prefill_overhead: Nonnegative
    head: Nonnegative
    chunk_tokens: int
    context: int
    decode_position: Nonnegative = 0.0
    decode_row: Nonnegative | None = None
    prefill_token: Nonnegative | None = None
    prefill_pair: Nonnegative = 0.0
    sample: Nonnegative = 0.0

    @property
    def row(self) -> float:
        """Seconds of a layer for each sequence more in a step; as long as the first, where nobody measured it."""
        return self.decode_layer if self.decode_row is None else self.decode_row

    def scaled(self, factor: float) -> StageTimes:
        """All seconds so many times as long."""
        counts = {"chunk_tokens", "context"}
        seconds = {name: value for name, value in self if name not in counts and value is not None}
        return self.model_copy(update={name: factor * value for name, value in seconds.items()})

    def step(self, context: float, rows: float = 1) -> float:
        """Seconds of one layer for a decode step of so many sequences, each behind that context."""
        return max(
            0.0, self.decode_layer + self.row * (rows - 1) + self.decode_position * (context - self.context) * rows
        )

    def piece(self, tokens: float, context: float = 0.0) -> float:
        """Seconds of one layer for so many tokens of a prompt, behind that context."""
        each = self.prefill_layer / max(1, self.chunk_tokens) if self.prefill_token is None else self.prefill_token
        first = self.prefill_layer + each * (tokens - self.chunk_tokens)
        return max(0.0, first) + self.prefill_pair * tokens * context


class HostProfile(Value):
    """One host. `memory_available` is what a process may still take now (cgroup limits respected); of an accelerator,
    where there is one.

    Where the CPUs are given by quota, processes stand still once they have used `cores` x `period` seconds within a
    period; the times are without that.
    """

    cores: Nonnegative
    memory_total: int
    memory_available: int
    load: Nonnegative  # 1-minute load average
    python: str
    packages: dict[str, str]  # torch, transformers, cryptography ... -> version
    device: str  # "cpu" or what torch names the accelerator
    runtime_bytes: int  # resident memory of a runner before it holds weights
    times: StageTimes
    threads: int = 1
    period: Nonnegative = 0.0  # seconds; 0: no quota
    ahead: Nonnegative | None = None  # seconds by which forwards were ahead of the quota; None: none was that long
    bandwidth: Nonnegative = 0.0  # bytes per second read from memory at best; 0: not measured
    flops: Nonnegative = 0.0  # per second at best, in a product of matrices; 0: not measured
    disk_write: Nonnegative = 0.0  # bytes per second; 0: not measured

    @property
    def share(self) -> float:
        """Of a core, what each thread may use in the long run."""
        return min(1.0, self.cores / self.threads) if self.period else 1.0

    @property
    def grace(self) -> float:
        """Seconds by which a forward after a pause is ahead of what its share would let it do. It runs at full speed
        until its quota is used up, a share of the period; from then on it gets that much in each. The kernel notices
        late, so what was measured goes first."""
        return self.period * (1 - self.share) if self.ahead is None else self.ahead


class LinkProfile(Value):
    """Between two hosts, one direction, over the data plane. Seconds; `bandwidth` in bytes per second.

    `overhead`: what a message of one token takes beside half a round trip and its bytes (threads, frames, TLS, both
    ends). `start`: what the first piece of a prompt takes beside that, as TCP starts slowly behind small messages.
    """

    rtt: Nonnegative
    bandwidth: Annotated[float, Field(gt=0)]
    overhead: Nonnegative = HOP_SECONDS
    start: Nonnegative = 0.0


class Learned(Value):
    """Corrections of a profile from what deployments measured (R13). What is not named needs none.

    `hosts`: factor on compute times; `links`: seconds a message takes more (or less), as links[source][target];
    `entry`: seconds per token that no stage and no link accounts for.
    """

    hosts: dict[Name, Nonnegative] = Field(default_factory=dict)
    links: dict[Name, dict[Name, float]] = Field(default_factory=dict)
    entry: float = 0.0


class Lessons(Value):
    """What was learned, and of which profile: its digest. Of another one it says nothing."""

    profile: str
    learned: Learned


class Fleet(Value):
    """Hosts that can be used, by name, and the links between them as links[source][target]; what is absent is none.

    `unreachable`: why, of links between hosts that can be used, as unreachable[source][target]. `problems`: host -> why
    it cannot be used. `measured_at`: seconds since the epoch. `slowdown`: host -> factor on its compute times as seen
    since (1.0 when not named). `uplinks`: bytes per second from the controller to a host, through SSH. `learned`: what
    earlier deployments taught about the profile itself.
    """

    hosts: dict[Name, HostProfile]
    links: dict[Name, dict[Name, LinkProfile]]
    unreachable: dict[Name, dict[Name, str]] = Field(default_factory=dict)
    problems: dict[Name, str] = Field(default_factory=dict)
    slowdown: dict[Name, Nonnegative] = Field(default_factory=dict)
    uplinks: dict[Name, Nonnegative] = Field(default_factory=dict)
    learned: Learned = Learned()
    measured_at: float
    plan: str  # digest of what the times depend on: checkpoint, dtype, workload

    @property
    def digest(self) -> str:
        """Of what was measured; what was learned of it since is something else."""
        return digest(self.model_copy(update={"learned": Learned()}))

    def expected(self, name: str) -> HostProfile | None:
        """A host as earlier deployments taught to see it; None where nobody measured it."""
        host, factor = self.hosts.get(name), self.learned.hosts.get(name, 1.0)
        return None if host is None else host.model_copy(update={"times": host.times.scaled(factor)})

    def without(self, *names: str) -> Fleet:
        """The fleet if these hosts were gone."""
        gone = set(names) & {*self.hosts, *self.links}
        if not gone:
            return self
        return self.model_copy(
            update={
                "hosts": {name: host for name, host in self.hosts.items() if name not in gone},
                "links": {
                    source: {target: link for target, link in row.items() if target not in gone}
                    for source, row in self.links.items()
                    if source not in gone
                },
            }
        )
