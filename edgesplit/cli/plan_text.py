"""What `plan` found out, on a terminal: tables, the ring, sentences. Readable without colour and in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesplit.cli.render import bullets, out, show
from edgesplit.revision.explain import alternative_words, signed_time, times, what_binds, whatif_words
from edgesplit.revision.picture import legend, marks_for, ring
from edgesplit.split import Split
from edgesplit.units import format_size, format_time

if TYPE_CHECKING:
    from edgesplit.cli.report import Report
    from edgesplit.revision.comparison import Comparison
    from edgesplit.revision.cost import Costs
    from edgesplit.revision.problem import Problem
    from edgesplit.revision.whatif import Outlook

WIDEST = 110  # columns of the ring: a longer bar says no more
NOTHING = 1e-9  # seconds that are the rounding of sums
MOST = 5  # changes that are told


def show_report(report: Report) -> None:
    _stages(report.solution.costs, report.problem)
    out.print()
    if report.explained:
        _explained(report)
    if report.comparison is not None:
        _compared(report.comparison, report.solution.costs, report.problem)
    if report.outlook is not None:
        _whole(report, report.outlook)
    if report.exposures:
        _exposures(report)


def _whole(report: Report, outlook: Outlook) -> None:
    costs, problem = report.solution.costs, report.problem
    _ring(costs, problem)
    _hosts(costs, problem)
    _phi(report)
    _rivals(report)
    out.print()
    bullets("What binds", what_binds(report.solution, problem))
    _outlook(outlook, costs, problem)
    out.print()
    _sights(report)


def _stages(costs: Costs, problem: Problem) -> None:
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
    times = "per token and per chunk of the prompt" if tokens else "per text"
    note = f"Times {times}: of the stage, and of the hop to the next one."
    show("Split", [">#", "host", "blocks", "trusted", *per], rows, note)


def _ring(costs: Costs, problem: Problem) -> None:
    if not costs.hops:
        return
    marks = marks_for(out.encoding)
    out.print("The ring, to scale", style="bold")
    for line in ring(costs, problem, marks, min(out.width, WIDEST)):
        out.print(line, soft_wrap=True)
    out.print(legend(marks), style="dim")
    out.print()


def _hosts(costs: Costs, problem: Problem) -> None:
    """Without a rate there is no load, only the busy time of a host against that of the fastest alone."""
    rows = [
        [host.host, format_size(host.memory_bytes), format_size(host.budget_bytes), f"{host.load:.0%}"]
        for host in costs.hosts
    ]
    if problem.workload.rate > 0:
        show("Hosts", ["host", ">memory", ">allowed", ">load"], rows)
    else:
        show("Hosts", ["host", ">memory", ">allowed"], [row[:3] for row in rows])
    out.print()


def _phi(report: Report) -> None:
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
        [name, what, f"{value:.4g}", f"{weight:g}", f"{value * weight:.4g}", _share(value * weight, costs.phi)]
        for name, what, value, weight in terms
    ]
    proof = f"{solution.status.lower()}, gap {solution.gap:.2%}"
    waits = ", ".join(f"{format_time(seconds)} {what}" for what, seconds in times(costs, report.problem).items())
    note = f"Predicted: {waits}."
    title = f"Phi {costs.phi:.4g}, {proof}"
    show(title, ["term", "", ">value", ">weight", ">cost", ">share"], rows, note)
    out.print()


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else ""


def _rivals(report: Report) -> None:
    costs, problem = report.solution.costs, report.problem
    rows = [["the best", in_short(report.solution.split), *_figures(costs, problem), ""]]
    for rival in report.rivals:
        if rival.costs is None or rival.split is None:
            rows.append([rival.rule, rival.why] + [""] * (len(rows[0]) - 2))
        else:
            more = f"{rival.costs.phi / costs.phi - 1:+.0%}" if costs.phi > 0 else ""
            rows.append([rival.rule, in_short(rival.split), *_figures(rival.costs, problem), more])
    waits = [f">{what.removeprefix('to the ')}" for what in times(costs, problem)]
    show("Compared", ["split", "blocks of stages", *waits, ">Phi", ">more"], rows)


def _figures(costs: Costs, problem: Problem) -> list[str]:
    return [*map(format_time, times(costs, problem).values()), f"{costs.phi:.4g}"]


def in_short(split: Split) -> str:
    """desk 2, shelf 3, desk 1: blocks per stage."""
    return ", ".join(f"{stage.host} {len(stage)}" for stage in split.stages)


def _outlook(outlook: Outlook, costs: Costs, problem: Problem) -> None:
    helps = [whatif_words(one, costs, problem) for one in outlook.helps[:MOST]]
    losses = [whatif_words(one, costs, problem) for one in outlook.losses[:MOST]]
    if helps:
        out.print()
        bullets("What would help most", helps)
    if losses:
        out.print()
        bullets("If a host were gone", losses)
    if outlook.untried:
        out.print(f"{outlook.untried} further changes were not tried: there was no time, see --what-ifs.", style="dim")


def _explained(report: Report) -> None:
    name = report.problem.name(*report.explained)
    placed = report.solution.split.placement()
    hosts = ", ".join(dict.fromkeys(placed[block] for block in report.explained))
    out.print(f"{name}: on {hosts}. Elsewhere, each with the best split there is then:")
    bullets("", [alternative_words(one, report.solution.costs, report.problem) for one in report.alternatives])


def _compared(comparison: Comparison, costs: Costs, problem: Problem) -> None:
    other = comparison.costs
    tokens = problem.generates
    rows = [
        [
            problem.name(*range(one.first, one.last + 1)),
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
    show("Stage by stage", ["blocks", "best", "other", *per], rows, note)
    out.print()
    _terms(costs, other, problem)
    for broken in comparison.broken:
        out.print(f"The other split cannot be deployed: {broken}.")


def _terms(costs: Costs, other: Costs, problem: Problem) -> None:
    mine, theirs = times(costs, problem), times(other, problem)
    seconds = [(f"time {what}", mine[what], theirs[what]) for what in mine]
    seconds.append(("latency L", costs.latency_seconds, other.latency_seconds))
    plain = (
        ("utilization U", costs.utilization, other.utilization),
        ("privacy P", costs.privacy, other.privacy),
        ("Phi", costs.phi, other.phi),
    )
    rows = [[name, format_time(here), format_time(there), _change(there - here)] for name, here, there in seconds]
    rows += [[name, f"{here:.4g}", f"{there:.4g}", f"{there - here:+.4g}"] for name, here, there in plain]
    show("Term by term", ["", ">best", ">other", ">change"], rows)


def _both(here: float, there: float) -> list[str]:
    return [format_time(there), _change(there - here)]


def _change(seconds: float) -> str:
    return "" if abs(seconds) < NOTHING else signed_time(seconds)


def _sights(report: Report) -> None:
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
    show("Who sees what", ["host", "trusted", "weights of", "of requests", ">depth"], rows)


def _exposures(report: Report) -> None:
    placed, problem = report.solution.split.placement(), report.problem
    rows = [
        [
            f"behind {problem.name(exposure.block)}",
            f"{exposure.nearest:.0%}",
            f"{exposure.probe:.0%}",
            host if (host := placed[exposure.block + 1]) not in problem.trusted else "",
        ]
        for exposure in report.exposures
    ]
    note = (
        "Share of the texts' tokens that are recovered from the activations there: by the nearest embedding, and by a "
        "linear map learned on other texts. A better attacker recovers more: a low share limits exposure."
    )
    out.print()
    show("What activations give away", ["boundary", ">nearest", ">learned", "seen by untrusted"], rows, note)
