"""One family from config to outcome, in a process of its own: what crashes or hangs takes no other family with it.

Must not know: how many there are, what is made of the outcomes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from edgesplit.errors import ModelError
from families import checks, configs, upstream
from families.subject import Subject

LIMIT = 120.0  # seconds a family may take
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
    outcomes: dict[str, checks.Outcome] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        marks = {name: {**dataclasses.asdict(each), "mark": each.mark} for name, each in self.outcomes.items()}
        return {**dataclasses.asdict(self), "outcomes": marks}


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
    """A process that examines one family. `done()`: its result, once there is one or its time is over."""

    def __init__(self, context: ForkServerContext, family: str) -> None:
        self.family, self._until = family, time.monotonic() + LIMIT
        self._result, far = context.Pipe(duplex=False)
        self._process = context.Process(target=_examine, args=(family, far), daemon=True)
        self._process.start()
        far.close()

    def done(self) -> Result | None:
        if self._result.poll(0.05):
            try:
                result: Result = self._result.recv()
            except EOFError:
                self._process.join()
                return self._lost(f"its process ended with code {self._process.exitcode}")
            self._process.join()
            return result
        if time.monotonic() < self._until:
            return None
        self._process.kill()
        return self._lost(f"not finished within {LIMIT:.0f} s")

    def _lost(self, reason: str) -> Result:
        return Result(self.family, configs.class_name(self.family), outcomes={"all": checks.Outcome(None, reason)})


def _examine(family: str, result: Connection) -> None:
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
