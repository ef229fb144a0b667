"""What every family must do: give the unsplit model's logits bit for bit, wherever it is cut.

A check returns an Outcome; what it raises is its outcome too. Must not know: how families are made, run or reported.
"""

from __future__ import annotations

import functools
import math
import operator
import random
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from edgesplit.runner.cache import CacheError, Exported
from edgesplit.runner.cache import Sequence as Cached
from families import costs
from families.configs import WINDOW
from families.outcome import CLOSE, Check, Outcome
from families.subject import Chain, Subject
from families.upstream import LONG, MIDDLE, SHORT, STEPS, Answer, every_logit, first_line, padded, prompt

SAMPLED = 4  # three-stage splits
PIECE = 4  # tokens of a prompt that come at once


class Walk:
    """One sequence on its way through a chain, fed the tokens of an answer."""

    def __init__(self, chain: Chain, ids: Sequence[int], answer: Answer, row: int = 0) -> None:
        self.chain, self.answer, self.row = chain, answer, row
        self.stages: list[Cached] = chain.sequence()
        self.step = 0
        self.next = torch.tensor([[*ids]])
        self.worst = 0.0

    def go(self, steps: int = 1) -> Walk:
        for _ in range(steps):
            self.take(self.chain.forward([self.stages], self.next))
        return self

    def take(self, logits: torch.Tensor) -> None:
        """The next step's logits [1, T, vocabulary]."""
        self.worst = max(self.worst, apart(logits[:, -1], self.answer.logits[self.step][self.row : self.row + 1]))
        self.next = torch.tensor([[self.answer.tokens[self.row][self.step]]])
        self.step += 1


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    if torch.equal(left, right):
        return 0.0
    difference = (left - right).abs().max().item()
    return math.inf if math.isnan(difference) else difference


# --- cuts ---


def boundaries(subject: Subject) -> Outcome:
    """Two stages, cut at every boundary that the chain allows."""
    worst = 0.0
    for end in subject.allowed:
        chain = subject.chain(end)
        subject.legal.append(end)
        worst = max(worst, _whole(subject, chain))
    runs = ", ".join(f"{first} to {last}" for first, last in subject.checkpoint.chain.glued)
    return Outcome(worst, f"blocks {runs} stay together" if runs else "")


def _whole(subject: Subject, chain: Chain) -> float:
    ids = prompt(LONG)
    return Walk(chain, ids, subject.unsplit(ids)).go(STEPS).worst


def three_stages(subject: Subject) -> Outcome:
    """Some splits into three stages."""
    pairs = [(left, right) for left in subject.legal for right in subject.legal if left < right]
    chosen = random.Random(subject.family).sample(pairs, min(SAMPLED, len(pairs)))  # noqa: S311 - no secret
    if not chosen:
        return Outcome()
    return Outcome(max(_whole(subject, subject.chain(*ends)) for ends in chosen))


def two_stretches(subject: Subject) -> Outcome:
    """A host that holds the first and the last blocks: two stages in one process, which share what both need."""
    if len(subject.legal) < 2:
        return Outcome()
    left, right = subject.legal[0], subject.legal[-1]
    first = subject.stage(0, left)
    last = subject.load(right + 1, subject.blocks - 1, donors=[first])
    return Outcome(_whole(subject, Chain(first, subject.stage(left + 1, right), last)))


# --- runs ---


def short_prompt(subject: Subject) -> Outcome:
    """A prompt shorter than the window, which decoding then passes."""
    assert SHORT < WINDOW < SHORT + STEPS
    ids = prompt(SHORT)
    return Outcome(Walk(middle(subject), ids, subject.unsplit(ids)).go(STEPS).worst)


