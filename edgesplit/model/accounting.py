"""What each block costs: bytes of weights, of cache and across its boundary, and arithmetic, all without weights.

Takes seconds, and torch: checkpoint.py remembers the outcome.
Must not know: files, hosts, which tensor belongs to which block (structure.py does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgesplit.model.blocks import EMBEDDING, HEAD, Block, Condensed, Flops
from edgesplit.model.rehearsal import Forward, Rehearsal
from edgesplit.runner.anatomy import Anatomy, AnatomyError
from edgesplit.runner.families import family

# Tokens of the forwards of three sequences: a prompt, a decode step, and where a prompt may come in pieces, two more.
# At least eight at first: short convolutions see the last three or four tokens, and count otherwise without them.
# The first decode steps are sixteen tokens apart: indexers count in blocks of tokens, mostly of a power of two.
SEQUENCES = (8, 1, 7, 19), (24, 1, 11), (13, 1, 3)
# Linear attention pads a prompt to whole groups of so many tokens, where its config names no `chunk_size`: the default
# of every chunked delta rule in transformers 5.23.
GROUP = 64
# Share of a short prompt's arithmetic that must not grow with its tokens before groups are looked for; below it they
# change a long prompt's by less.
FIXED = 0.02


@dataclass(frozen=True)
class Probe:
    """`blocks` weigh nothing yet."""

    blocks: tuple[Block, ...]
    max_context: int | None
    chunked: bool
    glued: tuple[tuple[int, int], ...]
    image_positions: int | None


def probe(model: Any, anatomy: Anatomy, config: Any) -> Probe:
    """Run the model without weights. Raises AnatomyError where it keeps nothing from token to token."""
    rehearsal = Rehearsal(model, anatomy)
    text = config.get_text_config(decoder=True)
    layers = [_Layer(entries) for entries in rehearsal.entries()]
    for layer, donor in _lenders(text).items():
        layers[layer] = layers[donor]
    runs = _runs(rehearsal, text)
    if anatomy.kind != "encoder" and not any(any(kept) for run in runs.short for kept in run.kept):
        raise AnatomyError(f"{type(model).__name__} does not keep its state in the cache it is given")
    positions = getattr(text, "max_position_embeddings", None)
    return Probe(
        blocks=tuple(_block(number, layers, runs, text) for number in range(anatomy.count + 2)),
        max_context=positions if type(positions) is int else None,
        chunked=rehearsal.chunked,
        glued=_glued(text),
        image_positions=runs.positions,
    )


def weigh(probe: Probe, sizes: Counter[int]) -> tuple[Block, ...]:
    """The blocks, with their weights."""
    return tuple(block.model_copy(update={"weight_bytes": sizes[number]}) for number, block in enumerate(probe.blocks))


# --- layers that share ---


def _lenders(text: Any) -> dict[int, int]:
    """Layers that read another one's cache, and that one: the last that stores for their kind of attention."""
    modes, kinds = getattr(text, "kv_sharing_modes", None) or (), getattr(text, "layer_types", None) or ()
    stores: dict[str, int] = {}
    lenders = {}
    for layer, (mode, kind) in enumerate(zip(modes, kinds, strict=False)):
        if mode == "store":
            stores[kind] = layer
        elif mode == "reuse" and kind in stores:
            lenders[layer] = stores[kind]
    return lenders


def _glued(text: Any) -> tuple[tuple[int, int], ...]:
    """As blocks: from the embedding to the last layer that reads token ids, and from the first layer that stores for
    others to the last that reads it."""
    readers = getattr(text, family(text.model_type).ids or "_", None)
    lenders = _lenders(text)
    alone = ((0, max(readers)),) if readers else ()
    return (*alone, *(((min(lenders.values()) + 1, max(lenders) + 1),) if lenders else ()))


# --- what was seen ---


@dataclass(frozen=True)
class _Layer:
    """A layer's fresh entries in the cache, mostly one."""

    entries: Sequence[Any]

    @property
    def window(self) -> int | None:
        """Of how many past tokens it keeps keys and values: transformers' cache keeps one less than the window."""
        windows = [entry.sliding_window - 1 for entry in self.entries if hasattr(entry, "sliding_window")]
        return min(windows, default=None)

    @property
    def rate(self) -> int | None:
        """How many tokens it condenses into one entry."""
        return next((entry.compress_rate for entry in self.entries if hasattr(entry, "compress_rate")), None)


