"""All repetitions of some scenarios, in turns; what was done already is not done again.

A run is kept as one file, named by everything it was made of, so a long evaluation may be done in pieces.
Must not know: figures, tables, how a run is carried out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesplit.evaluation import reference
from edgesplit.evaluation.demand import prompts
from edgesplit.evaluation.perform import Played, Repetition
from edgesplit.evaluation.record import MODES, Answer, Mode, Run
from edgesplit.evaluation.scenario import Stage
from edgesplit.values import digest


@dataclass
class Evaluation:
    """`say`: tells somebody what is going on."""

    folder: Path
    say: Callable[[str], None]

    def runs(self, stage: Stage, numbers: Iterable[int]) -> Iterator[Run]:
        """Both modes of each repetition, one after the other, so that the machine is the same for both."""
        for number in numbers:
            kept = [self._kept(stage, mode, number) for mode in MODES]
            found = [run for run in kept if run is not None]
            yield from found if len(found) == len(MODES) else self._both(stage, number)

    def forget(self, stage: Stage) -> None:
        """Its runs, and nothing else that is in their folder."""
        for mode in MODES:
            for file in (self.folder / stage.name).glob(f"{mode}-*.json"):
                file.unlink()

    def _both(self, stage: Stage, number: int) -> Iterator[Run]:
        self.say(f"{stage.name} {number}: the model and its right answers")
        found = reference.checkpoint(stage)
        asked = prompts(stage.scenario, reference.vocabulary(found))
        right = reference.answers(found, stage, asked)
        permitted = reference.allowed(found, stage)
        repetition = Repetition(stage, number, self.folder / stage.name, asked)
        self.say(f"{stage.name} {number}: measuring the fleet")
        repetition.prepare()
        for mode in MODES if number % 2 else MODES[::-1]:
            self.say(f"{stage.name} {number}: {mode}")
            begun = time.monotonic()
            played = repetition.play(mode)
            run = Run(
                scenario=identity(stage), name=stage.name, mode=mode, repetition=number, seconds=played.seconds,
                answers=checked(played, right), changes=played.changes, moves=played.moves, looks=played.looks,
                permitted=permitted, trouble=played.trouble,
            )  # fmt: skip
            path = self._path(stage, mode, number)
            path.write_text(run.model_dump_json())
            self.say(f"{stage.name} {number}: {mode} took {time.monotonic() - begun:.0f} s; kept as {path}")
            yield run

    def _path(self, stage: Stage, mode: Mode, number: int) -> Path:
        return self.folder / stage.name / f"{mode}-{number}.json"

    def _kept(self, stage: Stage, mode: Mode, number: int) -> Run | None:
        try:
            run = Run.model_validate_json(self._path(stage, mode, number).read_bytes())
        except (OSError, ValueError):
            return None
        return run if run.scenario == identity(stage) else None


def identity(stage: Stage) -> str:
    """Of scenario, lab and plan as they are understood, not as they are written."""
    return digest(digest(stage.scenario) + digest(stage.lab) + digest(stage.plan))


def checked(played: Played, right: Sequence[Sequence[int]]) -> tuple[Answer, ...]:
    """Its answers, each compared with that of the unsplit model."""
    return tuple(
        answer.model_copy(update={"right": tuple(right[answer.prompt][: answer.wanted]) == answer.tokens})
        if answer.whole
        else answer
        for answer in sorted(played.answers, key=lambda answer: answer.asked)
    )
