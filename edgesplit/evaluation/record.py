"""What one run of a scenario left: answers, changes, moves, looks at the hosts. Times are seconds from its start.

Must not know: how it came about, what is made of it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgesplit.values import Value

Mode = Literal["static", "adaptive"]
MODES: tuple[Mode, Mode] = ("static", "adaptive")


class Answer(Value):
    """One request: when it was asked, when each token came. `outcome` is "" for a whole answer, else why there is none;
    `ended`: when its client knew. `right`: are its tokens those of the unsplit model; None: it has none."""

    asked: float
    prompt: int  # number of the prompt
    wanted: int  # tokens
    times: tuple[float, ...]
    tokens: tuple[int, ...] = ()
    outcome: str = ""
    ended: float
    right: bool | None = None

    @property
    def whole(self) -> bool:
        return not self.outcome


class Change(Value):
    """An event of the scenario, as it was carried out."""

    at: float
    text: str


class Move(Value):
    """What the orchestrator did. `ended` is when the new split served, or the move had failed."""

    at: float
    ended: float | None
    action: str
    because: str
    done: bool


class Look(Value):
    """The hosts at one moment. `busy`: share of its quota that a host used since the last look; `loaded`: blocks its
    runner holds, `stored`: blocks whose sealed weights are on its disk; `sent`: bytes from the controller so far."""

    at: float
    busy: dict[str, float]
    loaded: dict[str, tuple[int, ...]]
    stored: dict[str, tuple[int, ...]]
    sent: int


class Run(Value):
    scenario: str  # digest of all that it was made of
    name: str
    mode: Mode
    repetition: int
    seconds: float
    answers: tuple[Answer, ...]
    changes: tuple[Change, ...] = ()
    moves: tuple[Move, ...] = ()
    looks: tuple[Look, ...] = ()
    permitted: tuple[tuple[str, ...], ...] = ()  # by block: the hosts that may hold it
    trouble: tuple[str, ...] = Field(default=())  # what went wrong in carrying it out