def middle(subject: Subject) -> Chain:
    return subject.chain(subject.legal[len(subject.legal) // 2])


def all_logits(subject: Subject) -> Outcome:
    """The logits of every position of the prompt."""
    chain, ids = middle(subject), torch.tensor([prompt(LONG)])
    found = chain.forward([chain.sequence()], ids, all_logits=True)
    return Outcome(apart(found, every_logit(subject.whole, ids, cached=True)))


def pieces(subject: Subject) -> Outcome:
    """A prompt in pieces, where the stages say that it may come so: as the unsplit model in the same pieces, which is
    close to what it answers to the whole prompt."""
    chain = middle(subject)
    if not all(stage.chunks for stage in chain.stages):
        return Outcome()
    ids = prompt(LONG)
    whole, note = subject.unsplit(ids), ""
    try:
        broken = subject.unsplit(ids, prefill_chunk_size=PIECE)
    except ValueError:
        broken, note = whole, "as the whole prompt: the unsplit model takes no pieces"
    walk = Walk(chain, ids, broken)
    for start in range(0, LONG, PIECE):
        found = chain.forward([walk.stages], torch.tensor([ids[start : start + PIECE]]))
    walk.take(found)
    own = apart(whole.logits[0], broken.logits[0])
    if own > CLOSE:
        return Outcome(own, "the unsplit model answers otherwise in pieces, and the stage allows them")
    return Outcome(walk.go(STEPS - 1).worst, note)


def in_turns(subject: Subject) -> Outcome:
    """Sequences that take turns on the same stages."""
    chain = middle(subject)
    walks = [Walk(chain, ids, subject.unsplit(ids)) for ids in (prompt(LONG), prompt(SHORT), prompt(LONG, 1))]
    for _ in range(STEPS):
        for walk in walks:
            walk.go()
    return Outcome(max(walk.worst for walk in walks))


# --- batches ---


def padded_batch(subject: Subject) -> Outcome:
    """Prompts of different lengths in one batch, padded on the left: as the unsplit model answers this batch, or, where
    that disturbs the rows, as it answers each alone."""
    prompts = [prompt(LONG), prompt(SHORT), prompt(MIDDLE)]
    batch = _batch(subject, prompts, [subject.unsplit(*prompts)] * 3, [0, 1, 2])
    if batch.difference == 0:
        return batch
    alone = _batch(subject, prompts, [subject.unsplit(ids) for ids in prompts], [0, 0, 0])
    if alone.difference != 0:
        return batch
    own = max(
        apart(subject.unsplit(*prompts).logits[step][row], subject.unsplit(ids).logits[step][0])
        for step in (0, 1)
        for row, ids in enumerate(prompts)
    )
    note = "" if own < CLOSE else "; in the unsplit model's batch the padding disturbs the rows"
    return Outcome(0.0, f"each row alone{note}")


def _batch(subject: Subject, prompts: list[list[int]], answers: list[Answer], rows: list[int]) -> Outcome:
    chain, (ids, mask) = middle(subject), padded(prompts)
    walks = [Walk(chain, each, answer, row) for each, answer, row in zip(prompts, answers, rows, strict=True)]
    found = chain.forward([walk.stages for walk in walks], ids, (mask == 0).sum(1).tolist())
    for number, walk in enumerate(walks):
        walk.take(found[number : number + 1])
    _together(walks, STEPS - 1)
    return Outcome(max(walk.worst for walk in walks))


def _together(walks: list[Walk], steps: int = 1) -> None:
    for _ in range(steps):
        found = walks[0].chain.forward([walk.stages for walk in walks], torch.cat([walk.next for walk in walks]))
        for number, walk in enumerate(walks):
            walk.take(found[number : number + 1])


def join_and_leave(subject: Subject) -> Outcome:
    """Sequences that come with their prompts one by one, share steps with others, and go on without them."""
    chain = middle(subject)
    prompts = [prompt(LONG), prompt(SHORT), prompt(MIDDLE)]
    walks = [Walk(chain, ids, subject.unsplit(ids)).go() for ids in prompts]
    for group in ([0, 1], [0, 1, 2], [2, 0, 1], [1, 2], [0], [0, 1, 2]):
        _together([walks[number] for number in group])
    return Outcome(max(walk.worst for walk in walks))


# --- rolled back, moved ---


def rollback(subject: Subject) -> Outcome:
    """Tokens taken back: to a mark always; without one, exact or refused."""
    chain, ids = middle(subject), prompt(LONG)
    walk = Walk(chain, ids, subject.unsplit(ids)).go(3)
    for stage, sequence in zip(chain.stages, walk.stages, strict=True):
        stage.caches.mark(sequence)
    _astray(walk)
    walk.go(2)
    try:
        _astray(walk, marked=False)
    except CacheError:
        return Outcome(walk.worst, "to marks only")
    return Outcome(walk.go(2).worst)


def _astray(walk: Walk, marked: bool = True) -> None:
    """Two tokens that are none of the answer's, and back."""
    for token in (7, 8) if marked else (9, 10):
        walk.chain.forward([walk.stages], torch.tensor([[token]]))
    for stage, sequence in zip(walk.chain.stages, walk.stages, strict=True):
        stage.caches.crop(sequence, 2)


def moved(subject: Subject) -> Outcome:
    """Taken to stages that are cut elsewhere, as bytes; the one left behind goes on too."""
    ids = prompt(LONG)
    walk = Walk(middle(subject), ids, subject.unsplit(ids)).go(3)
    try:
        parts = [stage.caches.export(each) for stage, each in zip(walk.chain.stages, walk.stages, strict=True)]
    except CacheError as error:
        return Outcome(None, first_line(error), refused=True)
    exported = functools.reduce(operator.or_, (Exported.from_bytes(part.to_bytes()) for part in parts))
    elsewhere = Walk(subject.chain(subject.legal[-1]), ids, walk.answer)
    elsewhere.stages = [stage.caches.adopt(exported) for stage in elsewhere.chain.stages]
    elsewhere.step, elsewhere.next = walk.step, walk.next
    return Outcome(max(elsewhere.go(STEPS - 3).worst, walk.go(STEPS - 3).worst))


CHECKS: dict[str, Check] = {
    "cuts": boundaries,
    "three": three_stages,
    "ring": two_stretches,
    "short": short_prompt,
    "logits": all_logits,
    "pieces": pieces,
    "turns": in_turns,
    "padded": padded_batch,
    "joined": join_and_leave,
    "rollback": rollback,
    "moved": moved,
    "bytes": costs.in_bytes,
    "flops": costs.in_flops,
}


def run(subject: Subject) -> dict[str, Outcome]:
    """Every check; without a legal cut, the first alone."""
    outcomes: dict[str, Outcome] = {}
    for name, check in CHECKS.items():
        try:
            outcomes[name] = check(subject)
        except Exception as error:  # noqa: BLE001 - whatever a family raises is its result
            outcomes[name] = Outcome(None, told(error))
        if not subject.legal:
            break
    return outcomes


def told(error: BaseException) -> str:
    """What was raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({Path(place.filename).name}:{place.lineno})"
