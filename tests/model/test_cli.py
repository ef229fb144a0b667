"""The command line as a person and a program meet it: help, tables, JSON, colours, interruptions."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import make_checkpoint
from transformers.utils import logging
from workspaces import Desk, edgesplit, lay

from edgesplit.cli import render, status
from edgesplit.cli.workspace import FRESH, Workspace
from edgesplit.fleet import Learned

VERBS = ("check", "profile", "plan", "deploy", "status", "generate", "watch", "down", "unlock")
EDGESPLIT = str(Path(sys.executable).parent / "edgesplit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def desk(tmp_path: Path, model: Path) -> Desk:
    """Three hosts, of which each may hold about half of the model."""
    made = lay(tmp_path / "desk", model, ("desk", "a-host-with-a-long-name", "attic"))
    for name in ("desk", "a-host-with-a-long-name", "attic"):
        made.change_host(name, memory="150KiB")
    made.profile()
    return made


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, as everywhere where nobody says otherwise."""
    monkeypatch.setattr(render.out, "width", 80)
    monkeypatch.setattr(render.talk, "width", 80)


# --- help


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_an_example(verb: str) -> None:
    done = edgesplit(verb, "--help")
    assert done.code == 0
    assert f"Example: edgesplit {verb} plans/demo.yaml" in done.out


def test_the_help_names_every_verb() -> None:
    done = edgesplit("--help")
    assert done.code == 0
    assert [verb for verb in VERBS if not re.search(rf"^│ {verb} ", done.out, re.MULTILINE)] == []


def test_no_arguments_show_the_help() -> None:
    done = edgesplit()
    assert done.code == 2
    assert "edgesplit profile PLAN" in done.out
    assert "error" not in done.err


@pytest.mark.parametrize("words", [[EDGESPLIT], [sys.executable, "-m", "edgesplit"]])
def test_the_version(words: list[str]) -> None:
    done = subprocess.run([*words, "--version"], check=True, capture_output=True, text=True)
    assert re.fullmatch(r"edgesplit \d+\.\d+\.\d+\n", done.stdout)


def test_the_help_loads_nothing_heavy() -> None:
    code = "import edgesplit.cli.app, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "transformers", "paramiko", "pydantic", "pulp", "highspy", "cryptography"} & set(loaded)


def test_the_shell_completes_verbs() -> None:
    shown = subprocess.run(["bash", "-c", f"{EDGESPLIT} --show-completion; exit $?"], capture_output=True, text=True)
    assert "_EDGESPLIT_COMPLETE=complete_bash" in shown.stdout, shown.stderr
    asked = {**os.environ, "_EDGESPLIT_COMPLETE": "complete_bash", "COMP_WORDS": "edgesplit pro", "COMP_CWORD": "1"}
    assert subprocess.run([EDGESPLIT], env=asked, capture_output=True, text=True).stdout.split() == ["profile"]


# --- what plan shows

