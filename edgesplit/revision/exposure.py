"""Who sees what: what each host of a split could learn if somebody read its memory. In words, for a person to judge.

Must not know: how likely that is; how much activations tell is measured (model/audit.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edgesplit.model.blocks import name_blocks
from edgesplit.split import Split, Stage
from edgesplit.values import Value

WISHES = (0.5, 0.1)  # shares of the tokens for which a pin depth is named


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


def audit_words(worst: Mapping[int, float], split: Split, trusted: Collection[str]) -> list[str]:
    """What a measured exposure says of a split. `worst`: behind each block that has a boundary behind it, in their
    order, the share of the tokens that the better attacker recovers."""
    placed = split.placement()
    seen = [block for block in worst if not {placed[block], placed[block + 1]} <= set(trusted)]
    if not seen:
        return ["No untrusted host sees activations."]
    first = seen[0]
    who = next(host for host in placed[first : first + 2] if host not in trusted)
    where = f"behind {name_blocks([first], split.blocks)}"
    said = [f"{who} is the first untrusted host on the way; {where}, {worst[first]:.0%} of the tokens are recovered."]
    for share in WISHES:
        block = _enough(worst, share)
        wish = f"To limit exposure to {share:.0%} of the tokens"
        deep = "no depth is enough" if block is None else f"pin everything up to {name_blocks([block], split.blocks)}"
        said.append(f"{wish}, {deep}.")
    return said


def _enough(worst: Mapping[int, float], share: float) -> int | None:
    """The first block behind which no boundary gives away more than the share."""
    enough = None
    for block in reversed([*worst]):
        if worst[block] > share:
            break
        enough = block
    return enough


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
