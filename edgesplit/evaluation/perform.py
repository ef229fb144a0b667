"""One repetition of a scenario: the same split, fleet, requests and events, static and adaptive.

Everything is done with edgesplit's own verbs, as a user would. Static: nobody watches; a host that comes back is given
its part of the same split again. Adaptive: `edgesplit watch` runs beside it.
Must not know: what is made of the records.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgesplit.errors import EdgesplitError
from edgesplit.evaluation.acts import Acts
from edgesplit.evaluation.clients import Task
from edgesplit.evaluation.demand import asks, phases, turns
from edgesplit.evaluation.looks import Looks
from edgesplit.evaluation.processes import beside, carry_out, python, warden
from edgesplit.evaluation.record import Answer, Change, Look, Mode, Move
from edgesplit.evaluation.scenario import Stage
from edgesplit.lab import machine
from edgesplit.lab.down import down
from edgesplit.lab.lab import Lab

WATCHING = 60.0  # seconds for `watch` to have heard of its hosts, and to bring weights ahead
LEAD = 3.0  # seconds between the clients' task and the first moment
MOST_TURNS = 400  # different requests of a client of a closed loop; then they come again


@dataclass(frozen=True)
class Played:
    """What a run left, before anything is made of it."""

    seconds: float
    answers: tuple[Answer, ...]
    changes: tuple[Change, ...]
    moves: tuple[Move, ...]
    looks: tuple[Look, ...]
    trouble: tuple[str, ...]


@dataclass
class Repetition:
    """`folder`: for logs; `prompts`: token ids."""

    stage: Stage
    number: int
    folder: Path
    prompts: tuple[tuple[int, ...], ...]

    def prepare(self) -> None:
        """The undisturbed fleet measured, once for both modes."""
        with self._lab() as lab, self._log("prepare") as log:
            carry_out(["profile", *self._where(lab), "--refresh"], log)

    def play(self, mode: Mode) -> Played:
        with ExitStack() as stack:
            log = stack.enter_context(self._log(mode))
            lab = stack.enter_context(self._lab())
            carry_out(["plan", *self._where(lab), "--what-ifs", "0"], log)
            carry_out(["deploy", *self._where(lab), "--yes"], log)
            events = self.folder / f"{mode}-{self.number}-events.jsonl"
            events.write_text("")
            if mode == "adaptive":
                stack.enter_context(self._watch(lab, events, log))
            return self._run(lab, mode, events, log)

    def _run(self, lab: Lab, mode: Mode, events: Path, log: IO[str]) -> Played:
        network = lab.layout.hosts[self.stage.plan.entry].network
        with beside(python("edgesplit.evaluation.clients"), log, **_pipes()) as clients:
            start = time.monotonic() + LEAD
            clock = time.time() - time.monotonic()
            assert clients.stdin is not None  # noqa: S101 - it is a pipe
            clients.stdin.write(self._task(str(network), start).model_dump_json() + "\n")
            clients.stdin.flush()
            looks = Looks(lab, self.stage.plan.name, self.stage.plan.entry, start)
            acts = Acts(lab, self.stage.scenario.events, start, lambda: self._revive(lab, mode, log))
            with _meanwhile(looks.run, acts.run):
                answers, _ = clients.communicate()
            if clients.returncode:
                raise EdgesplitError(f"the clients ended with {clients.returncode}", f"see {log.name}")
        return Played(
            seconds=self.stage.scenario.duration,
            answers=tuple(Answer.model_validate_json(line) for line in answers.splitlines()),
            changes=tuple(acts.changes),
            moves=tuple(_moves(events, clock + start)),
            looks=tuple(looks.looks),
            trouble=tuple(acts.trouble),
        )

    def _task(self, network: str, start: float) -> Task:
        scenario, api = self.stage.scenario, self.stage.plan.api
        steps = phases(scenario)
        most = int(max(amount for _, amount in steps)) if scenario.demand.clients else 0
        endless = [turns(scenario, self.number, client) for client in range(most)]
        return Task(
            network=network, address=api.address, port=api.port, start=start, seconds=scenario.duration,
            patience=scenario.demand.patience, prompts=self.prompts,
            asks=() if most else tuple(asks(scenario, self.number)),
            turns=tuple(tuple(next(each) for _ in range(MOST_TURNS)) for each in endless),
            phases=tuple(steps),
        )  # fmt: skip

    def _revive(self, lab: Lab, mode: Mode, log: IO[str]) -> None:
        """Whoever runs a static split starts its runners again; the split is the same. In a thread, so that events go
        on."""
        if mode == "static":
            words = ["deploy", *self._where(lab), "--yes"]
            threading.Thread(target=_tried, args=(words, log), daemon=True).start()

    # --- the parts ---

    def _where(self, lab: Lab) -> list[str]:
        return [self.stage.plan_file, "-i", str(lab.inventory)]

    def _log(self, name: str) -> IO[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / f"{name}-{self.number}.log").open("w")

    @contextmanager
    def _lab(self) -> Iterator[Lab]:
        name = self.stage.lab.name
        if name in machine.labs():
            raise EdgesplitError(f"there is a lab {name} already", f"edgesplit lab down {name}")
        with warden(name):
            try:
                yield Lab.up(self.stage.lab)
            finally:
                down(name)

    @contextmanager
    def _watch(self, lab: Lab, events: Path, log: IO[str]) -> Iterator[None]:
        words = python("edgesplit", "watch", *self._where(lab), "--json")
        with events.open("w") as output, beside(words, log, stdout=output) as watch:
            end = time.monotonic() + WATCHING
            while '"reading"' not in events.read_text():
                if watch.poll() is not None or time.monotonic() > end:
                    raise EdgesplitError("`edgesplit watch` does not watch", f"see {self.folder}")
                time.sleep(0.2)
            while '"event":"standby"' not in events.read_text() and time.monotonic() < end:
                time.sleep(0.2)
            yield


def _pipes() -> dict[str, Any]:
    import subprocess

    return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@contextmanager
def _meanwhile(*tasks: Any) -> Iterator[None]:
    over = threading.Event()
    threads = [threading.Thread(target=task, args=(over,)) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _tried(words: list[str], log: IO[str]) -> None:
    with suppress(ValueError):  # the run is over, and its log closed
        try:
            carry_out(words, log)
        except EdgesplitError as error:
            log.write(f"{error.message}\n")


def _moves(events: Path, start: float) -> Iterator[Move]:
    """What `watch --json` told of moves. `start`: the run's first moment, by the time of day."""
    begun: dict[str, Any] | None = None
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "move":
            begun = event
        elif event["event"] in ("moved", "failed") and begun is not None:
            decision = begun.get("decision") or {}
            yield Move(
                at=begun["at"] - start, ended=event["at"] - start, action=decision.get("action", "move"),
                because=decision.get("because", begun["text"]), done=event["event"] == "moved",
            )  # fmt: skip
            begun = None
    if begun is not None:
        yield Move(at=begun["at"] - start, ended=None, action="move", because=begun["text"], done=False)
