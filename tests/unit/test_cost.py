"""Costs and limits of a split against numbers worked out by hand; and the small problems the revision's tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from edgesplit.errors import InfeasibleError, InputError
from edgesplit.fleet import HOP_SECONDS, Fleet, HostProfile, Learned, LinkProfile, StageTimes
from edgesplit.inventory import HostSpec, Inventory, SshTarget
from edgesplit.model.blocks import Block, Chain, Flops
from edgesplit.plan import ModelPlan, ModelSource, Objective, Pin, ServiceLevel, Workload
from edgesplit.revision.cost import Costs, evaluate, price, service_notes, violations
from edgesplit.revision.problem import Problem, pose
from edgesplit.split import split_from_placement

MIB = 2**20
HIDDEN = 1000  # bytes per token across a boundary


def chain_of(
    weights: Sequence[int], *, embedding: int = 0, head: int = 0, kv: int = 0, common: int = 0, **chain: Any
) -> Chain:
    """Layers of these weights, which a token uses all; all sizes in MiB, `kv` in bytes per token."""

    def block(name: str, kind: Any, weight: int, out: int) -> Block:
        cache = kv if kind == "layer" else 0
        return Block(
            name=name,
            kind=kind,
            weight_bytes=weight * MIB,
            kv_bytes_per_token=cache,
            state_bytes=0,
            flops_per_token=weight * MIB // 2,
            prefill=Flops(token=weight * MIB // 2),
            output_bytes_per_token=out,
        )

    layers = [block(f"layers.{number}", "layer", weight, HIDDEN) for number, weight in enumerate(weights)]
    return Chain(
        model="small",
        architecture="test",
        dtype="float32",
        blocks=(block("embedding", "embedding", embedding, HIDDEN), *layers, block("head", "head", head, 0)),
        common_bytes=common * MIB,
        max_context=None,
        checkpoint="0",
        **chain,
    )


def host_of(
    decode: float,
    memory: int,
    *,
    overhead: float = 0.0,
    head: float = 0.0,
    prefill: float = 0.0,
    share: float = 1.0,
    row: float | None = None,
) -> HostProfile:
    """Seconds; `memory` in MiB beside the runner's own. With a share of a core, its quota is one of 20 ms."""
    times = StageTimes(
        decode_layer=decode,
        decode_overhead=overhead,
        decode_row=row,
        prefill_layer=prefill or decode,
        prefill_overhead=overhead,
        head=head,
        chunk_tokens=10,
        context=100,
    )
    return HostProfile(
        cores=share,
        memory_total=2**40,
        memory_available=(memory + 50) * MIB,
        load=0.0,
        python="3.11",
        packages={},
        device="cpu",
        runtime_bytes=50 * MIB,
        times=times,
        period=0.02 if share < 1 else 0.0,
    )


def posed(
    chain: Chain,
    hosts: Mapping[str, HostProfile],
    links: Mapping[tuple[str, str], LinkProfile],
    *,
    trusted: Sequence[str] = ("a",),
    caps: Mapping[str, int] | None = None,
    problems: Mapping[str, str] | None = None,
    slowdown: Mapping[str, float] | None = None,
    learned: Learned | None = None,
    **plan: Any,
) -> Problem:
    """Entry a; prefill_chunk 10, prompt 10 tokens, 11 new tokens, unless the plan says otherwise."""
    names = [*hosts, *(name for name in problems or {} if name not in hosts)]
    caps = caps or {}
    inventory = Inventory(
        hosts={
            name: HostSpec(ssh=SshTarget(host=name), trusted=name in trusted, memory=caps.get(name)) for name in names
        }
    )
    fleet = Fleet(
        hosts=dict(hosts),
        links={name: {to: link for (source, to), link in links.items() if source == name} for name in hosts},
        problems=dict(problems or {}),
        slowdown=dict(slowdown or {}),
        learned=learned or Learned(),
        measured_at=0.0,
        plan="0",
    )
    wish = {"workload": Workload(prompt_tokens=10, new_tokens=11, max_context=100), "prefill_chunk": 10, **plan}
    return pose(chain, fleet, ModelPlan(name="p", model=ModelSource(source="m"), entry="a", **wish), inventory)


