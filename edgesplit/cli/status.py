"""edgesplit status: what serves, told by the hosts themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.cli.workspace import Workspace
    from edgesplit.split import Split


def run(plan: Plan, inventory: Inventory = None, accept_new: AcceptNew = False, as_json: Json = False) -> None:
    """Show the epoch that serves, its stages, and measured against predicted times."""
    from edgesplit.broadcast.cargo import split_of
    from edgesplit.broadcast.remote import manifest, present
    from edgesplit.cli.render import print_json
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import ServingError
    from edgesplit.hosts.fanout import connect, survey

    space = Workspace.open(plan, inventory)
    name, specs = space.plan.name, space.inventory.hosts
    with connect(space.inventory, accept_new=accept_new) as hosts:
        found, errors = survey(hosts, lambda host: present(host, f"{specs[host.name].work}/{name}", specs[host.name]))
        kept = (
            manifest(hosts[space.plan.entry], f"{specs[space.plan.entry].work}/{name}")
            if space.plan.entry in found
            else None
        )
    split = None if kept is None else split_of(kept)
    states = {host: state for host, (_, state) in found.items()}
    predicted = _predicted(space, split)
    entry = states.get(space.plan.entry)
    serving = entry is not None and split is not None and entry["serving"] == split.epoch
    broken = _reason(entry, split)
    report = {
        "deployment": name,
        "serving": serving and not broken,
        "broken": broken,
        "epoch": None if split is None else split.epoch,
        "dtype": None if kept is None else kept.dtype,
        "quantization": None if kept is None else kept.quantization or None,
        "stages": _stages(split, states, predicted),
        "entry": None if entry is None else entry["entry"],
        "predicted_time_per_token_s": predicted.get("token"),
        "predicted_time_per_token_alone_s": predicted.get("alone"),
        "unreachable": {host: error.message for host, error in errors.items()},
    }
    if as_json:
        print_json(report)
    else:
        _show(report)
    if space.plan.entry in errors:
        raise errors[space.plan.entry]
    if not report["serving"]:
        hint = f"edgesplit deploy {plan}" if split is None else f"edgesplit watch {plan} mends it; or deploy again"
        raise ServingError(f"{name} does not serve" + (f": {broken}" if broken else ""), hint)


def _reason(entry: dict[str, Any] | None, split: Split | None) -> str:
    if entry is None or split is None:
        return ""
    return str(entry["epochs"].get(str(split.epoch), {}).get("reason", ""))


def _predicted(space: Workspace, split: Split | None) -> dict[Any, float]:
    """Stage number -> predicted seconds per decode step; "token" and "alone": per token at the plan's
    concurrency and for one sequence. Empty where this machine has no profile, and for an encoder."""
    from edgesplit.errors import EdgesplitError
    from edgesplit.revision.cost import evaluate

    if split is None:
        return {}
    try:
        costs = evaluate(split, problem := space.problem(space.fleet()))
    except EdgesplitError:
        return {}
    if not problem.generates:
        return {}
    times: dict[Any, float] = {number: stage.decode_seconds for number, stage in enumerate(costs.stages)}
    return {**times, "token": costs.time_per_token_seconds, "alone": costs.path_seconds}


def _stages(
    split: Split | None, states: dict[str, dict[str, Any] | None], predicted: dict[Any, float]
) -> list[dict[str, Any]]:
    from edgesplit.model.blocks import name_blocks

    stages = []
    for number, stage in enumerate(split.stages if split else ()):
        state = states.get(stage.host)
        epoch = (state or {}).get("epochs", {}).get(str(split.epoch if split else 0), {})
        times = epoch.get("stages", {}).get(str(number), {})
        stages.append(
            {
                "stage": number,
                "host": stage.host,
                "blocks": name_blocks(range(stage.first, stage.last + 1), split.blocks if split else 0),
                "state": epoch.get("state", "no runner" if state is None else "not loaded"),
                "measured_token_s": times.get("decode_s"),
                "predicted_token_s": predicted.get(number),
                "rss": None if state is None else state["rss"],
            }
        )
    return stages


def _show(report: dict[str, Any]) -> None:
    from edgesplit.cli.render import out, show
    from edgesplit.units import format_size, format_time

    def seconds(value: float | None) -> str:
        return "" if value is None else format_time(value)

    rows = [
        [
            str(stage["stage"]),
            stage["host"],
            stage["blocks"],
            stage["state"],
            seconds(stage["measured_token_s"]),
            seconds(stage["predicted_token_s"]),
            "" if stage["rss"] is None else format_size(stage["rss"]),
        ]
        for stage in report["stages"]
    ]
    columns = [">#", "host", "blocks", "state", ">measured", ">predicted", ">memory"]
    note = "Times per token of the stage, measured and predicted; memory of its runner."
    if rows:
        precision = " ".join(filter(None, [report["dtype"], report["quantization"]]))
        show(f"{report['deployment']}, epoch {report['epoch']}, {precision}", columns, rows, note)
    entry = report["entry"] or {}
    if entry:
        out.print(
            f"{entry['running']} running, {entry['waiting']} waiting, {entry['tokens']} tokens so far{_pace(report)}"
        )
    for problem in report["unreachable"].values():
        out.print(problem)


def _pace(report: dict[str, Any]) -> str:
    """Measured against predicted; nothing of an encoder, which makes no tokens."""
    from edgesplit.units import format_time

    measured, alone, all_ = (
        None if value is None else format_time(value)
        for value in (
            report["entry"]["time_per_token_s"],
            report["predicted_time_per_token_alone_s"],
            report["predicted_time_per_token_s"],
        )
    )
    if measured is None and alone is None:
        return ""
    return (
        f"; time per token {measured or 'not measured yet'} "
        f"(predicted {alone or '?'} for one sequence, {all_ or '?'} at the plan's concurrency)"
    )