SHOWN = """\
Split
#  host                     blocks       trusted   token     hop   chunk     hop
0  desk                     embedding,   yes        2 ms  100 us    2 ms  102 us
                            layers.0
1  attic                    layers.1-2   yes        6 ms  100 us    6 ms  102 us
2  a-host-with-a-long-name  layers.3     no       2.5 ms  100 us  2.5 ms  102 us
3  desk                     head         yes        2 ms            1 ms
Times per token and per chunk of the prompt: of the stage, and of the hop to the
next one.

The ring, to scale
                        a token, 12.8 ms             a chunk of 16, 11.8 ms
0  desk                  16% ███                      17% ████
   ↓                      1%    ░                      1%     ░
1  attic                 47%     ██████████           51%     ███████████
   ↓                      1%               ░           1%                ░
2  a-host-with-a-long…   20%               ████       21%                █████
   ↓                      1%                   ░       1%                     ░
3  desk                  16%                    ███    8%                     ██
█ computing, ░ on the wire; each with its share of the time.

Hosts
host                       memory  allowed
desk                      128 KiB  150 KiB
attic                     109 KiB  150 KiB
a-host-with-a-long-name  62.4 KiB  150 KiB

Phi 0.2148, optimal, gap 0.00%
term                                 value  weight    cost  share
latency L      seconds per request  0.2048       1  0.2048    95%
utilization U  of the busiest host       1       0       0     0%
privacy P      by depth, untrusted     0.1     0.1    0.01     5%
Predicted: 12.8 ms per token, 12.8 ms to the first token.

Compared
split            blocks of stages           per token  first token     Phi  more
the best         desk 2, attic 2,             12.8 ms      12.8 ms  0.2148
                 a-host-with-a-long-name
                 1, desk 1
all on desk      desk: its blocks need 267
                 KiB, it allows 150 KiB
one other host   none holds all that may
                 be elsewhere
equal shares     desk 1, attic 2,             13.3 ms      13.3 ms  0.2428  +13%
                 a-host-with-a-long-name
                 2, desk 1
the simple rule  desk 2,                      11.8 ms      11.8 ms  0.2388  +11%
                 a-host-with-a-long-name
                 2, attic 1, desk 1

What binds
- A token takes 12.8 ms: 12.5 ms computing and 300 us on 3 hops.
- Memory binds: no further layer fits on desk (128 KiB of 150 KiB), attic (109
  KiB of 150 KiB).
- embedding and head stay on the entry desk.

What would help most
- 117 KiB more on desk saves 6.8 ms per token and 6.81 ms to the first token
  (Phi -55%)
- 4.88 KiB more on attic saves 100 us per token and 102 us to the first token
  (Phi -5%)

If a host were gone
- without attic there is no split
- without a-host-with-a-long-name there is no split

Who sees what
host                     trusted  weights of           of requests         depth
desk                     yes      embedding,           text and token ids
                                  layers.0, head
attic                    yes      layers.1-2           activations behind      1
                                                       layers.0, behind
                                                       layers.2
a-host-with-a-long-name  no       layers.3             activations behind      3
                                                       layers.2, behind
                                                       layers.3
"""


@pytest.fixture
def unlike(desk: Desk) -> Desk:
    """The same, but so that no two splits are equally good."""
    desk.change_host("attic", trusted=True)
    desk.change_plan(objective={"latency": 1.0, "privacy": 0.1})
    desk.profile(**{"a-host-with-a-long-name": 1.5e-3, "attic": 2.5e-3})
    return desk


def test_plan_shows_the_split_within_80_columns(unlike: Desk) -> None:
    done = unlike.run("plan")
    assert (done.code, done.err) == (0, "")
    shown = "\n".join(line.rstrip() for line in done.out.splitlines())
    path = unlike.cache / "split.json"
    assert shown == f"{SHOWN}\nsaved to {path}\nnext: edgesplit deploy {unlike.plan}"  # however long: unbroken
    told = [line for line in shown.splitlines() if str(unlike.folder) not in line]
    assert max(map(len, told)) <= 80
    saved = json.loads(path.read_text())
    assert [stage["host"] for stage in saved["stages"]] == ["desk", "attic", "a-host-with-a-long-name", "desk"]


def test_what_somebody_should_know_of_the_checkpoint_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesplit.model.sidefiles.notes", lambda _: ("it barks",))
    assert "note: it barks" in desk.run("plan", "--json", "--what-ifs", "0").err


def test_plan_explains_a_block(unlike: Desk) -> None:
    shown = unlike.run("plan", "--explain", "layers.3").out
    assert "- desk: as fast (Phi +4.7%)\n- attic: as fast (Phi +9.3%)\n" in shown
    assert "What would help" not in shown
    done = unlike.run("plan", "--explain", "layers.9")
    assert done.code == 2
    assert done.error.startswith("--explain: no block 'layers.9' in this model; it has embedding, layers.0 to layers.3")


def test_plan_compares_with_another_split(unlike: Desk) -> None:
    other = unlike.folder / "other.json"
    other.write_text('{"stages": [{"host": "desk", "first": 0, "last": 5}]}')
    shown = "\n".join(line.rstrip() for line in unlike.run("plan", "--compare", other).out.splitlines())
    assert re.search(r"^layers.1-2 +attic +desk +2 ms +-3 ms +2 ms +-3 ms$", shown, re.MULTILINE)
    assert re.search(r"^time per token +12.8 ms +6 ms +-6.8 ms$", shown, re.MULTILINE)
    assert "\n- The other split cannot be deployed: desk: its blocks need 267 KiB, it allows\n  150 KiB.\n" in shown
    other.write_text("{}")
    assert unlike.run("plan", "--compare", other).error == f"{other} is no split"


