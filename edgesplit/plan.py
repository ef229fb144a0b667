"""THE WISH: what the user wants. A plan file (YAML) -> ModelPlan.

Must not know: the hosts (but by name), nor the model's insides (but by block name).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgesplit.document import load
from edgesplit.values import Name, Place, Port, Time, Value

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class ModelSource(Value):
    """A folder (relative to the plan) or a hub id, with an optional revision.

    `trust_remote_code`: the checkpoint's own code may run, here and on every host.
    """

    source: str
    revision: str | None = None
    trust_remote_code: bool = False


class Api(Value):
    """Where the entry host serves the OpenAI-compatible API: on loopback unless told otherwise."""

    address: Place = "127.0.0.1"
    port: Port = 8080
    deadline: Time | None = None  # of one request; None: as long as it likes


class Workload(Value):
    """The requests the split is made for (the paper's r with workload w)."""

    prompt_tokens: Positive = 128
    new_tokens: Positive = 128
    max_context: Positive = 1024
    concurrency: Positive = 1
    rate: Annotated[float, Field(ge=0)] = 0.0  # requests per second; 0: no load constraint

    @model_validator(mode="after")
    def _fits(self) -> Workload:
        if self.prompt_tokens + self.new_tokens > self.max_context:
            raise ValueError(
                f"prompt_tokens + new_tokens = {self.prompt_tokens + self.new_tokens} exceed max_context "
                f"= {self.max_context}"
            )
        return self


class Pin(Value):
    """These blocks only on trusted hosts (`to: trusted`), or only on the named host."""

    blocks: Annotated[tuple[str, ...], Field(min_length=1)]  # embedding, head, layers.3, layers.0-4
    to: str = "trusted"


class Objective(Value):
    """What the split of least Phi is best at. `weighted`: the paper's Phi = alpha L + beta U + gamma P (eq. 3) with the
    weights below. `latency`: Phi is the seconds of a request that is alone. `throughput`: Phi is the least seconds from
    one answer to the next, `workload.concurrency` requests at a time.

    L: seconds per request; U: the busiest host's load (0..1); P: depth-weighted share of blocks on untrusted hosts.
    """

    goal: Literal["weighted", "latency", "throughput"] = "weighted"
    latency: Weight = 1.0
    utilization: Weight = 0.0
    privacy: Weight = 0.0

    @model_validator(mode="after")
    def _one_way(self) -> Objective:
        weights = sorted(self.model_fields_set - {"goal"})
        if self.goal != "weighted" and weights:
            raise ValueError(f"goal {self.goal} has no weights, but {', '.join(weights)} is given")
        return self


class ServiceLevel(Value):
    """What a request may take; None: no limit."""

    time_to_first_token: Time | None = None
    time_per_token: Time | None = None


class WatchPolicy(Value):
    """When `edgesplit watch` thinks again."""

    interval: Annotated[Time, Field(ge=0.1)] = 2.0  # between two readings of a host
    host_timeout: Time = 6.0  # a host not heard of for so long is not counted on
    slowdown: Annotated[float, Field(gt=1)] = 1.5  # measured over profiled compute time
    memory: Fraction = 0.95  # used share of what a host allows
    patience: Positive = 3  # consecutive readings over a threshold before it counts
    cooldown: Time = 30.0  # after a move; the loss of a host does not wait
    min_gain: Fraction = 0.1  # share of Phi a move must win, what moving costs subtracted
    standby: Fraction = 0.5  # of a host's free disk, for weights that likely next moves need; 0: none are sent ahead
    rotate: Time = 86400.0  # age of the ring's keys at which it gets others; 0: only with every move
    horizon: Annotated[Time, Field(gt=0)] = 600.0  # for which a gain is counted on, against what moving costs
    widen: Annotated[int, Field(ge=1, le=64)] = 8  # times `concurrency` that are served where more ask; 1: never more

    @model_validator(mode="after")
    def _heard(self) -> WatchPolicy:
        if self.host_timeout <= self.interval:
            raise ValueError(
                f"host_timeout {self.host_timeout:g} s is not above interval {self.interval:g} s, "
                "in which a host is heard of once"
            )
        return self


class ModelPlan(Value):
    """One model to be served. `name` names the deployment on the hosts."""

    name: Name
    inventory: str | None = None  # relative to the plan; -i overrides it
    model: ModelSource
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["int8", "int4"] | None = None  # of the matrices of layers and head; the rest stays `dtype`
    entry: Name
    api: Api = Api()
    workload: Workload = Workload()
    prefill_chunk: Positive = 256  # tokens of a prompt that travel together
    decode_batch: Annotated[int, Field(ge=1, le=256)] = 8  # sequences that share a forward, at most
    pins: tuple[Pin, ...] = ()
    place: dict[str, Name] = Field(default_factory=dict)  # blocks, named as in a pin -> the host that must hold them
    avoid: tuple[Name, ...] = ()  # hosts that hold nothing
    max_stages: Positive | None = None
    one_stage_per_untrusted_host: bool = False  # so that each sees one stretch of the chain only
    objective: Objective = Objective()
    service: ServiceLevel = ServiceLevel()
    watch: WatchPolicy = WatchPolicy()

    @property
    def precision(self) -> str:
        """What it is called for short: a quantised one by its matrices."""
        return self.quantization or self.dtype

    @field_validator("model", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("objective", mode="before")
    @classmethod
    def _goal(cls, value: Any) -> Any:
        return {"goal": value} if isinstance(value, str) else value


def load_plan(path: Path) -> ModelPlan:
    """Raises InputError listing every mistake with file, line and key."""
    return load(path, ModelPlan)
