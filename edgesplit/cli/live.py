"""What a watch knows, as a picture that moves; and plain lines where there is no terminal."""

from __future__ import annotations

import datetime
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from rich.console import Console, RenderableType
from rich.live import Live

from edgesplit.broadcast.transition import Phase, Step
from edgesplit.cli.live_page import HostRow, Line, LinkRow, Picture, StageRow, page
from edgesplit.model.blocks import name_blocks
from edgesplit.orchestrator.event import Event
from edgesplit.orchestrator.watch import Watch
from edgesplit.profiling.capacity import apart
from edgesplit.profiling.probes import Reading
from edgesplit.units import format_size

KEPT = 50  # lines; more than any screen shows
REFRESH = 2  # times a second


class Doing:
    """Progress of a push, in a few words."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self.text = ""

    def begin(self, step: Step) -> None:
        with self._lock:
            if step.phase is Phase.SHIP and step.size:
                self._left[step.host] = step.size
        self.text = f"{step.phase.value} {step.host}: {step.detail}"

    def sent(self, step: Step, size: int) -> None:
        with self._lock:
            self._left[step.host] = self._left.get(step.host, 0) - size
            left = {host: size for host, size in self._left.items() if size > 0}
        self.text = "sending: " + ", ".join(f"{format_size(size)} left to {host}" for host, size in left.items())

    def note(self, step: Step, text: str) -> None:
        self.text = f"{step.host}: {text}"

    def end(self, step: Step) -> None:
        if step.phase is Phase.UNLOCK:
            self._left, self.text = {}, ""

    def undo(self) -> None:
        self.text = "putting the hosts back as they were"


class Steps:
    """The time of each stage's decode step between the last two readings in which there were any."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int], tuple[int, float]] = {}
        self.seconds: dict[tuple[int, int], float] = {}

    def feed(self, host: str, reading: Reading) -> None:
        for stage in reading.stages:
            key = (host, stage.epoch, stage.stage)
            steps, spent = self._seen.get(key, (0, 0.0))
            if stage.steps > steps:
                self.seconds[stage.epoch, stage.stage] = (stage.decode_seconds - spent) / (stage.steps - steps)
            self._seen[key] = stage.steps, stage.decode_seconds


class Screen:
    """Fed with events; gives the picture of the moment, from any thread."""

    def __init__(self, watch: Watch, doing: Doing, console: Console, clock: Callable[[], float]) -> None:
        self._watch, self._doing, self._console, self._clock = watch, doing, console, clock
        self._steps = Steps()
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._standby = ""

    def feed(self, event: Event) -> None:
        for host, reading in event.readings.items():
            if isinstance(reading, Reading):
                self._steps.feed(host, reading)
        if event.event == "reading":
            return
        if event.event == "standby":
            self._standby = event.text
        if self._lines and self._lines[-1].kind == event.event == "keep":  # of those in a row, the last says it all
            self._lines.pop()
        self._lines.append(Line(_clock(event.at), event.epoch, event.event, event.text))

    def __rich__(self) -> RenderableType:
        size = self._console.size
        return page(self.picture(), size.width, size.height)

    def picture(self) -> Picture:
        watch, now = self._watch, self._clock()
        mind, plan = watch.state, watch.cargo.plan
        entry = mind.host(watch.running.entry).reading
        return Picture(
            name=plan.name,
            clock=_clock(now),
            epoch=watch.running.epoch,
            broken=(entry.broken if entry else "") or ("the ring" if mind.broken_at is not None else ""),
            token=entry.time_per_token if entry else None,
            wished=plan.service.time_per_token,
            running=entry.running if entry else 0,
            concurrency=plan.workload.concurrency,
            at_once=mind.at_once,
            slow=plan.watch.slowdown,
            standby=self._standby,
            doing=self._doing.text,
            stages=tuple(self._stages()),
            hosts=tuple(self._host(name, now) for name in watch.hosts),
            links=tuple(self._links()),
            lines=tuple(self._lines),
        )

    def _stages(self) -> Iterator[StageRow]:
        running, links, profiled = self._watch.running, self._watch.state.links, self._watch.fleet.links
        following = {number: right for number, (_, right) in enumerate(pairwise(running.stages))}
        for number, stage in enumerate(running.stages):
            after = following.get(number)
            profile = profiled.get(stage.host, {}).get(after.host) if after else None
            seen = links.get(stage.host, {}).get(after.host) if after else None
            rtt = seen.rtt.level if seen else profile.rtt if profile else None
            yield StageRow(
                host=stage.host,
                blocks=name_blocks(range(stage.first, stage.last + 1), running.blocks),
                seconds=self._steps.seconds.get((running.epoch, number)),
                hop=None if rtt is None else rtt / 2,
                expected_hop=profile.rtt / 2 if profile else None,
            )

    def _host(self, name: str, now: float) -> HostRow:
        watch = self._watch
        host, serves = watch.state.host(name), name in watch.running.hosts
        reading = host.reading
        if host.away(now, watch.cargo.plan.watch.host_timeout):
            state = "silent"
        elif serves:
            state = "serves" if reading is None or reading.runner else "gone"
        else:
            state = "stands by" if reading is not None and reading.runner else "idle"
        return HostRow(
            name=name,
            state=state,
            since=None if host.seen is None else max(0.0, now - host.seen),
            pace=host.pace.level,
            others=host.others,
            cores=reading.cores if reading else None,
            free=reading.memory_available if reading else None,
            total=reading.memory_total if reading else None,
        )

    def _links(self) -> Iterator[LinkRow]:
        """Those that differ from their profile; each pair once."""
        profiled = self._watch.fleet.links
        for source, row in sorted(self._watch.state.links.items()):
            for target, link in sorted(row.items()):
                profile = profiled.get(source, {}).get(target)
                if source < target and profile is not None and apart(link.rtt.level, profile.rtt, 1e-3):
                    yield LinkRow(f"{source} - {target}", link.rtt.level, profile.rtt)


@contextmanager
def live(screen: Screen, console: Console) -> Iterator[None]:
    """Shown until the end, on a screen of its own; what was there before comes back."""
    with Live(console=console, screen=True, get_renderable=screen.__rich__, refresh_per_second=REFRESH):
        yield


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%H:%M:%S")
