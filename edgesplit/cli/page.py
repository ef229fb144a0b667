"""What `plan` found out, as one HTML page that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

from importlib.resources import files

from edgesplit.cli import charts
from edgesplit.cli import plan_tables as tables
from edgesplit.cli.markup import Markup, el, listed, section, table
from edgesplit.cli.report import Report
from edgesplit.revision.comparison import Comparison
from edgesplit.revision.explain import alternative_words, times, what_binds, whatif_words
from edgesplit.revision.exposure import audit_words
from edgesplit.revision.timeline import prompt_spans
from edgesplit.units import format_time

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    title = f"The split of {report.plan.name}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(files("edgesplit.cli").joinpath("page.css").read_text(encoding="utf-8"))),
    )
    parts = [_summary(report), _split(report), _timeline(report), _cost(report), _reasons(report)]
    if report.explained:
        parts.append(_explained(report))
    if report.comparison is not None:
        parts.append(_compared(report.comparison, report))
    parts += [_privacy(report), _fleet(report)]
    body = el("body", el("main", el("h1", title), *parts))
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en', xmlns='http://www.w3.org/1999/xhtml')}\n"


def _shown(shown: tables.Shown) -> Markup:
    made = table(shown.title, shown.columns, shown.rows)
    return el("div", made, el("p", shown.note, class_="soft")) if shown.note else made


def _summary(report: Report) -> Markup:
    costs, plan, work = report.solution.costs, report.plan, report.problem.workload
    facts = {f"time {what}": format_time(seconds) for what, seconds in times(costs, report.problem).items()}
    facts |= {"a request": format_time(costs.latency_seconds), "Phi": f"{costs.phi:.4g}"}
    facts["hosts"] = f"{len(report.solution.split.hosts)} of {len(report.problem.hosts)}"
    asked = (
        f"{plan.model.source}, {plan.dtype}. Each request: {work.prompt_tokens} tokens of prompt, {work.new_tokens} "
        f"new ones; {work.concurrency} at once, contexts up to {work.max_context}."
    )
    boxes = (el("div", el("dt", name), el("dd", value)) for name, value in facts.items())
    return el("header", el("p", asked, class_="soft"), el("dl", *boxes))


def _split(report: Report) -> Markup:
    return section("The split", _shown(tables.stages(report)), _shown(tables.hosts(report)))


def _timeline(report: Report) -> Markup:
    costs, problem = report.solution.costs, report.problem
    names, figures = charts.lanes(costs), []
    if problem.generates:
        seconds = _alternating([one.decode_seconds for one in costs.stages], [one.decode_seconds for one in costs.hops])
        figures.append(charts.way("One token on its way around the ring", names, seconds))
    spans = prompt_spans(report.solution.split, costs, problem)
    drawn = f", the first {charts.MOST} drawn" if problem.chunks > charts.MOST else ""
    chunks = (
        "1 chunk" if problem.chunks == 1 else f"{problem.chunks} chunks of {problem.chunk_tokens:.0f} tokens{drawn}"
    )
    arrived = format_time(max(span.end for span in spans))
    what = f"A prompt of {problem.workload.prompt_tokens} tokens in {chunks}: through after {arrived}"
    figures.append(charts.chunks(f"{what}. The time behind each lane is when its last chunk is done", names, spans))
    first = format_time(costs.time_to_first_token_seconds)
    note = f"The chunks are followed one by one; the plan's own formula, by which splits are judged, says {first}."
    return section("Where the time goes", charts.key(), *figures, el("p", note, class_="soft"))


def _alternating(stages: list[float], hops: list[float]) -> list[float]:
    return [one for pair in zip(stages, [*hops, 0.0], strict=True) for one in pair][:-1]


def _cost(report: Report) -> Markup:
    return section("What it costs, and what else would", _shown(tables.phi(report)), _shown(tables.rivals(report)))


def _reasons(report: Report) -> Markup:
    parts: list[str] = [el("h3", "What binds"), listed(what_binds(report.solution, report.problem))]
    outlook = report.outlook
    for title, found in (
        ("What would help", outlook.helps if outlook else ()),
        ("If a host were gone", outlook.losses if outlook else ()),
    ):
        if found:
            words = [whatif_words(one, report.solution.costs, report.problem) for one in found]
            parts += [el("h3", title), listed(words)]
    if outlook is not None and outlook.untried:
        parts.append(el("p", f"{outlook.untried} further changes were not tried: there was no time.", class_="soft"))
    return section("Why this split", *parts)


def _explained(report: Report) -> Markup:
    words = [alternative_words(one, report.solution.costs, report.problem) for one in report.alternatives]
    return section(f"{report.problem.name(*report.explained)} on another host", listed(words))


def _compared(comparison: Comparison, report: Report) -> Markup:
    broken = [f"It cannot be deployed: {words}." for words in comparison.broken]
    return section(
        "Another split",
        _shown(tables.stretches(comparison, report)),
        _shown(tables.terms(comparison, report)),
        *([listed(broken)] if broken else []),
    )


def _privacy(report: Report) -> Markup:
    note = (
        "Depth: the layers between the text and the first activations that a host sees. Activations can be turned back "
        "into text, deep ones less well: depth limits exposure."
    )
    parts = [_shown(tables.sights(report)), el("p", note, class_="soft")]
    if report.audit is not None:
        worst = {exposure.block: exposure.worst for exposure in report.audit.exposures}
        words = audit_words(worst, report.solution.split, report.problem.trusted)
        parts += [_shown(tables.exposures(report.audit, report)), listed(words)]
    return section("Who sees what", *parts)


def _fleet(report: Report) -> Markup:
    return section("The fleet", _shown(tables.fleet(report)), _shown(tables.links(report)))