def test_no_split_is_told_with_what_would_be_enough(desk: Desk) -> None:
    desk.change_host("attic", memory="50KiB")
    done = desk.run("plan")
    assert (done.code, done.out) == (5, "")
    assert "in conflict (none of these can be left out):" in done.error
    assert "more memory on attic" in done.error


def test_plan_shows_the_load_where_there_is_one(desk: Desk) -> None:
    desk.change_plan(workload={"prompt_tokens": 16, "new_tokens": 16, "max_context": 128, "rate": 1.0})
    desk.profile()
    shown = desk.run("plan").out
    assert re.search(r"^host +memory +allowed +load$", shown, re.MULTILINE)
    assert re.search(r"^attic .* \d%$", shown, re.MULTILINE)


def test_plan_as_json_is_json_and_nothing_else(desk: Desk) -> None:
    done = desk.run("plan", "--json")
    assert (done.code, done.err) == (0, "")
    answer = json.loads(done.out)
    assert answer["status"] == "Optimal"
    assert answer["split"] == json.loads((desk.cache / "split.json").read_text())
    assert answer["costs"]["time_per_token_seconds"] > 0


def test_an_error_leaves_standard_output_empty(desk: Desk) -> None:
    desk.plan.write_text("name: 1")
    for verb in ("profile", "plan", "deploy", "status", "down", "watch"):
        done = desk.run(verb, "--json")
        assert (done.code, done.out) == (2, "")


def test_a_path_is_shown_as_it_is(tmp_path: Path, model: Path) -> None:
    """Brackets are markup to rich, words between colons emojis."""
    desk = lay(tmp_path / "[bold]x[/bold] :smile: it's", model)
    desk.planned()
    done = desk.run("plan")
    assert f"saved to {desk.cache / 'split.json'}\n" in done.out


# --- the other tables


def test_profile_shows_hosts_problems_and_links_within_80_columns(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgesplit.cli.profile import _show

    space = Workspace.open(desk.plan, None)
    fleet = space.fleet()
    lacks = "its Python 3.11.2 lacks torch, transformers, safetensors, starlette, uvicorn"
    missed = {"a-host-with-a-long-name": {"desk": "timed out"}}
    fleet = fleet.model_copy(update={"problems": {"kiosk": lacks}, "unreachable": missed})
    _show(fleet, space.checkpoint.chain)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        "Hosts",
        "host                     cores   free  load  device  torch   disk",
        "desk                         1  8 GiB  0.10  cpu     2.13.0     ?",
    ]
    assert "kiosk cannot be used: its Python 3.11.2 lacks torch, transformers, safetensors," in lines
    assert "desk -> a-host-with-a-long-name       100 us   8 Gbit/s     50 us" in lines
    assert "no link a-host-with-a-long-name -> desk: timed out" in lines
    assert max(map(len, lines)) <= 80


def test_a_fresh_profile_is_taken_as_it_is_and_says_its_age(desk: Desk) -> None:
    space, now = Workspace.open(desk.plan, None), time.time()
    fleet = desk.profile().model_copy(update={"measured_at": now - 600})
    space.save(space.profile_name, fleet)
    with desk.unchanged():
        done = desk.run("profile")
    assert done.code == 0, done.err
    assert "measured 10 min ago; --refresh measures anew" in done.out
    assert space.fresh_fleet(now) == fleet
    assert space.fresh_fleet(now + FRESH) is None
    space.save(space.profile_name, fleet.model_copy(update={"problems": {"desk": "no answer"}}))
    assert space.fresh_fleet(now) is None


def test_lessons_belong_to_the_profile_they_were_learned_of(desk: Desk) -> None:
    desk.planned()
    space, learned = Workspace.open(desk.plan, None), Learned(hosts={"desk": 2.0})
    before = space.problem(space.fleet()).hosts["desk"].decode[1]
    space.learn(space.fleet(), learned)
    assert space.fleet().learned == learned
    assert space.problem(space.fleet()).hosts["desk"].decode[1] == pytest.approx(2 * before)
    assert space.split().digests is not None  # what was planned may still be deployed
    desk.profile(desk=2e-3)
    assert space.fleet().learned == Learned()


