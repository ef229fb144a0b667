"""The solver against brute force: small random fleets, chains, pins, rates and weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scale import SCALE
from test_cost import MIB, chain_of, host_of, mesh, posed

from edgesplit.errors import InfeasibleError
from edgesplit.fleet import LinkProfile
from edgesplit.plan import Objective, Pin, Workload
from edgesplit.revision.baseline import greedy, single_host
from edgesplit.revision.cost import evaluate, held, price, violations
from edgesplit.revision.exact import optimise
from edgesplit.revision.problem import Problem
from edgesplit.revision.segments import cut
from edgesplit.revision.solver import Solution, Status, solve
from edgesplit.split import Split, split_from_placement

ms = st.integers(0, 20).map(lambda number: number / 1000)
MOST_LAYERS = {2: 5, 3: 5, 4: 4}  # brute force visits hosts ** layers splits


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    return Workload(
        prompt_tokens=draw(st.sampled_from([7, 10, 35])),
        new_tokens=draw(st.sampled_from([1, 2, 30])),
        max_context=100,
        concurrency=draw(st.sampled_from([1, 1, 2, 5])),
        rate=draw(st.sampled_from([0.0, 0.0, 0.3, 3.0])),
    )


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    term = st.sampled_from([0.0, 1.0, 3.0])
    goal = draw(st.sampled_from(["weighted", "weighted", "weighted", "latency", "throughput"]))
    if goal != "weighted":
        return Objective(goal=goal)
    return Objective(latency=draw(term), utilization=draw(term), privacy=draw(term))


@st.composite
def meshes(draw: st.DrawFn, names: str, like: bool) -> dict[tuple[str, str], LinkProfile]:
    """`like`: hosts lie on a line and all links are equally wide, so that no relay ever pays."""
    if like:
        at = {name: draw(st.integers(0, 10)) for name in names}
        return {
            pair: LinkProfile(rtt=(1 + abs(at[pair[0]] - at[pair[1]])) / 1000, bandwidth=1e5) for pair in mesh(names)
        }
    widths = st.sampled_from([1e4, 1e5, 1e6])
    links = {pair: LinkProfile(rtt=draw(ms), bandwidth=draw(widths)) for pair in mesh(names)}
    absent = draw(st.sets(st.sampled_from(sorted(links)), max_size=2))
    return {pair: link for pair, link in links.items() if pair not in absent}


@st.composite
def runs(draw: st.DrawFn, layers: int) -> tuple[tuple[int, int], ...]:
    """At most one run of blocks that stay together."""
    first, last = draw(st.integers(1, layers)), draw(st.integers(1, layers))
    return ((first, last),) if draw(st.booleans()) and first < last else ()


@st.composite
def problems(draw: st.DrawFn, like: bool = False, most_hosts: int = 4) -> Problem:
    """`like`: identical layers, and links over which no relay pays."""
    names = "abcd"[: draw(st.integers(2, most_hosts))]
    layers = draw(st.integers(1, MOST_LAYERS[len(names)] - (most_hosts < 4)))
    weight = st.integers(1, 3)
    weights = [draw(weight)] * layers if like else [draw(weight) for _ in range(layers)]
    hosts = {
        name: host_of(
            draw(ms),
            draw(st.integers(1, 14)),
            overhead=draw(ms),
            head=draw(ms),
            prefill=draw(ms),
            share=draw(st.sampled_from([1.0, 1.0, 0.5])),
            row=draw(st.none() | ms),
        )
        for name in names
    }
    pins = draw(
        st.lists(
            st.builds(
                lambda layer, to: Pin(blocks=(f"layers.{layer}",), to=to),
                st.integers(0, layers - 1),
                st.sampled_from(["trusted", *names]),
            ),
            max_size=2,
            unique_by=lambda pin: pin.blocks,
        )
    )
    rules = {
        "max_stages": draw(st.sampled_from([None, None, 3, 4])),
        "one_stage_per_untrusted_host": draw(st.booleans()),
        "objective": draw(objectives()),
    }
    sizes = {"kv": draw(st.sampled_from([0, 5000])), "common": draw(st.integers(0, 1))}
    glued = () if like else draw(runs(layers))
    pinned = [int(pin.blocks[0].removeprefix("layers.")) + 1 for pin in pins]
    if sum(first <= block <= last for first, last in glued for block in pinned) > 1:
        glued = ()  # two pins on blocks that stay together may leave no host, which `pose` refuses
    return posed(
        chain_of(weights, embedding=1, head=1, glued=glued, **sizes),
        hosts,
        draw(meshes(names, like)),
        trusted=("a", *draw(st.sets(st.sampled_from(names)))),
        pins=tuple(pins),
        workload=draw(workloads()),
        **rules,
    )


def every_split(problem: Problem) -> Iterator[Split]:
    free = [list(problem.hosts)] * (len(problem.blocks) - 2)
    for hosts in product(*free):
        yield split_from_placement((problem.entry, *hosts, problem.entry))


def best_phi(splits: Iterator[Split], problem: Problem) -> float | None:
    return min((evaluate(split, problem).phi for split in splits if not violations(split, problem)), default=None)


def solved(problem: Problem, *, fixed: Split | None = None, merge: bool = True) -> Solution | None:
    try:
        return solve(problem, fixed_boundaries=fixed, merge=merge)
    except InfeasibleError:
        return None


def phi(solution: Solution | None) -> float | None:
    return None if solution is None else solution.costs.phi


def near(value: float | None) -> object:
    return None if value is None else pytest.approx(value, rel=1e-7, abs=1e-9)


@settings(max_examples=35 * SCALE, deadline=None)
@given(problems())
def test_block_by_block_it_equals_brute_force(problem: Problem) -> None:
    assert phi(solved(problem, merge=False)) == near(best_phi(every_split(problem), problem))


@settings(max_examples=35 * SCALE, deadline=None)
@given(problems(like=True))
def test_counting_layers_loses_nothing_where_no_relay_pays(problem: Problem) -> None:
    solution = solved(problem)
    assert phi(solution) == near(best_phi(every_split(problem), problem))
    assert solution is None or solution.status is Status.OPTIMAL


@settings(max_examples=20 * SCALE, deadline=None)
@given(problems())
def test_counting_layers_bounds_every_split(problem: Problem) -> None:
    counted, named = solved(problem), solved(problem, merge=False)
    assert (counted is None) == (named is None)
    if counted is not None and named is not None:
        assert counted.costs.phi >= named.costs.phi * (1 - 1e-7)
        assert counted.complete
        assert counted.bound <= named.costs.phi * (1 + 1e-7) + 1e-9
        if counted.status is Status.OPTIMAL:
            assert counted.costs.phi == pytest.approx(named.costs.phi, rel=2e-6, abs=1e-9)


@settings(max_examples=35 * SCALE, deadline=None)
@given(problems(), st.data())
def test_whole_stages_equal_brute_force_over_their_hosts(problem: Problem, data: st.DataObject) -> None:
    names, inner = list(problem.hosts), len(problem.blocks) - 2
    running = split_from_placement(("a", *(data.draw(st.sampled_from(names)) for _ in range(inner)), "a"))
    widths = [len(stage) for stage in running.stages]

    def splits() -> Iterator[Split]:
        for hosts in product(*([["a"]] if len(widths) == 1 else [["a"], *[names] * (len(widths) - 2), ["a"]])):
            yield split_from_placement(host for host, width in zip(hosts, widths, strict=True) for _ in range(width))

    assert phi(solved(problem, fixed=running)) == near(best_phi(splits(), problem))


@settings(max_examples=200 * SCALE, deadline=None)
@given(st.booleans().flatmap(lambda like: problems(like, most_hosts=3)), st.booleans(), st.data())
def test_pins_hold_and_the_program_means_what_the_costs_say(problem: Problem, merge: bool, data: st.DataObject) -> None:
    problem = problem.batched(data.draw(st.sampled_from(problem.batches)))
    optimum = optimise(problem, merge=merge)
    if optimum is None:
        return
    split = split_from_placement(optimum.placement)
    for block, host in enumerate(split.placement()):
        assert host in problem.legal[block]
    assert split.placement()[0] == split.placement()[-1] == "a"
    assert violations(split, problem) == []
    costs = price(split, problem).phi
    assert optimum.objective == pytest.approx(costs, rel=1e-9, abs=1e-12)
    assert optimum.bound <= costs * (1 + 1e-7) + 1e-9


@settings(max_examples=15 * SCALE, deadline=None)
@given(problems())
def test_equal_problems_have_equal_answers(problem: Problem) -> None:
    assert solved(problem) == solved(problem)


def test_the_order_of_the_hosts_does_not_matter() -> None:
    hosts = {name: host_of(0.01, 5, overhead=0.001) for name in "abcd"}
    turned = dict(reversed(hosts.items()))
    chain, links = chain_of([2] * 5, embedding=1, head=1), mesh("abcd")
    assert solve(posed(chain, hosts, links)) == solve(posed(chain, turned, dict(reversed(links.items()))))


@settings(max_examples=20 * SCALE, deadline=None)
@given(problems())
def test_the_rules_never_beat_the_optimum(problem: Problem) -> None:
    for split in (greedy(problem), single_host(problem)):
        if split is not None:
            assert violations(split, problem) == []
            best = solved(problem, merge=False)
            assert best is not None
            assert evaluate(split, problem).phi >= best.costs.phi * (1 - 1e-7) - 1e-9


def test_blocks_that_share_a_cache_stay_together() -> None:
    """Two layers fit on each of b and c; a run of three fits nowhere but on a."""
    hosts = {"a": host_of(0.02, 9), "b": host_of(0.001, 5), "c": host_of(0.001, 5)}
    chain = chain_of([2] * 6, embedding=1, head=1)
    free = solve(posed(chain, hosts, mesh("abc"))).split
    assert len({free.placement()[block] for block in (3, 4, 5)}) == 2
    glued = posed(chain.model_copy(update={"glued": ((3, 5),)}), hosts, mesh("abc"))
    assert violations(free, glued) == ["layers.2-4 share a cache and may not be cut apart"]
    for merge in (True, False):
        assert {solve(glued, merge=merge).split.placement()[block] for block in (3, 4, 5)} == {"a"}
    with pytest.raises(InfeasibleError):
        solve(replace(glued, hosts={**glued.hosts, "a": replace(glued.hosts["a"], cap=5 * MIB)}))


def test_layers_of_two_kinds_are_not_counted_as_one() -> None:
    """Alternating full and sliding attention: the cheap layers, not just any, go where room is short."""
    chain = chain_of([2] * 6, embedding=1, head=1, kv=40_000)
    slide = {"kv_tokens_max": 10}
    blocks = [block.model_copy(update=slide) if number % 2 else block for number, block in enumerate(chain.blocks)]
    chain = chain.model_copy(update={"blocks": tuple(blocks)})
    hosts = {"a": host_of(0.02, 12), "b": host_of(0.001, 14)}
    problem = posed(chain, hosts, mesh("ab"))
    assert len(cut(problem, None, merge=True)) == 8
    assert phi(solved(problem)) == near(best_phi(every_split(problem), problem))


FAST = {"a": host_of(0.02, 20), "b": host_of(0.001, 20)}
SIX = chain_of([2] * 6, embedding=1, head=1)


def test_one_host_is_an_answer_when_the_link_is_slow() -> None:
    assert len(solve(posed(SIX, FAST, mesh("ab", rtt=1.0))).split.stages) == 1
    assert [stage.host for stage in solve(posed(SIX, FAST, mesh("ab"))).split.stages] == ["a", "b", "a"]


def test_stages_that_meet_on_one_host_become_one() -> None:
    problem = posed(SIX, {**FAST, "c": host_of(0.01, 20)}, mesh("abc"))
    running = split_from_placement("aabbccca")
    assert [stage.last for stage in solve(problem, fixed_boundaries=running).split.stages] == [1, 6, 7]


def test_a_star_of_links_needs_the_entry_between_all_others() -> None:
    hosts = {"a": host_of(0.01, 8), **{name: host_of(0.01, 3) for name in "bcd"}}
    star = {pair: link for pair, link in mesh("abcd").items() if "a" in pair}
    solution = solve(posed(chain_of([2] * 5, embedding=1, head=1), hosts, star))
    assert solution.status is Status.OPTIMAL
    assert len(solution.split.stages) == 7


@pytest.mark.parametrize(
    ("missing", "ring"),
    [(("c", "a"), ["a", "c", "b", "a"]), (("b", "a"), ["a", "b", "c", "a"])],
    ids=["deep layers are exposed", "or, where the links ask for it, those between"],
)
def test_a_hundred_layers_stay_private(missing: tuple[str, str], ring: list[str]) -> None:
    """Layers are counted, yet each is weighed by its depth."""
    hosts = {"a": host_of(0.02, 100), "b": host_of(0.001, 300), "c": host_of(0.001, 20)}
    links = {pair: link for pair, link in mesh("abc").items() if pair != missing}
    private = Objective(latency=1.0, privacy=1000.0)
    problem = posed(chain_of([2] * 100), hosts, links, trusted=("a", "c"), objective=private)
    solution, optimum = solve(problem), optimise(problem)
    assert [stage.host for stage in solution.split.stages] == ring
    assert optimum is not None
    assert optimum.objective == pytest.approx(solution.costs.phi, rel=1e-9)


def test_memory_is_exact_to_the_byte() -> None:
    problem = posed(SIX, FAST, {}, caps={"a": 14 * MIB + 80_000})
    assert solve(problem).split.hosts == ("a",)
    short = replace(problem, hosts={"a": replace(problem.hosts["a"], cap=14 * MIB + 79_999)})
    with pytest.raises(InfeasibleError):
        solve(short)


@settings(max_examples=60 * SCALE, deadline=None)
@given(problems(most_hosts=3), st.integers(0, 1), st.data())
def test_a_budget_of_gigabytes_is_exact_to_the_byte(problem: Problem, short: int, data: st.DataObject) -> None:
    """As much as the best split needs on one of its hosts, or a byte less, where blocks differ by single bytes."""
    many = 2048
    odd = [data.draw(st.integers(0, 3)) for _ in problem.blocks]
    large = {
        name: replace(host, cap=host.budget * many + 9, available=host.available * many + host.runtime * many)
        for name, host in problem.hosts.items()
    }
    memory = tuple(many * size + more for size, more in zip(problem.memory, odd, strict=True))
    problem = replace(problem, memory=memory, hosts=large)
    fits = [split for split in every_split(problem) if not violations(split, problem)]
    if not fits:
        return
    best = min(fits, key=lambda split: evaluate(split, problem).phi)
    host = data.draw(st.sampled_from(best.hosts))
    tight = replace(problem.hosts[host], cap=held(host, best, problem) - short)
    problem = replace(problem, hosts={**problem.hosts, host: tight})
    least, found = best_phi(every_split(problem), problem), solved(problem)
    assert (found is None) == (least is None)
    if found is not None and least is not None:
        assert found.bound <= least * (1 + 1e-7) + 1e-9
        assert found.costs.phi >= least * (1 - 1e-7) - 1e-9
        if found.status is Status.OPTIMAL:
            assert found.costs.phi == near(least)
