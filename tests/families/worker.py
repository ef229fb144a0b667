"""One family from config to outcome, in a process of its own: what crashes or hangs takes no other family with it.

Must not know: how many there are, what is made of the outcomes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import resource
import signal
import tempfile
import warnings
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from edgesplit.errors import ModelError
from families import checks, configs, upstream
from families.outcome import Outcome
from families.subject import Subject

LIMIT = 120  # seconds a family may take of a processor, however busy the machine is
PRELOADED = ["families.worker"]


@dataclasses.dataclass(frozen=True)
class Result:
    """`unable`: why transformers alone cannot decode with it; `refused`: why edgesplit does not take it.

    `outcomes`: check -> its outcome.
    """

    family: str
    kind: str = ""
    layers: str = ""
    unable: str = ""
    remark: str = ""
    refused: str = ""
    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        marks = {name: {**dataclasses.asdict(each), "mark": each.mark} for name, each in self.outcomes.items()}
        return {**dataclasses.asdict(self), "outcomes": marks}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        marks = {name: {key: each[key] for key in each if key != "mark"} for name, each in data["outcomes"].items()}
        return cls(**{**data, "outcomes": {name: Outcome(**each) for name, each in marks.items()}})


def examine(family: str) -> Result:
    """Every check of a family, in this process."""
    result = Result(family, configs.class_name(family))
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject = Subject(family, Path(folder))
            result = dataclasses.replace(
                result, layers=upstream.layers(subject.whole), remark=upstream.check(subject.whole)
            )
        except upstream.Upstream as error:
            return dataclasses.replace(result, unable=str(error))
        except Exception as error:  # noqa: BLE001 - whatever transformers raises is why it cannot
            return dataclasses.replace(result, unable=checks.told(error))
        try:
            subject.open()
        except ModelError as error:
            return dataclasses.replace(result, refused=str(error).replace(str(subject.source), "it"))
        return dataclasses.replace(result, outcomes=checks.run(subject))


class Worker:
    """A process that examines one family. `done()`: its result, once there is one or it has ended without."""

    def __init__(self, context: ForkServerContext, family: str) -> None:
        self.family = family
        self._result, far = context.Pipe(duplex=False)
        self._process = context.Process(target=_examine, args=(family, far), daemon=True)
        self._process.start()
        far.close()

    def done(self) -> Result | None:
        if not self._result.poll(0.05):
            return None
        try:
            result: Result = self._result.recv()
        except EOFError:
            self._process.join()
            return self._lost()
        self._process.join()
        return result

    def _lost(self) -> Result:
        code = self._process.exitcode
        late = code == -signal.SIGXCPU
        reason = f"not finished within {LIMIT} s" if late else f"its process ended with code {code}"
        return Result(self.family, configs.class_name(self.family), outcomes={"all": Outcome(None, reason)})


def _examine(family: str, result: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):  # some families print
        found = examine(family)
    result.send(found)


def context() -> ForkServerContext:
    """Processes that begin with torch and transformers imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made