def test_status_shows_stages_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"stage": 0, "host": "a-host-with-a-long-name", "blocks": "embedding, layers.0-3, layers.7-9, head",
             "state": "serving", "measured_token_s": 0.0123, "predicted_token_s": None, "error": None,
             "rss": 412_000_000}  # fmt: skip
    status._show(
        {
            "deployment": "tiny",
            "epoch": 3,
            "keys_age_s": 5400.0,
            "dtype": "float32",
            "quantization": None,
            "stages": [stage],
            "links": [],
            "time_per_token": None,
            "sequences_per_step": None,
            "entry": None,
            "unreachable": {},
        }
    )
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        "tiny, epoch 3, float32, keys 1.5 h old",
        "#  host                     blocks          state       seen  said  off   memory",
        "0  a-host-with-a-long-name  embedding,      serving  12.3 ms             393 MiB",
    ]
    assert max(map(len, lines)) <= 80


# --- asking first


def test_a_dry_run_tells_the_steps_and_changes_nothing(desk: Desk) -> None:
    desk.planned()
    with desk.unchanged():
        done = desk.run("deploy", "--dry-run")
    assert (done.code, done.out) == (0, "")
    told = [line.split()[0] for line in done.err.splitlines() if line.startswith("  ")]
    assert list(dict.fromkeys(told)) == ["ship", "start", "prepare", "link", "trial", "commit", "confirm"]
    assert "to send, in about " in done.err
    assert not desk.work("desk").exists()


def test_a_dry_run_as_json(desk: Desk) -> None:
    desk.planned()
    answer = json.loads(desk.run("deploy", "--dry-run", "--json").out)
    assert answer["changed"] is False
    assert "commit   desk: epoch 1 serves from now on" in answer["steps"]
    assert answer["send"]["desk"]["bytes"] > 0
    assert desk.run("deploy", "--dry-run", "--detailed-exitcode").code == 10
    assert desk.run("deploy", "--detailed-exitcode").code == 2


@pytest.mark.parametrize("answer", ["n\n", ""])
@pytest.mark.parametrize("verb", ["deploy", "down", "unlock"])
def test_who_does_not_say_yes_changes_nothing(desk: Desk, verb: str, answer: str) -> None:
    desk.planned()
    with desk.unchanged():
        done = desk.run(verb, answer=answer)
    assert (done.code, done.out) == (1, "")
    assert "[y/N]" in done.err
    assert ("Aborted" if answer else "--yes goes on without asking") in done.err


# --- when things end badly


def spoil(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def raising(*_: object) -> None:
        raise error

    monkeypatch.setattr(Workspace, "open", raising)


def test_an_interruption_is_130(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, KeyboardInterrupt())
    done = desk.run("plan")
    assert (done.code, done.out, done.err) == (130, "", "error: interrupted\n")


def test_a_bug_is_told_in_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESPLIT_DEBUG", raising=False)
    spoil(monkeypatch, RuntimeError("boom"))
    done = desk.run("plan")
    assert (done.code, done.out) == (1, "")
    assert done.error == "RuntimeError: boom"
    assert "EDGESPLIT_DEBUG=1" in done.hint
    assert "Traceback" not in done.err


def test_a_bug_can_be_looked_into(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPLIT_DEBUG", "1")
    spoil(monkeypatch, RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        desk.run("plan")


# --- colour


def on_a_terminal(*words: object, **environment: str) -> bytes:
    """What a run of the CLI writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    settings = {**kept, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(
        [EDGESPLIT, *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, env=settings
    ) as run:
        os.close(theirs)
        seen = bytearray()
        while piece := _read(ours):
            seen += piece
        run.wait()
    os.close(ours)
    return bytes(seen)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: nobody has it open any more
        return b""


COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7][0-9;]*m")


def test_an_error_is_red_where_colour_is_wanted(tmp_path: Path) -> None:
    assert COLOUR.search(on_a_terminal("plan", tmp_path / "absent.yaml"))


def test_no_color_is_respected(tmp_path: Path) -> None:
    seen = on_a_terminal("plan", tmp_path / "absent.yaml", NO_COLOR="1")
    assert b"error: " in seen
    assert b"\x1b[" not in seen


def test_tables_without_colour(desk: Desk) -> None:
    seen = on_a_terminal("plan", desk.plan, NO_COLOR="1")
    assert b"a-host-with-a-long-name" in seen
    assert not COLOUR.search(seen)