def mesh(names: Sequence[str], rtt: float = 0.004, bandwidth: float = 1e6) -> dict[tuple[str, str], LinkProfile]:
    link = LinkProfile(rtt=rtt, bandwidth=bandwidth)
    return {(source, target): link for source in names for target in names if source != target}


# Two hosts; a: 10 ms a layer, b: 1 ms. Layers weigh 4 MiB. A hop: 2 ms + 50 us + 1 ms per token.
A = host_of(0.010, 100, overhead=0.001, head=0.005, prefill=0.040)
B = host_of(0.001, 100, overhead=0.002, prefill=0.004)
FOUR = chain_of([4, 4, 4, 4], embedding=3, head=2, common=1)
SPLIT = split_from_placement("aaabba")  # embedding, two layers on a; two on b; head on a


def two(chain: Chain = FOUR, **options: Any) -> Problem:
    return posed(chain, {"a": A, "b": B}, mesh("ab"), **options)


def cost(split: Any = SPLIT, **options: Any) -> Costs:
    return evaluate(split, two(**options))


def test_a_token_passes_every_stage_and_hop() -> None:
    costs = cost()
    assert [stage.decode_seconds for stage in costs.stages] == pytest.approx([0.021, 0.004, 0.006])
    assert [hop.decode_seconds for hop in costs.hops] == pytest.approx([0.003 + HOP_SECONDS] * 2)
    assert costs.time_per_token_seconds == pytest.approx(0.031 + 0.006 + 2 * HOP_SECONDS)


def test_the_first_token_takes_one_chunk_and_the_head() -> None:
    costs = cost()
    assert [stage.chunk_seconds for stage in costs.stages] == pytest.approx([0.081, 0.010, 0.001])
    assert [hop.chunk_seconds for hop in costs.hops] == pytest.approx([0.012 + HOP_SECONDS] * 2)
    assert costs.time_to_first_token_seconds == pytest.approx(0.092 + 0.024 + 2 * HOP_SECONDS + 0.005)
    assert costs.latency_seconds == pytest.approx(costs.time_to_first_token_seconds + 10 * costs.time_per_token_seconds)


def test_further_chunks_follow_at_the_pace_of_the_busiest() -> None:
    long = Workload(prompt_tokens=30, new_tokens=11, max_context=100)
    # The busiest is a, with both of its stages: 0.082 s a chunk, and the two hops' links 10 ms.
    assert cost(workload=long).time_to_first_token_seconds == pytest.approx(
        cost().time_to_first_token_seconds + 2 * 0.082
    )


def test_a_slow_link_can_be_the_busiest() -> None:
    long = Workload(prompt_tokens=20, new_tokens=11, max_context=100, concurrency=3)
    problem = posed(FOUR, {"a": A, "b": B}, mesh("ab", bandwidth=1e4), workload=long, decode_batch=1)
    costs = evaluate(SPLIT, problem)
    assert costs.busiest == "a -> b"
    assert costs.busiest_seconds == pytest.approx(3 * (0.1 + HOP_SECONDS))
    one_chunk = 0.092 + 2 * (0.002 + HOP_SECONDS + 1.0) + 0.005
    under_way = 0.5 * (0.027 + 0.004)
    assert costs.time_to_first_token_seconds == pytest.approx(one_chunk + 1.0 + HOP_SECONDS + under_way)


def test_sequences_in_flight_wait_for_the_busiest_host() -> None:
    crowd = Workload(prompt_tokens=10, new_tokens=11, max_context=100, concurrency=4)
    costs = cost(workload=crowd, decode_batch=1)
    assert (costs.busiest, costs.batch) == ("a", 1)
    assert costs.busiest_seconds == pytest.approx(4 * 0.027)
    # and while it answers, the other three begin once each: a chunk on a, and a step of those that answer
    assert costs.time_per_token_seconds == pytest.approx(4 * 0.027 + 3 * (0.082 + 0.027) / 10)


