"""What `plan` found out, on a terminal: tables, the ring, sentences. Readable without colour and in 80 columns."""

from __future__ import annotations

from edgesplit.cli import plan_tables as tables
from edgesplit.cli.render import bullets, out, show
from edgesplit.cli.report import Report
from edgesplit.revision.explain import alternative_words, what_binds, whatif_words
from edgesplit.revision.exposure import audit_words
from edgesplit.revision.picture import legend, marks_for, ring
from edgesplit.revision.whatif import Outlook

WIDEST = 110  # columns of the ring: a longer bar says no more
MOST = 5  # changes that are told


def show_report(report: Report) -> None:
    _show(tables.stages(report))
    if report.explained:
        _explained(report)
    if report.comparison is not None:
        _show(tables.stretches(report.comparison, report))
        _show(tables.terms(report.comparison, report))
        bullets("", [f"The other split cannot be deployed: {broken}." for broken in report.comparison.broken])
    if report.outlook is not None:
        _whole(report, report.outlook)
    if report.audit is not None:
        _show(tables.exposures(report.audit, report))
        worst = {exposure.block: exposure.worst for exposure in report.audit.exposures}
        bullets("", audit_words(worst, report.solution.split, report.problem.trusted))
        out.print()


def _show(shown: tables.Shown) -> None:
    show(shown.title, list(shown.columns), list(shown.rows), shown.note)
    out.print()


def _whole(report: Report, outlook: Outlook) -> None:
    _ring(report)
    _show(tables.hosts(report))
    _show(tables.phi(report))
    _show(tables.rivals(report))
    bullets("What binds", what_binds(report.solution, report.problem))
    out.print()
    _outlook(report, outlook)
    _show(tables.sights(report))


def _ring(report: Report) -> None:
    if not report.solution.costs.hops:
        return
    marks = marks_for(out.encoding)
    out.print("The ring, to scale", style="bold")
    for line in ring(report.solution.costs, report.problem, marks, min(out.width, WIDEST)):
        out.print(line, soft_wrap=True)
    out.print(legend(marks), style="dim")
    out.print()


def _outlook(report: Report, outlook: Outlook) -> None:
    for title, found in (("What would help most", outlook.helps), ("If a host were gone", outlook.losses)):
        if found:
            bullets(title, [whatif_words(one, report.solution.costs, report.problem) for one in found[:MOST]])
            out.print()
    if outlook.untried:
        out.print(f"{outlook.untried} further changes were not tried: there was no time, see --what-ifs.", style="dim")
        out.print()


def _explained(report: Report) -> None:
    placed = report.solution.split.placement()
    hosts = ", ".join(dict.fromkeys(placed[block] for block in report.explained))
    name = report.problem.name(*report.explained)
    out.print(f"{name}: on {hosts}. Elsewhere, each with the best split there is then:")
    costs = report.solution.costs
    bullets("", [alternative_words(one, costs, report.problem) for one in report.alternatives])
    out.print()
