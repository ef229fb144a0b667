"""What `plan` found out, as tables: titles, columns and cells, the same for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesplit.cli.report import Report
from edgesplit.revision.comparison import Comparison
from edgesplit.revision.cost import Costs
from edgesplit.revision.explain import signed_time, times
from edgesplit.revision.problem import Problem
from edgesplit.split import Split
from edgesplit.units import format_rate, format_size, format_time

if TYPE_CHECKING:  # it imports torch
    from edgesplit.model.audit import Audit

NOTHING = 1e-9  # seconds that are the rounding of sums


@dataclass(frozen=True)
class Shown:
    """A column of numbers is called ">name"."""

    title: str
    columns: Sequence[str]
    rows: Sequence[list[str]]
    note: str = ""


def stages(report: Report) -> Shown:
    costs, problem = report.solution.costs, report.problem
    tokens, hops = problem.generates, dict(enumerate(costs.hops))
    rows = []
    for number, stage in enumerate(costs.stages):
        hop = hops.get(number)
        rows.append(
            [
                str(number),
                stage.host,
                problem.name(*range(stage.first, stage.last + 1)),
                "yes" if stage.host in problem.trusted else "no",
                *([format_time(stage.decode_seconds), format_time(hop.decode_seconds) if hop else ""] * tokens),
                format_time(stage.chunk_seconds),
                format_time(hop.chunk_seconds) if hop else "",
            ]
        )
    per = [">token", ">hop", ">chunk", ">hop"] if tokens else [">text", ">hop"]
    what = "per token and per chunk of the prompt" if tokens else "per text"
    note = f"Times {what}: of the stage, and of the hop to the next one."
    return Shown("Split", [">#", "host", "blocks", "trusted", *per], rows, note)


def hosts(report: Report) -> Shown:
    """Without a rate there is no load, only the busy time of a host against that of the fastest alone."""
    rate = report.problem.workload.rate > 0
    rows = [
        [host.host, format_size(host.memory_bytes), format_size(host.budget_bytes), *([f"{host.load:.0%}"] * rate)]
        for host in report.solution.costs.hosts
    ]
    return Shown("Hosts", ["host", ">memory", ">allowed", *([">load"] * rate)], rows)


def phi(report: Report) -> Shown:
    solution, wish = report.solution, report.problem.objective
    costs = solution.costs
    terms: tuple[tuple[str, str, float, float], ...] = (
        ("latency L", "seconds per request", costs.latency_seconds, wish.latency),
        ("utilization U", "of the busiest host", costs.utilization, wish.utilization),
        ("privacy P", "by depth, untrusted", costs.privacy, wish.privacy),
    )
    if wish.goal != "weighted":
        terms = ((wish.goal, "seconds alone" if wish.goal == "latency" else "seconds per answer", costs.phi, 1.0),)
    rows = [
        [
            name,
            what,
            f"{value:.4g}",
            f"{weight:g}",
            f"{value * weight:.4g}",
            f"{value * weight / costs.phi:.0%}" if costs.phi > 0 else "",
        ]
        for name, what, value, weight in terms
    ]
    waits = ", ".join(f"{format_time(seconds)} {what}" for what, seconds in times(costs, report.problem).items())
    title = f"Phi {costs.phi:.4g}, {solution.status.lower()}, gap {solution.gap:.2%}"
    return Shown(title, ["term", "", ">value", ">weight", ">cost", ">share"], rows, f"Predicted: {waits}.")


def rivals(report: Report) -> Shown:
    costs, problem = report.solution.costs, report.problem
    rows = [["the best", in_short(report.solution.split), *_figures(costs, problem), ""]]
    for rival in report.rivals:
        if rival.costs is None or rival.split is None:
            rows.append([rival.rule, rival.why] + [""] * (len(rows[0]) - 2))
        else:
            more = f"{rival.costs.phi / costs.phi - 1:+.0%}" if costs.phi > 0 else ""
            rows.append([rival.rule, in_short(rival.split), *_figures(rival.costs, problem), more])
    waits = [f">{what.removeprefix('to the ')}" for what in times(costs, problem)]
    return Shown("Compared", ["split", "blocks of stages", *waits, ">Phi", ">more"], rows)


def _figures(costs: Costs, problem: Problem) -> list[str]:
    return [*map(format_time, times(costs, problem).values()), f"{costs.phi:.4g}"]


def in_short(split: Split) -> str:
    """desk 2, shelf 3, desk 1: blocks per stage."""
    return ", ".join(f"{stage.host} {len(stage)}" for stage in split.stages)


def stretches(comparison: Comparison, report: Report) -> Shown:
    costs, other, tokens = report.solution.costs, comparison.costs, report.problem.generates
    rows = [
        [
            report.problem.name(*range(one.first, one.last + 1)),
            one.here,
            one.there,
            *(_both(one.here_token, one.there_token) * tokens),
            *_both(one.here_chunk, one.there_chunk),
        ]
        for one in comparison.stretches
    ]
    here, there = comparison.here, comparison.there
    counts = (
        ("overhead of stages", len(costs.stages), len(other.stages), here.overhead, there.overhead),
        ("hops", len(costs.hops), len(other.hops), here.wire, there.wire),
    )
    for name, mine, theirs, before, after in counts:
        per_token = _both(before.token, after.token) * tokens
        rows.append([name, str(mine), str(theirs), *per_token, *_both(before.chunk, after.chunk)])
    per = [">token", ">change", ">chunk", ">change"] if tokens else [">text", ">change"]
    note = "Computing of the blocks on each host; what is said is the other split's, and by how much it differs."
    return Shown("Stage by stage", ["blocks", "best", "other", *per], rows, note)


def _both(here: float, there: float) -> list[str]:
    change = there - here
    return [format_time(there), "" if abs(change) < NOTHING else signed_time(change)]


def terms(comparison: Comparison, report: Report) -> Shown:
    costs, other, problem = report.solution.costs, comparison.costs, report.problem
    mine, theirs = times(costs, problem), times(other, problem)
    seconds = [(f"time {what}", mine[what], theirs[what]) for what in mine]
    seconds.append(("latency L", costs.latency_seconds, other.latency_seconds))
    plain = (
        ("utilization U", costs.utilization, other.utilization),
        ("privacy P", costs.privacy, other.privacy),
        ("Phi", costs.phi, other.phi),
    )
    rows = [[name, format_time(here), *_both(here, there)] for name, here, there in seconds]
    rows += [[name, f"{here:.4g}", f"{there:.4g}", f"{there - here:+.4g}"] for name, here, there in plain]
    return Shown("Term by term", ["", ">best", ">other", ">change"], rows)


def sights(report: Report) -> Shown:
    rows = [
        [
            sight.host,
            "yes" if sight.trusted else "no",
            sight.blocks,
            sight.sees,
            "" if sight.depth is None else str(sight.depth),
        ]
        for sight in report.sights
    ]
    return Shown("Who sees what", ["host", "trusted", "weights of", "of requests", ">depth"], rows)


def exposures(audit: Audit, report: Report) -> Shown:
    placed, problem = report.solution.split.placement(), report.problem
    rows = [
        [
            f"behind {problem.name(exposure.block)}",
            "" if exposure.nearest is None else f"{exposure.nearest:.0%}",
            f"{exposure.probe:.0%}",
            ", ".join(sorted({*placed[exposure.block : exposure.block + 2]} - problem.trusted)),
        ]
        for exposure in audit.exposures
    ]
    note = (
        f"Share of {audit.tried} tokens that are recovered from the activations there: by the nearest embedding, and "
        f"by a linear map learned from {audit.taught} tokens of other texts. Who sees nothing guesses "
        f"{audit.guess:.0%}. A better attacker recovers more: a low share limits exposure."
    )
    return Shown("What activations give away", ["boundary", ">nearest", ">learned", "seen by untrusted"], rows, note)


def fleet(report: Report) -> Shown:
    """Every host that was measured, used or not."""
    problem, used = report.problem, set(report.solution.split.hosts)
    rows = []
    for name, profile in report.fleet.hosts.items():
        if name in problem.hosts:
            layer = profile.times
            rows.append(
                [
                    name,
                    "yes" if name in used else "no",
                    "yes" if name in problem.trusted else "no",
                    f"{profile.cores:g}, {profile.device}",
                    format_size(problem.hosts[name].budget),
                    format_time(layer.decode_layer),
                    format_time(layer.prefill_layer),
                ]
            )
    rows += [[name, "no", "", why, "", "", ""] for name, why in problem.unusable.items()]
    columns = ["host", "used", "trusted", "cores, device", ">memory allowed", ">token, a layer", ">chunk, a layer"]
    return Shown("Hosts as measured", columns, rows)


def links(report: Report) -> Shown:
    """From each host (row) to each other (column)."""
    problem = report.problem
    rows = []
    for source in problem.hosts:
        cells = [problem.links.get((source, target)) for target in problem.hosts]
        rows.append(
            [source, *(f"{format_time(one.rtt)}, {format_rate(one.bandwidth)}" if one else "" for one in cells)]
        )
    return Shown("Links: round trip and bandwidth, from the row's host to the column's", ["", *problem.hosts], rows)
