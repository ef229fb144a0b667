"""The events of a scenario carried out on a lab, at their times.

Must not know: what is measured meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgesplit.errors import EdgesplitError
from edgesplit.evaluation.record import Change
from edgesplit.evaluation.scenario import Act, Happening
from edgesplit.lab.lab import Lab


@dataclass
class Acts:
    """`started`: what is done when a host has been powered on again."""

    lab: Lab
    events: tuple[Happening, ...]
    start: float  # the run's first moment, by the monotonic clock
    started: Callable[[], None]
    changes: list[Change] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def run(self, over: threading.Event) -> None:
        for event in self.events:
            if over.wait(max(0.0, event.at - self._now())):
                return
            for act in event.do:
                at = self._now()
                try:
                    self._do(act)
                except (EdgesplitError, OSError) as error:
                    self.trouble.append(f"{act.text}: {error}")
                self.changes.append(Change(at=at, text=act.text))

    def _now(self) -> float:
        return time.monotonic() - self.start

    def _do(self, act: Act) -> None:
        match act.verb:
            case "demand":
                pass  # the clients know
            case "link":
                a, b = act.hosts
                self.lab.set_link(a, b, one_way=False, **act.settings)
            case "host":
                cores = act.settings.get("cores")
                amount = None if cores is None else float(cores)
                self.lab.set_host(act.hosts[0], cores=amount, memory=act.settings.get("memory"))
            case _:
                getattr(self.lab, act.verb)(act.hosts[0])
                if act.verb == "start":
                    self.started()