def test_sequences_that_share_a_step_read_the_weights_once() -> None:
    """b alone computes: 5 ms for one sequence, 1 ms more for each further one, and half a millisecond of wire each."""
    crowd = Workload(prompt_tokens=10, new_tokens=11, max_context=100, concurrency=4)
    fast, slow = host_of(0.0, 100), host_of(0.005, 100, row=0.001)
    problem = posed(chain_of([4]), {"a": fast, "b": slow}, mesh("ab", bandwidth=2e6), workload=crowd)
    found = {batch: price(split_from_placement("aba"), problem.batched(batch)) for batch in problem.batches}
    assert {batch: costs.busiest_seconds for batch, costs in found.items()} == pytest.approx(
        {1: 4 * 0.005, 2: 2 * 0.006, 4: 0.008}
    )
    assert {batch: costs.path_seconds for batch, costs in found.items()} == pytest.approx(
        {batch: 0.004 + batch * 0.001 + 2 * HOP_SECONDS + batch * 0.001 + 0.004 for batch in (1, 2, 4)}
    )
    assert evaluate(split_from_placement("aba"), problem) == found[2]


def test_a_quota_is_felt_once_it_is_used_up() -> None:
    """Half a core, in periods of 20 ms: 10 ms at full speed, 20 ms of them in the long run."""
    half = {"a": host_of(0.010, 100, share=0.5)}
    alone = split_from_placement("aaa")
    (stage,) = evaluate(alone, posed(chain_of([4]), half, {})).stages
    assert stage.decode_seconds == pytest.approx(0.010)
    assert evaluate(alone, posed(chain_of([4]), half, {})).time_per_token_seconds == pytest.approx(0.020)
    (stage,) = evaluate(split_from_placement("aaaa"), posed(chain_of([4, 4]), half, {})).stages
    assert stage.decode_seconds == pytest.approx(0.040 - 0.010)


def test_of_several_groups_one_finds_the_quota_untouched() -> None:
    half = {"a": host_of(0.010, 100, share=0.5)}
    crowd = posed(chain_of([4]), half, {}, workload=Workload(prompt_tokens=8, new_tokens=9, concurrency=2))
    alone = split_from_placement("aaa")
    (stage,) = price(alone, crowd.batched(1)).stages
    assert stage.decode_seconds == pytest.approx((0.010 + 0.020) / 2)
    (stage,) = price(alone, crowd.batched(2)).stages
    assert stage.decode_seconds == price(alone, crowd.batched(2).batched(2)).stages[0].decode_seconds


def test_what_earlier_deployments_taught_is_in_the_times() -> None:
    learned = Learned(hosts={"b": 2.0}, links={"a": {"b": 0.001}}, entry=0.003)
    costs = cost(learned=learned)
    assert costs.stages[1].decode_seconds == pytest.approx(0.008)
    assert [hop.decode_seconds for hop in costs.hops] == pytest.approx([0.004 + HOP_SECONDS, 0.003 + HOP_SECONDS])
    assert costs.stages[2].decode_seconds == pytest.approx(0.006 + 0.003)


def test_a_prompt_that_fills_no_chunk_is_priced_by_its_tokens() -> None:
    short = Workload(prompt_tokens=5, new_tokens=11, max_context=100)
    assert cost(workload=short).stages[0].chunk_seconds == pytest.approx(0.041)


def test_slowdown_and_heavier_layers_take_longer() -> None:
    assert cost(slowdown={"b": 3.0}).stages[1].decode_seconds == pytest.approx(0.012)
    uneven = chain_of([4, 4, 4, 8])
    assert evaluate(SPLIT, two(uneven)).stages[1].decode_seconds == pytest.approx(0.002 + 0.001 + 0.002)


def test_load_is_the_busiest_hosts_share() -> None:
    busy_a = 0.082 + 0.005 + 10 * 0.027
    assert cost(workload=Workload(prompt_tokens=10, new_tokens=11, max_context=100, rate=2.0)).utilization == (
        pytest.approx(2 * busy_a)
    )
    fastest_alone = (0.002 + 4 * 0.004) + 10 * (0.002 + 4 * 0.001)  # b
    assert cost().utilization == pytest.approx(busy_a / fastest_alone)


