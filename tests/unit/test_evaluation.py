"""Scenarios: what a file may say, what requests follow from it, what a run comes to, how that is told."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from edgesplit.cli.evaluate import _flat
from edgesplit.errors import InputError
from edgesplit.evaluation import looks
from edgesplit.evaluation.acts import Acts
from edgesplit.evaluation.charts import chart
from edgesplit.evaluation.demand import asks, phases, prompts, turns
from edgesplit.evaluation.evaluate import Evaluation
from edgesplit.evaluation.metrics import Figures, figures
from edgesplit.evaluation.record import Answer, Change, Look, Move, Run
from edgesplit.evaluation.report import merged, section
from edgesplit.evaluation.scenario import Happening, Stage, load_stage, parse_act
from edgesplit.plan import ServiceLevel

PLANS = Path(__file__).parents[2] / "plans" / "evaluation"
SERVICE = ServiceLevel(time_to_first_token=1.0, time_per_token=0.1)


def written(folder: Path, **changes: str) -> Path:
    """The emergency with lines of it changed."""
    shutil.copytree(PLANS, folder / "evaluation", ignore=shutil.ignore_patterns(".edgesplit"))
    file = folder / "evaluation" / "emergency.yaml"
    text = file.read_text()
    for old, new in changes.values():  # type: ignore[misc]
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return file


# --- the file ---


@pytest.mark.parametrize("name", ["emergency", "manufacturing", "roadside"])
def test_the_scenarios_of_the_paper_are_well_formed(name: str) -> None:
    stage = load_stage(PLANS / f"{name}.yaml")
    assert stage.name == name
    assert sum(host.cores for host in stage.lab.hosts.values()) <= 1.75  # of two: the clients need some too


@pytest.mark.parametrize(
    ("text", "verb", "hosts", "settings"),
    [
        ("kill van", "kill", ("van",), {}),
        ("link a b rate 10mbit loss 1%", "link", ("a", "b"), {"rate": "10mbit", "loss": "1%"}),
        ("host a cores 0.25", "host", ("a",), {"cores": "0.25"}),
        ("demand 3", "demand", (), {"amount": "3"}),
    ],
)
def test_what_is_done_is_written_as_on_the_command_line(
    text: str, verb: str, hosts: tuple[str, ...], settings: dict[str, str]
) -> None:
    act = parse_act(text)
    assert (act.verb, act.hosts, act.settings) == (verb, hosts, settings)


@pytest.mark.parametrize(
    "text", ["", "explode van", "kill", "kill a b", "link a b", "link a b rate", "link a b speed 3", "host a cores x",
             "host a cores -1", "link a b rate 3 apples", "demand -1", "demand many", "demand", 7, None]
)  # fmt: skip
def test_what_cannot_be_done_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"expected|rate|cores"):
        parse_act(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("do: kill mast", "do: kill mist", r"events\[1\]: 'kill mist': there is no host mist"),
        ("do: kill mast", "do: start mast", "it was not killed before"),
        ("at: 30s", "at: 10s", "the earlier ones first"),
        ("at: 50s", "at: 80s", "ends at 75 s"),
        ("new_tokens: [8, 16]", "new_tokens: [8, 160]", "max_context"),
        ("rate: 1.2", "clients: 2\n  rate: 1.2", "either `rate` or `clients`"),
        ("seed: 1", "checkpoint: {hidden: 100, layers: 1, heads: 8, intermediate: 9}", "multiple of twice the 8 heads"),
        ("patience: 15s", "patients: 15s", r"emergency.yaml:\d+:\d+: demand.patients"),
        ("plan: emergency-plan.yaml", "plan: ../emergency.yaml", "emergency.yaml"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_stage(written(tmp_path, change=(old, new)))  # type: ignore[arg-type]


def test_the_reference_has_every_key() -> None:
    text = (PLANS.parents[1] / "docs" / "reference" / "scenario.md").read_text()
    keys = set(re.findall(r"^\| `([\w.\[\]]+)`", text, re.MULTILINE))
    known = {*Stage.model_fields["scenario"].annotation.model_fields} - {"demand", "events"}  # type: ignore[union-attr]
    assert known <= keys


# --- requests ---


def test_the_same_seed_makes_the_same_requests_and_a_surge_makes_more() -> None:
    scenario = load_stage(PLANS / "emergency.yaml").scenario
    first = list(asks(scenario, 1))
    assert first == list(asks(scenario, 1)) != list(asks(scenario, 2))
    assert phases(scenario) == [(0.0, 1.2), (15.0, 3.6)]
    before = [ask for ask in first if (ask.at or 0) < 15]
    assert len(first) - len(before) > 6 * len(before)  # three times the rate, four times as long
    assert all(8 <= ask.wanted <= 16 for ask in first)
    assert {len(prompt) for prompt in prompts(scenario, 1024)} <= set(range(16, 33))
    client = turns(scenario, 1, 0)
    assert [next(client) for _ in range(5)] != [next(client) for _ in range(5)]


# --- a lab while hosts come and go ---


class Trouble:
    """A lab of whose hosts one is just being powered off. Its evaluation is over when it was asked twice."""

    def __init__(self) -> None:
        self.over, self.asked = threading.Event(), 0

    def status(self) -> None:
        self.asked += 1
        if self.asked == 2:
            self.over.set()
        raise FileNotFoundError("cgroup.procs")

    def set_host(self, *_: object, **__: object) -> None:
        self.status()


def test_looks_and_events_go_on_while_a_host_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Trouble()
    monkeypatch.setattr(looks, "EVERY", 0.0)
    looks.Looks(lab, "p", "a", 0.0).run(lab.over)  # type: ignore[arg-type]
    assert lab.asked == 2
    acts = Acts(lab, (Happening(at=0.0, do=("host a cores 1", "host a cores 2")),), 0.0, lambda: None)  # type: ignore[arg-type]
    acts.run(threading.Event())
    assert acts.trouble == ["host a cores 1: cgroup.procs", "host a cores 2: cgroup.procs"]
    assert [change.text for change in acts.changes] == ["host a cores 1", "host a cores 2"]


# --- figures ---


def answer(asked: float, *times: float, wanted: int = 3, lost: float | None = None) -> Answer:
    ended = lost if lost is not None else times[-1]
    return Answer(asked=asked, prompt=0, wanted=wanted, times=times, ended=ended, tokens=tuple(range(len(times))),
                  outcome="" if lost is None else "lost", right=None if lost is not None else True)  # fmt: skip


def look(at: float, **blocks: tuple[int, ...]) -> Look:
    return Look(at=at, busy={"a": 0.5, "b": 0.9}, loaded=blocks, stored=blocks, sent=int(100 * at))


def made(*answers: Answer, **more: object) -> Run:
    values = {"scenario": "", "name": "n", "mode": "adaptive", "repetition": 1, "seconds": 36.0, "answers": answers}
    return Run.model_validate({**values, **more})


def count(*answers: Answer, **more: object) -> Figures:
    return figures(made(*answers, **more), SERVICE)


def test_requests_and_tokens_are_judged_by_the_service_level() -> None:
    found = count(
        answer(0, 0.5, 0.6, 0.7), answer(1, 1.5, 1.9, 2.4), answer(2, 3.5, 3.6, 3.7), answer(3, 3.2, lost=9.0)
    )
    assert (found.requests, found.lost, found.compliance) == (4, 1, 0.25)
    assert found.tokens_in_time == pytest.approx((3 + 2 + 0 + 1) / 12)  # of what a lost one wanted, two never came
    assert found.p95 == 6.0
    assert found.lost_per_hour == pytest.approx(100)


def test_a_stretch_without_tokens_is_downtime_only_while_somebody_waits() -> None:
    quiet = count(answer(0, 0.1, 0.2, 0.3), answer(10, 10.1, 10.2, 10.3))
    assert (quiet.incidents, quiet.downtime) == (0, 0.0)
    waited = count(answer(0, 0.1, 0.2, 0.3), answer(4, 10.1, 10.2, 10.3))
    assert (waited.incidents, waited.downtime) == (1, pytest.approx(6.1))
    never = count(answer(0, 0.1, 0.2, 0.3), answer(4, lost=19.0), answer(6, lost=21.0))
    assert (never.incidents, never.downtime) == (1, pytest.approx(17.0))


def test_recovery_lasts_until_nobody_is_behind_any_more() -> None:
    changes = (Change(at=5.0, text="kill b"), Change(at=20.0, text="start b"))
    good = [answer(at, at + 0.1, at + 0.2, at + 0.3) for at in range(36) if not 5 <= at < 9]
    slow = [answer(at, 11.0, 11.1, 11.2) for at in range(5, 9)]
    first, second = count(*good, *slow, changes=changes).recoveries
    assert first.seconds == pytest.approx(6.2, abs=0.2)
    assert second.seconds == 0.0
    lost = [answer(at, lost=at + 15.0) for at in range(9, 25)]
    assert [each.seconds for each in count(*slow, *lost, changes=changes).recoveries] == [None, None]


def test_privacy_is_where_the_blocks_were() -> None:
    legal = (("a",), ("a", "b"))
    kept = count(answer(0, 1, 1, 1), looks=(look(0, a=(0,), b=(1,)), look(1, a=(0, 1))), permitted=legal)
    broken = count(answer(0, 1, 1, 1), looks=(look(0, a=(0,), b=(1,)), look(1, b=(0,))), permitted=legal)
    assert (kept.violations, broken.violations) == (0, 1)
    assert kept.sent == 100
    assert kept.load == pytest.approx((0.7 + 0.5) / 2)


def test_nothing_at_all_is_no_figure() -> None:
    found = count()
    assert (found.requests, found.incidents) == (0, 0)
    assert math.isnan(found.p95)
    assert json.loads(json.dumps(_flat(load_stage(PLANS / "emergency.yaml"), made())), parse_constant=pytest.fail)


# --- what is kept ---


def test_what_was_done_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    stage = load_stage(PLANS / "emergency.yaml")
    kept = tmp_path / stage.name
    kept.mkdir()
    for name in ("static-1.json", "adaptive-12.json", "thesis.odt"):
        (kept / name).write_text("")
    Evaluation(tmp_path, print).forget(stage)
    assert [file.name for file in kept.iterdir()] == ["thesis.odt"]


# --- how it is told ---


def test_the_report_keeps_what_people_wrote_and_the_chart_is_svg() -> None:
    stage = load_stage(PLANS / "emergency.yaml")
    runs = [
        made(answer(0, 0.1, 0.2, 0.3), answer(1, lost=9.0), mode=mode, looks=(look(0, a=(0,)), look(1, b=(0,))),
             permitted=(("a", "b"),), changes=(Change(at=5.0, text="kill <b>"),),
             moves=(Move(at=6.0, ended=7.0, action="re-split", because="x", done=True),))
        for mode in ("static", "adaptive")
    ]  # fmt: skip
    found = {run.mode: [figures(run, SERVICE)] for run in runs}
    text = merged("# Mine\n\n<!-- results -->\nold\n<!-- /results -->\n\nmy thoughts\n", section(stage, found, "p.svg"))
    assert text.startswith("# Mine\n\n<!-- results -->\n### Emergency")
    assert text.endswith("<!-- /results -->\n\nmy thoughts\n")
    assert "old" not in text
    assert "| moves | 1 | 1 |" in text
    assert merged("", "x") == "<!-- results -->\nx\n<!-- /results -->\n"
    picture = ET.fromstring(chart("T & t", runs))  # noqa: S314 - it was made here
    assert picture.tag.endswith("svg")
    assert json.loads(runs[0].model_dump_json())["mode"] == "static"
