"""What blocks cost on a host: seconds and bytes, from what was fitted to its measured times.

Must not know: links, pins, what a split is.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from edgesplit.fleet import Fleet
from edgesplit.model.blocks import Block, Chain
from edgesplit.plan import Workload

# The layers whose time `profile` measures: what stages of three layers and of one differ by (runner/measure.py).
MEASURED = slice(1, 3)


@dataclass(frozen=True)
class HostCosts:
    """What one host may hold (bytes) and how long it takes (seconds), per block and per stage, slowdown included.

    The times are those that the host can keep up: where it may use only a `share` of its cores, that is in them.
    """

    decode: tuple[float, ...]  # seconds per block for a decode step of one sequence; the head's is for one position
    rows: tuple[float, ...]  # seconds more per block for each further sequence in the same step
    chunk: tuple[float, ...]  # seconds per block for one chunk of the prompt; the head's is 0
    choice: float  # seconds of the head's that go into choosing a token and giving it out
    decode_overhead: float  # seconds per stage and decode step
    chunk_overhead: float  # seconds per stage and chunk
    quota: float  # share of its cores; a forward that finds it untouched is 1 / quota times as fast ...
    ahead: float  # ... and is at most so many seconds ahead of what the quota allows
    cap: int | None  # bytes of weights, KV cache and workspace that the inventory allows
    available: int  # bytes a process may still take, as measured
    runtime: int  # bytes a runner takes before it holds weights
    groups: int = 1  # so many steps are on their way at once: one of them finds the quota untouched, the others do not

    @property
    def share(self) -> float:
        """Of a forward's time in the long run, what it takes at least, on the mean over all groups."""
        return (self.quota + self.groups - 1) / self.groups

    @property
    def grace(self) -> float:
        """Seconds by which it may be ahead of that time, on the mean over all groups."""
        return self.ahead / self.groups

    @property
    def head(self) -> float:
        """Seconds of final norm, head and the choice of a token, for one position."""
        return self.decode[-1]

    @property
    def budget(self) -> int:
        """Bytes for weights, KV cache and workspace: the smaller of both limits (eq. 5's capacity)."""
        free = max(0, self.available - self.runtime)
        return free if self.cap is None else min(self.cap, free)

    def step(self, batch: int) -> tuple[float, ...]:
        """Seconds per block for a decode step of so many sequences."""
        return tuple(one + (batch - 1) * row for one, row in zip(self.decode, self.rows, strict=True))

    def elapsed(self, seconds: float) -> float:
        """How long a forward takes that takes `seconds` in the long run."""
        return max(self.share * seconds, seconds - self.grace)


@dataclass(frozen=True)
class Pieces:
    """What forwards are like on the mean: `tokens` of a prompt at once behind `before` others, in `chunks` pieces; and
    a decode step behind `context`."""

    tokens: float
    before: float
    chunks: int
    context: int

    @classmethod
    def of(cls, workload: Workload, longest: int) -> Pieces:
        chunks = -(-workload.prompt_tokens // longest)
        tokens = workload.prompt_tokens / chunks
        return cls(
            tokens, (workload.prompt_tokens - tokens) / 2, chunks, workload.prompt_tokens + workload.new_tokens // 2
        )


def host_costs(chain: Chain, fleet: Fleet, name: str, cap: int | None, work: Pieces) -> HostCosts:
    """The measured layers' times, by each layer's share."""
    profile = fleet.hosts[name]
    times = profile.times
    pace = fleet.slowdown.get(name, 1.0) * fleet.learned.hosts.get(name, 1.0) / profile.share
    layers = [block for block in chain.blocks if block.kind == "layer"]
    steps = _relative([layer.decode_flops(work.context) for layer in layers])
    chunks = _relative([layer.prefill_flops(round(work.tokens), round(work.before)) for layer in layers])
    one, row = times.step(work.context), times.step(work.context, 2) - times.step(work.context)
    token = pace * times.sample + fleet.learned.entry  # beside the head: choosing it, and all that nobody else sees
    piece = times.piece(work.tokens, work.before)
    gain = row / one if one > 0 else 1.0  # the head's matrix is read once for all rows too
    return HostCosts(
        decode=(0.0, *(pace * one * each for each in steps), pace * times.head + token),
        rows=(0.0, *(pace * row * each for each in steps), pace * times.head * gain + token),
        chunk=(0.0, *(pace * piece * each for each in chunks), 0.0),
        choice=token,
        decode_overhead=pace * times.decode_overhead,
        chunk_overhead=pace * times.prefill_overhead,
        quota=profile.share,
        ahead=profile.grace,
        cap=cap,
        available=profile.memory_available,
        runtime=profile.runtime_bytes,
    )


def measured_layer(chain: Chain) -> Block:
    """One of the layers whose times `profile` measures."""
    layers = [block for block in chain.blocks if block.kind == "layer"]
    return (layers[MEASURED] or layers)[0]


def _relative(flops: list[int]) -> list[float]:
    """How much longer each layer takes than the measured ones on the mean, told by their arithmetic, which goes with
    the weights a token reads: of experts, those that it takes."""
    mean = fmean(flops[MEASURED] or flops)
    return [each / mean if mean else 1.0 for each in flops]
