"""edgesplit status: what serves, told by the hosts themselves."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.cli.workspace import Workspace
    from edgesplit.revision.reality import Pair, Reality
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
    name, at, specs = space.plan.name, space.plan.entry, space.inventory.hosts
    with connect(space.inventory, accept_new=accept_new) as hosts:
        found, errors = survey(hosts, lambda host: present(host, space.folder(host.name), specs[host.name]))
        kept = manifest(hosts[at], space.folder(at)) if at in found else None
    split = None if kept is None else split_of(kept)
    states = {host: state for host, (_, state) in found.items()}
    reality = _judged(space, split, states)
    entry = states.get(at)
    serving = entry is not None and split is not None and entry["serving"] == split.epoch
    epoch = {} if entry is None or split is None else entry["epochs"].get(str(split.epoch), {})
    broken = str(epoch.get("reason", ""))
    report = {
        "deployment": name,
        "serving": serving and not broken,
        "broken": broken,
        "epoch": None if split is None else split.epoch,
        "keys_age_s": epoch.get("age_s"),
        "dtype": None if kept is None else kept.dtype,
        "quantization": None if kept is None else kept.quantization or None,
        "stages": _stages(split, states, reality),
        "links": [_pair(link) for link in reality.links] if reality else [],
        "time_per_token": _pair(reality.token) if reality else None,
        "sequences_per_step": reality.rows if reality else None,
        "entry": None if entry is None else entry["entry"],
        "unreachable": {host: error.message for host, error in errors.items()},
    }
    if as_json:
        print_json(report)
    else:
        _show(report)
    if at in errors:
        raise errors[at]
    if not report["serving"]:
        hint = space.command("deploy") if split is None else f"{space.command('watch')} mends it; or deploy again"
        raise ServingError(f"{name} does not serve" + (f": {broken}" if broken else ""), hint)


def _judged(space: Workspace, split: Split | None, states: dict[str, dict[str, Any] | None]) -> Reality | None:
    """Predicted against measured, and the lesson kept. None where this machine has no profile, and for an encoder."""
    from edgesplit.errors import EdgesplitError
    from edgesplit.revision.reality import compare, learn, seen

    if split is None:
        return None
    try:
        fleet = space.fleet()
        problem = space.problem(fleet)
        if not problem.generates:
            return None
        reality = compare(split, problem, seen(split, states))
    except EdgesplitError:
        return None
    with suppress(EdgesplitError):  # where the plan lies somebody else may write
        space.learn(fleet, learn(fleet.learned, reality))
    return reality


def _stages(
    split: Split | None, states: dict[str, dict[str, Any] | None], reality: Reality | None
) -> list[dict[str, Any]]:
    from edgesplit.model.blocks import name_blocks

    stages = []
    for number, stage in enumerate(split.stages if split else ()):
        state = states.get(stage.host)
        epoch = (state or {}).get("epochs", {}).get(str(split.epoch if split else 0), {})
        times = epoch.get("stages", {}).get(str(number), {})
        judged = reality.stages[number] if reality else None
        stages.append(
            {
                "stage": number,
                "host": stage.host,
                "blocks": name_blocks(range(stage.first, stage.last + 1), split.blocks if split else 0),
                "state": epoch.get("state", "no runner" if state is None else "not loaded"),
                "measured_token_s": times.get("decode_s"),
                "predicted_token_s": judged.predicted if judged else None,
                "error": judged.error if judged else None,
                "rss": None if state is None else state["rss"],
            }
        )
    return stages


def _pair(pair: Pair) -> dict[str, Any]:
    return {**pair.model_dump(mode="json"), "error": pair.error}


def _show(report: dict[str, Any]) -> None:
    from edgesplit.cli.render import out, show
    from edgesplit.units import format_size, format_time

    rows = [
        [
            str(stage["stage"]),
            stage["host"],
            stage["blocks"],
            stage["state"],
            _seconds(stage["measured_token_s"]),
            _seconds(stage["predicted_token_s"]),
            _share(stage["error"]),
            "" if stage["rss"] is None else format_size(stage["rss"]),
        ]
        for stage in report["stages"]
    ]
    columns = [">#", "host", "blocks", "state", ">seen", ">said", ">off", ">memory"]
    note = "Seen: time of a decode step. Said: what the profile and its lessons predict for it. Memory of the runner."
    if rows:
        precision = " ".join(filter(None, [report["dtype"], report["quantization"]]))
        age = "" if report["keys_age_s"] is None else f", keys {format_time(report['keys_age_s'])} old"
        show(f"{report['deployment']}, epoch {report['epoch']}, {precision}{age}", columns, rows, note)
    if report["links"]:
        links = [
            [link["name"], _seconds(link["measured"]), _seconds(link["predicted"]), _share(link["error"])]
            for link in report["links"]
        ]
        show("Links", ["link", ">seen", ">said", ">off"], links, "Until a step's message has arrived.")
    entry = report["entry"] or {}
    if entry:
        out.print(
            f"{entry['running']} running, {entry['waiting']} waiting, {entry['tokens']} tokens so far{_pace(report)}"
        )
    for problem in report["unreachable"].values():
        out.print(problem)


def _seconds(value: float | None) -> str:
    from edgesplit.units import format_time

    return "" if value is None else format_time(value)


def _share(error: float | None) -> str:
    return "" if error is None else f"{error:+.0%}"


def _pace(report: dict[str, Any]) -> str:
    """Measured against predicted; nothing of an encoder, which makes no tokens."""
    measured, token = report["entry"]["time_per_token_s"], report["time_per_token"]
    if measured is None and token is None:
        return ""
    predicted = (
        f" (predicted {_seconds(token['predicted'])}, {report['sequences_per_step']} in a step)" if token else ""
    )
    return f"; time per token {_seconds(measured) or 'not measured yet'}{predicted}"