def test_privacy_weighs_what_is_near_the_input() -> None:
    assert cost().privacy == pytest.approx((0.5 + 0.25) / 2.5)
    assert cost(split_from_placement("abbaaa")).privacy == pytest.approx((1 + 0.75) / 2.5)
    assert cost(trusted=("a", "b")).privacy == 0


def test_phi_weighs_the_three() -> None:
    costs = cost(objective=Objective(latency=2.0, utilization=3.0, privacy=5.0))
    assert costs.phi == pytest.approx(2 * costs.latency_seconds + 3 * costs.utilization + 5 * costs.privacy)


def test_memory_is_weights_caches_and_workspace() -> None:
    chain = chain_of([4, 4, 4, 4], embedding=3, head=2, kv=1000, common=1)
    crowd = Workload(prompt_tokens=10, new_tokens=11, max_context=100, concurrency=2)
    costs = evaluate(SPLIT, two(chain, workload=crowd))
    cache, workspace = 1000 * 100 * 2, 10 * HIDDEN * 8
    assert costs.stages[1].memory_bytes == 9 * MIB + 2 * cache
    a, b = costs.hosts
    assert (a.memory_bytes, a.budget_bytes) == ((3 + 8 + 2 + 2) * MIB + 2 * cache + workspace, 100 * MIB)
    assert b.memory_bytes == 9 * MIB + 2 * cache + workspace


def test_costs_are_json() -> None:
    costs = cost()
    assert Costs.model_validate_json(costs.to_json()) == costs


def test_a_split_within_its_limits_breaks_none() -> None:
    assert violations(SPLIT, two()) == []


def test_violations_name_host_number_and_limit() -> None:
    tight = two(caps={"b": 8 * MIB}, pins=(Pin(blocks=("layers.2-3",), to="a"),))
    pins, memory = violations(SPLIT, tight)
    assert pins == "layers.2-3 may not be on b"
    assert memory == "b: its blocks need 9.08 MiB, it allows 8 MiB"


def test_load_may_not_pass_one() -> None:
    rush = Workload(prompt_tokens=10, new_tokens=11, max_context=100, rate=3.0)
    (load,) = violations(SPLIT, two(workload=rush))
    assert load == "a: a request keeps it busy for 357 ms, so 3 requests per second load it to 107%"


def test_a_lost_host_and_a_lost_link_are_violations() -> None:
    lost = posed(FOUR, {"a": A}, {}, problems={"b": "no answer"})
    assert violations(SPLIT, lost) == ["b holds layers.2-3 but cannot be used: no answer"]
    with pytest.raises(InfeasibleError, match="no answer"):
        evaluate(SPLIT, lost)
    one_way = posed(FOUR, {"a": A, "b": B}, {("a", "b"): LinkProfile(rtt=0.1, bandwidth=1.0)})
    assert violations(SPLIT, one_way) == ["no link from b to a"]
    assert violations(split_from_placement("aba"), two()) == ["the split covers 3 blocks, the model has 6"]


def test_missed_service_levels_are_only_notes() -> None:
    problem = two(service=ServiceLevel(time_to_first_token=10.0, time_per_token=0.01))
    assert violations(SPLIT, problem) == []
    assert service_notes(evaluate(SPLIT, problem), problem) == ["time per token is 37.1 ms, over the wished 10 ms"]


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        (
            Pin(blocks=("layers.4",)),
            "no block 'layers.4' in this model; it has embedding, layers.0 to layers.3 and head",
        ),
        (Pin(blocks=("layers.0",), to="c"), "no host c in the inventory"),
        (Pin(blocks=("embedding",), to="b"), "embedding cannot be on b: another pin forbids it"),
    ],
)
def test_a_pin_must_name_what_is_there(pin: Pin, message: str) -> None:
    with pytest.raises(InputError, match=message):
        two(pins=(pin,))


def test_the_entry_must_be_known_trusted_and_usable() -> None:
    with pytest.raises(InputError, match="a is not trusted"):
        two(trusted=())
    with pytest.raises(InputError, match="no host a in the inventory"):
        posed(FOUR, {"b": B}, {})
    with pytest.raises(InfeasibleError, match="entry host a cannot be used: no python3"):
        posed(FOUR, {"b": B}, {}, problems={"a": "no python3"})
