"""What a run comes to: latency, service level, downtime, recovery, utilisation, privacy, moves. A record -> figures.

A request is within the service level when its first token, and each one after it on average, came in time; a token is,
when it came by the moment that allows. A request without a whole answer is lost. In latencies a lost one counts as long
as its client waited.
Must not know: how the record came about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from edgesplit.evaluation.record import Answer, Look, Run
from edgesplit.plan import ServiceLevel
from edgesplit.values import Value

DOWN = 3.0  # seconds without a token, though somebody waits, that are an incident
AT_ONCE = 1.0  # seconds within which what is done is one event
CALM = 5.0  # seconds in which nobody is behind, after which a service has recovered


class Recovery(Value):
    """`seconds`: None when it did not recover before the next event, or the end."""

    at: float
    text: str
    seconds: float | None


class Figures(Value):
    """Of one run. `disturbed`: p95 from the first event on. `downtime` in seconds. `load`: share of their quota that
    the hosts used of which the ring was made, on average; `busiest`: the most of any of these."""

    requests: int
    lost: int
    wrong: int  # tokens that are not those of the unsplit model
    p50: float
    p95: float
    disturbed: float
    first: float  # median time to the first token of whole answers
    per_token: float  # median seconds per further token of whole answers
    compliance: float
    tokens_in_time: float
    incidents: int
    downtime: float
    hours: float
    load: float
    busiest: float
    violations: int
    looks: int
    moves: int
    failed_moves: int
    sent: int
    recoveries: tuple[Recovery, ...]

    @property
    def incidents_per_hour(self) -> float:
        return self.incidents / self.hours

    @property
    def lost_per_hour(self) -> float:
        return self.lost / self.hours


def figures(run: Run, service: ServiceLevel) -> Figures:
    first, each = service.time_to_first_token or math.inf, service.time_per_token or math.inf
    whole = [answer for answer in run.answers if answer.whole]
    begun = min((change.at for change in run.changes), default=0.0)
    gaps = list(_gaps(run))
    loads = list(_loads(run.looks))
    return Figures(
        requests=len(run.answers),
        lost=len(run.answers) - len(whole),
        wrong=sum(len(answer.tokens) for answer in whole if answer.right is False),
        p50=quantile([_latency(answer) for answer in run.answers], 0.5),
        p95=quantile([_latency(answer) for answer in run.answers], 0.95),
        disturbed=quantile([_latency(answer) for answer in run.answers if answer.ended >= begun], 0.95),
        first=quantile([answer.times[0] - answer.asked for answer in whole], 0.5),
        per_token=quantile([_per_token(answer) for answer in whole if len(answer.times) > 1], 0.5),
        compliance=_share(_within(answer, first, each) for answer in run.answers),
        tokens_in_time=_share(came <= due for answer in run.answers for due, came in _dues(answer, first, each)),
        incidents=len(gaps),
        downtime=sum(gaps),
        hours=run.seconds / 3600,
        load=sum(sum(row.values()) / len(row) for row in loads) / max(1, len(loads)),
        busiest=max((max(row.values()) for row in _averages(run.looks)), default=0.0),
        violations=violations(run),
        looks=len(run.looks),
        moves=sum(move.done for move in run.moves),
        failed_moves=sum(not move.done for move in run.moves),
        sent=run.looks[-1].sent - run.looks[0].sent if run.looks else 0,
        recoveries=tuple(_recoveries(run, first, each)),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so many are not above; nan of nothing."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else math.nan


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else math.nan


def _latency(answer: Answer) -> float:
    return answer.ended - answer.asked


def _per_token(answer: Answer) -> float:
    return (answer.times[-1] - answer.times[0]) / max(1, len(answer.times) - 1)


def _within(answer: Answer, first: float, each: float) -> bool:
    return answer.whole and answer.times[0] - answer.asked <= first and _per_token(answer) <= each


def _dues(answer: Answer, first: float, each: float) -> Iterator[tuple[float, float]]:
    """(when it was due, when it came) of each token that was asked for."""
    for number in range(answer.wanted):
        came = answer.times[number] if number < len(answer.times) else math.inf
        yield answer.asked + first + number * each, came


# --- downtime and recovery ---


def _gaps(run: Run) -> Iterator[float]:
    """Seconds of each stretch in which nobody got a token although somebody waited."""
    ends = [answer.ended for answer in run.answers]
    tokens = sorted(time for answer in run.answers for time in answer.times)
    last = 0.0
    for token in [*tokens, max(ends, default=0.0)]:
        if token - last >= DOWN:
            waiting = (max(last, each.asked) for each in run.answers if each.asked < token and each.ended > last)
            since = min(waiting, default=token)
            if token - since >= DOWN:
                yield token - since
        last = token


def _behind(answers: Iterable[Answer], first: float, each: float) -> list[tuple[float, float]]:
    """When somebody was behind: from when a token was due until it came, or its client gave up."""
    found = []
    for answer in answers:
        for due, came in _dues(answer, first, each):
            until = min(came, answer.ended)
            if until > due:
                found.append((due, until))
        if not answer.whole:
            found.append((min(answer.asked + first, answer.ended), max(answer.asked + first, answer.ended)))
    return sorted(found)


def _recoveries(run: Run, first: float, each: float) -> Iterator[Recovery]:
    """From each event, the seconds until nobody has been behind for a while."""
    behind = _behind(run.answers, first, each)
    events: list[tuple[float, str]] = []
    for change in run.changes:
        if events and change.at - events[-1][0] < AT_ONCE:
            events[-1] = (events[-1][0], f"{events[-1][1]}; {change.text}")
        else:
            events.append((change.at, change.text))
    times = [*(at for at, _ in events), run.seconds]
    for number, (at, text) in enumerate(events):
        calm = at
        for begin, end in behind:
            if begin < calm + CALM and end > calm:
                calm = end
        late = calm > at and calm > times[number + 1]
        yield Recovery(at=at, text=text, seconds=None if late else calm - at)


# --- hosts ---


def _loads(looks: Sequence[Look]) -> Iterator[dict[str, float]]:
    for look in looks:
        row = {name: busy for name, busy in look.busy.items() if look.loaded.get(name)}
        if row:
            yield row


def _averages(looks: Sequence[Look], over: int = 10) -> Iterator[dict[str, float]]:
    """Means of some looks in a row: one alone may catch a moment."""
    rows = list(_loads(looks))
    for begin in range(0, len(rows), over):
        part = rows[begin : begin + over]
        names = set.intersection(*(set(row) for row in part))
        if names:
            yield {name: sum(row[name] for row in part) / len(part) for name in names}


def violations(run: Run) -> int:
    """Looks at which a host held, or had on its disk, a block that it may not."""
    return sum(
        any(host not in run.permitted[block] for kind in (look.loaded, look.stored) for host in kind
            for block in kind[host])
        for look in run.looks
    )  # fmt: skip