@dataclass(frozen=True)
class _Runs:
    """`short` in the order of SEQUENCES; `long` of prompts in groups; `condensing` a long prompt and a
    decode step, then another prompt, where layers condense."""

    short: tuple[Forward, ...]
    long: tuple[Forward, ...]
    condensing: tuple[Forward, ...]
    chunked: bool
    group: int

    @property
    def steps(self) -> list[Forward]:
        """Decode steps."""
        return [run for run in self.short if run.tokens == 1]

    @property
    def prompts(self) -> list[Forward]:
        return [run for run in self.short if not run.before]

    @property
    def positions(self) -> int | None:
        """How many each forward had, where that is not how many tokens it was given: of an image."""
        found = {run.tokens for run in self.short}
        return found.pop() if len(found) == 1 else None


def _runs(rehearsal: Rehearsal, text: Any) -> _Runs:
    steps = SEQUENCES if rehearsal.chunked else [sequence[:2] for sequence in SEQUENCES]
    short = [run for sequence in steps for run in rehearsal.sequence(*sequence)]
    rates = [layer.rate for layer in map(_Layer, rehearsal.entries()) if layer.rate]
    # 3 and 2 tokens more than whole entries of the highest rate, and at every rate another number of entries
    lengthy = [(2 * max(rates) + 3, 1), (3 * max(rates) + 2,)] if rates else []
    condensing = tuple(run for sequence in lengthy for run in rehearsal.sequence(*sequence))
    found = _Runs(tuple(short), (), condensing, rehearsal.chunked, _group(text))
    if found.positions is not None:
        return found
    total, layers = sum(found.prompts[0].flops), range(1, len(found.prompts[0].flops) - 1)
    heavy = [number for number in layers if found.prompts[0].flops[number] > FIXED * total]
    if not any(_padded(number, found) for number in heavy):
        return found
    lengths = [times * found.group + more for times, more in ((2, 0), (3, 0), (4, 0), (2, 1), (2, 2))]
    long = tuple(rehearsal.sequence(length)[0] for length in lengths)
    return _Runs(found.short, long, condensing, found.chunked, found.group)


def _group(text: Any) -> int:
    named = (getattr(text, name, None) for name in ("chunk_size", "mamba_chunk_size"))
    return next((size for size in named if type(size) is int and size > 0), GROUP)


def _padded(number: int, runs: _Runs) -> bool:
    """Does much of a block's work on a short prompt not grow with its tokens?"""
    short = _fitted(number, _Sight(None, None), runs.prompts, ["fixed", "token", "pair"])
    return not runs.chunked and abs(short.fixed) > FIXED * runs.prompts[0].flops[number]


# --- one block ---


def _block(number: int, layers: Sequence[_Layer], runs: _Runs, text: Any) -> Block:
    last = number == len(layers) + 1
    layer = layers[number - 1] if 0 < number <= len(layers) else None
    sight = _Sight(layer.window if layer else None, layer.rate if layer else None)
    prefill = _prefill(number, sight, runs)
    per_token, per_position, per_entry = _decode(number, sight, runs, prefill)
    each, beside = (0, 0) if last else _sent(number, runs)
    return Block(
        name=HEAD if last else EMBEDDING if layer is None else f"layers.{number - 1}",
        kind="head" if last else "embedding" if layer is None else "layer",
        weight_bytes=0,
        kv_tokens_max=sight.window,
        **({"kv_bytes_per_token": 0, "state_bytes": 0} if layer is None else _cache(number - 1, layer, runs)),
        flops_per_token=per_token,
        flops_per_position=per_position,
        flops_per_entry=per_entry,
        prefill=prefill,
        further=_further(number, sight, runs),
        output_bytes_per_token=runs.short[0].logits if last else each,
        output_bytes_per_position=beside,
        output_positions_max=getattr(text, "index_topk", None) if beside else None,
    )


