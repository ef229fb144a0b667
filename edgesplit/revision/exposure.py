"""Who sees what: what each host of a split could learn if somebody read its memory. In words, for a person to judge.

Must not know: how likely that is; how much activations tell (model/audit.py measures it).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgesplit.model.blocks import name_blocks
from edgesplit.split import Split, Stage
from edgesplit.values import Value


class Sight(Value):
    """`depth`: how many layers, of all of them, lie between the text and the first activations that a host sees; None
    where it sees the text itself."""

    host: str
    trusted: bool
    blocks: str
    sees: str
    depth: int | None


def who_sees_what(split: Split, trusted: Collection[str]) -> tuple[Sight, ...]:
    """One per host, in ring order."""
    return tuple(_sight(split, host, host in trusted) for host in split.hosts)


def _sight(split: Split, host: str, trusted: bool) -> Sight:
    stages = split.of(host)
    numbers = [block for stage in stages for block in range(stage.first, stage.last + 1)]
    blocks = name_blocks(numbers, split.blocks)
    if host == split.entry:
        return Sight(host=host, trusted=trusted, blocks=blocks, sees="text and token ids", depth=None)
    return Sight(host=host, trusted=trusted, blocks=blocks, sees=_seen(stages, split.blocks), depth=stages[0].first - 1)


def _seen(stages: Sequence[Stage], total: int) -> str:
    """A host sees what comes into its stages and what leaves them."""
    places = [place for stage in stages for place in (stage.first - 1, stage.last)]
    words = [f"behind {name_blocks([place], total)}" for place in places]
    return "activations " + ", ".join(words)
