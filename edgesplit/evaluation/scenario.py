"""A SCENARIO: a lab, a plan, steady requests, and what happens when. A scenario file (YAML) -> Scenario.

Must not know: how an event is carried out, what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from edgesplit.document import load
from edgesplit.errors import InputError
from edgesplit.lab import scenario as labs
from edgesplit.lab.scenario import CONTROLLER, LabHost, LinkSpec
from edgesplit.plan import ModelPlan, load_plan
from edgesplit.values import Time, Value

HINT = "the annotated plans/evaluation/emergency.yaml shows every key"
SETTINGS = {"link": ("rate", "delay", "loss"), "host": ("cores", "memory")}
PLAIN = ("kill", "start", "freeze", "unfreeze", "unplug", "plug")  # what is done to one host, without settings
EXAMPLES = '"kill van", "link van mast rate 10Mbit/s delay 20ms loss 1%", "host van cores 0.1", "demand 3"'

Positive = Annotated[int, Field(ge=1)]
Span = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]  # from, to; both included


class Act(Value):
    """One thing that is done: `link` and `host` change the settings that are named; `demand` the requests per second
    (or the clients), which is in `settings` too. `text`: as it was written."""

    verb: str
    hosts: tuple[str, ...]
    settings: dict[str, str] = Field(default_factory=dict)
    text: str = ""


def parse_act(text: object) -> Act:
    """Raises ValueError."""
    words = text.split() if isinstance(text, str) else []
    match words:
        case [verb, host] if verb in PLAIN:
            return Act(verb=verb, hosts=(host,), text=" ".join(words))
        case ["demand", amount]:
            _number(amount)
            return Act(verb="demand", hosts=(), settings={"amount": amount}, text=" ".join(words))
        case ["link", a, b, *rest]:
            return _setting("link", (a, b), rest, " ".join(words))
        case ["host", host, *rest]:
            return _setting("host", (host,), rest, " ".join(words))
    raise ValueError(f"expected something that is done, such as {EXAMPLES}; one of {', '.join(PLAIN)} takes one host")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise ValueError(f"demand {text}: expected a number from 0 to 1000")
    return value


def _setting(verb: str, hosts: tuple[str, ...], rest: list[str], text: str) -> Act:
    settings = dict(zip(rest[::2], rest[1::2], strict=False))
    known = SETTINGS[verb]
    if not rest or len(rest) % 2 or 2 * len(settings) != len(rest) or set(settings) - set(known):
        raise ValueError(f"{text!r}: expected `{verb} {' '.join('AB'[: len(hosts)])}`, then {' or '.join(known)}, "
                         "each with a value")  # fmt: skip
    kind: Any = LinkSpec if verb == "link" else LabHost
    values: dict[str, Any] = {**settings}
    if "cores" in values:
        values["cores"] = _cores(values["cores"])
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{text!r}: {labs.mistakes(error)}") from error
    return Act(verb=verb, hosts=hosts, settings=settings, text=text)


def _cores(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"cores {text}: expected a number such as 0.25") from None


class Happening(Value):
    """What is done at one moment; `do` may be a list."""

    at: Time  # since the first request could come
    do: Annotated[tuple[Act, ...], Field(min_length=1)]

    @field_validator("do", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return tuple(parse_act(each) for each in (value if isinstance(value, list | tuple) else [value]))


class Demand(Value):
    """Requests at random moments, `rate` per second, whatever becomes of those before (an open loop); or `clients` that
    each ask again as soon as they are answered. Lengths are drawn evenly; a client gives up after `patience`."""

    rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    clients: Annotated[int, Field(ge=1, le=256)] | None = None
    prompt_tokens: Span = (16, 32)
    new_tokens: Span = (16, 32)
    patience: Time = 20.0

    @model_validator(mode="after")
    def _one(self) -> Demand:
        if (self.rate is None) == (self.clients is None):
            raise ValueError("expected either `rate` or `clients`")
        for name in ("prompt_tokens", "new_tokens"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected the smaller number first, not [{low}, {high}]")
        return self

    @property
    def amount(self) -> float:
        return self.rate or float(self.clients or 0)


class Shape(Value):
    """A llama of random weights."""

    hidden: Positive
    layers: Positive
    heads: Positive
    intermediate: Positive
    vocabulary: Annotated[int, Field(ge=16)] = 1024

    @model_validator(mode="after")
    def _even(self) -> Shape:
        if self.hidden % (2 * self.heads):  # a head's dimensions are turned two by two
            raise ValueError(f"hidden: expected a multiple of twice the {self.heads} heads, not {self.hidden}")
        return self


class Scenario(Value):
    """`lab` and `plan` are files, relative to this one. The service level is the plan's `service`."""

    title: str
    about: str = ""
    lab: str
    plan: str
    checkpoint: Shape | None = None  # made where the folder that the plan names as its model is absent
    duration: Annotated[Time, Field(ge=5, le=3600)]
    seed: int = 1
    demand: Demand
    events: tuple[Happening, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Scenario:
        times = [event.at for event in self.events]
        if times != sorted(times):
            raise ValueError("events: expected the earlier ones first")
        if times and times[-1] >= self.duration:
            raise ValueError(f"events: one is at {times[-1]:g} s, but the scenario ends at {self.duration:g} s")
        return self


class Stage(Value):
    """A scenario with the files it names, read and fitting each other."""

    name: str
    scenario: Scenario
    lab: labs.Scenario
    plan: ModelPlan
    plan_file: str

    @property
    def folder(self) -> Path:
        return Path(self.plan_file).parent


def load_stage(path: Path) -> Stage:
    """Raises InputError listing every mistake."""
    try:
        scenario = load(path, Scenario)
    except InputError as error:
        raise InputError(error.message, HINT if "example.yaml" in error.hint else error.hint) from error
    plan_file = path.parent / scenario.plan
    stage = Stage(
        name=path.stem,
        scenario=scenario,
        lab=labs.load_scenario(path.parent / scenario.lab),
        plan=load_plan(plan_file),
        plan_file=str(plan_file),
    )
    if wrong := list(mistakes(stage)):
        raise InputError("\n".join(f"{path}: {each}" for each in wrong), HINT)
    return stage


def mistakes(stage: Stage) -> Iterator[str]:
    """Where scenario, lab and plan do not fit."""
    plan, demand = stage.plan, stage.scenario.demand
    if plan.entry not in stage.lab.hosts:
        yield f"plan: its entry {plan.entry} is no host of the lab; it has {', '.join(stage.lab.hosts)}"
    if plan.service.time_to_first_token is None or plan.service.time_per_token is None:
        yield "plan: `service` must say time_to_first_token and time_per_token: requests are judged by them"
    longest = demand.prompt_tokens[1] + demand.new_tokens[1]
    if longest > plan.workload.max_context:
        yield f"demand: a request may have {longest} tokens, over the plan's max_context {plan.workload.max_context}"
    yield from _events(stage)


def _events(stage: Stage) -> Iterator[str]:
    off: set[str] = set()
    for number, event in enumerate(stage.scenario.events):
        for act in event.do:
            where = f"events[{number}]: {act.text!r}"
            for name in act.hosts:
                if name not in stage.lab.hosts and not (act.verb == "link" and name == CONTROLLER):
                    yield f"{where}: there is no host {name}; the lab has {', '.join(stage.lab.hosts)}"
            if act.verb == "link" and act.hosts[0] == act.hosts[1]:
                yield f"{where}: a link needs two ends"
            if act.verb == "start" and act.hosts[0] not in off:
                yield f"{where}: it was not killed before"
            if act.verb in ("kill", "freeze", "unfreeze", "unplug", "plug") and act.hosts[0] in off:
                yield f"{where}: it is off then"
            off |= {act.hosts[0]} if act.verb == "kill" else set()
            off -= {act.hosts[0]} if act.verb == "start" else set()