def _cache(number: int, layer: _Layer, runs: _Runs) -> dict[str, Any]:
    """From the cache behind two numbers of tokens, tensor by tensor: eight and nine; where tokens are condensed, many
    more."""
    first, second = (runs.condensing[0], runs.condensing[2]) if layer.rate is not None else runs.short[:2]
    more = second.seen - first.seen
    windowed = growing = state = entries = waiting = 0
    for name, tensor in second.kept[number].items():
        before = first.kept[number][name]
        lengths = tuple(each.shape[1] if each.dim() > 1 else -1 for each in (before, tensor))
        if layer.window is not None and name.endswith((".keys", ".values")):
            windowed += tensor.nbytes // min(second.seen, layer.window)
        elif layer.rate is not None and lengths == (first.seen // layer.rate, second.seen // layer.rate):
            entries += tensor.nbytes // lengths[1]
        elif layer.rate is not None and lengths == (first.seen % layer.rate, second.seen % layer.rate):
            waiting += (before.nbytes + tensor.nbytes) // max(1, sum(lengths))
        else:
            each = (tensor.nbytes - before.nbytes) // more
            growing += each
            state += tensor.nbytes - second.seen * each
    beside = [] if layer.window is None or not growing else [Condensed(every=1, entry_bytes=growing, rest_bytes=0)]
    if layer.rate is not None:
        beside.append(Condensed(every=layer.rate, entry_bytes=entries, rest_bytes=waiting))
    per_token = growing if layer.window is None else windowed
    return {"kv_bytes_per_token": per_token, "state_bytes": state, "condensed": tuple(beside)}


def _sent(number: int, runs: _Runs) -> tuple[int, int]:
    """Bytes per token that leave a block, and per position the token sees."""
    one, other = runs.steps[:2] if len(runs.steps) > 1 else (runs.short[0], runs.short[0])
    more = (other.sent[number] - one.sent[number]) // max(1, other.seen - one.seen)
    return one.sent[number] // one.tokens - more * one.seen, more


@dataclass(frozen=True)
class _Sight:
    """What a layer's tokens see of those before: the last ones, and entries made of all."""

    window: int | None
    rate: int | None

    def positions(self, run: Forward) -> int:
        return run.tokens + (run.before if self.window is None else min(run.before, self.window))

    def entries(self, run: Forward) -> int:
        return run.seen // self.rate if self.rate else 0


def _decode(number: int, sight: _Sight, runs: _Runs, prefill: Flops) -> tuple[int, int, int]:
    """A decode step's arithmetic: whatever the context, per position, and per condensed entry. What a position adds is
    told by prompts where the window is full at once."""
    steps = [*runs.steps, *runs.condensing[1:2]]
    if not steps:
        return 0, 0, 0
    rows = [([1, sight.positions(run), sight.entries(run)], run.flops[number]) for run in steps]
    if len({seen for (_, seen, _), _ in rows[:2]}) > 1:
        per_token, per_position, per_entry = _solve(rows)
        return per_token, per_position, per_entry
    rest = [([1, entries], flops - prefill.pair * seen) for (_, seen, entries), flops in rows]
    per_token, per_entry = _solve(rest)
    return per_token, prefill.pair, per_entry


def _prefill(number: int, sight: _Sight, runs: _Runs) -> Flops:
    if runs.positions is not None:
        return Flops(token=runs.prompts[0].flops[number] // runs.positions)
    layer = 0 < number < len(runs.short[0].flops) - 1
    if runs.long and layer and sight.rate is None and _padded(number, runs):
        return _in_groups([(run.tokens, run.flops[number]) for run in runs.long], runs.group)
    prompts = [*runs.prompts, *runs.condensing[:1]]
    return _fitted(number, sight, prompts, ["fixed", "token", "pair", *(["entry"] if sight.rate else [])])


def _further(number: int, sight: _Sight, runs: _Runs) -> Flops | None:
    pieces = [run for run in runs.short if run.before and run.tokens > 1]
    return _fitted(number, sight, pieces, ["fixed", "token", "position", "pair"]) if pieces else None


def _fitted(number: int, sight: _Sight, runs: Sequence[Forward], names: Sequence[str]) -> Flops:
    rows = []
    for run in runs:
        tokens, seen = run.tokens, sight.positions(run)
        terms = {"fixed": 1, "token": tokens, "position": seen, "pair": tokens * seen,
                 "entry": tokens * sight.entries(run)}  # fmt: skip
        rows.append(([terms[name] for name in names], run.flops[number]))
    return Flops(**dict(zip(names, _solve(rows), strict=True)))


def _in_groups(runs: list[tuple[int, int]], size: int) -> Flops:
    groups = [-(-tokens // size) for tokens, _ in runs]
    terms = [[1, tokens, tokens**2, begun, begun**2] for (tokens, _), begun in zip(runs, groups, strict=True)]
    solved = _solve([(term, flops) for term, (_, flops) in zip(terms, runs, strict=True)])
    fixed, token, pair, group, of_groups = solved
    return Flops(fixed=fixed, token=token, pair=pair, group=group, groups=of_groups, group_tokens=size)


def _solve(equations: list[tuple[list[int], int]]) -> list[int]:
    """The smallest factors that fulfil the equations, whole; columns scaled, so that none counts for more."""
    terms = torch.tensor([row for row, _ in equations], dtype=torch.float64)
    wanted = torch.tensor([[total] for _, total in equations], dtype=torch.float64)
    scale = terms.abs().amax(0).clamp(min=1)
    found = torch.linalg.lstsq(terms / scale, wanted, driver="gelsd").solution[:, 0] / scale
    return [round(factor) for factor in found.tolist()]
