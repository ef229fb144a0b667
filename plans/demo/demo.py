"""`make demo`: the whole job on this machine, with the real command line, narrated.

Three runners stand for three hosts. Nothing is left running, nothing is left behind.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parent.parent.parent
PLAN = "plans/demo.yaml"
EDGESPLIT = str(Path(sys.executable).parent / "edgesplit")
WORK = Path("~/.edgesplit/local").expanduser()
PROMPT = "A controller without memory"
LONG = 200
say = Console(highlight=False)


def main() -> int:
    start = time.monotonic()
    try:
        with cleared():
            facts = tell()
    except subprocess.CalledProcessError as error:
        say.print(f"\n[red]the demo stopped:[/] {shlex.join(error.cmd)} ended with {error.returncode}")
        return 1
    summary(facts, time.monotonic() - start)
    return 0


def tell() -> dict[str, object]:
    chapter("Measure the three hosts and the links between them, with layers of the demo model.")
    run("profile", PLAN)
    chapter("Find the best split. No host may hold the model alone; the layers nearest to the text are pinned to desk.")
    run("plan", PLAN)
    chapter("Bring it up: each host gets only its own layers; they talk over mutual TLS.")
    run("deploy", PLAN, "--yes")
    chapter("Generate through the split, and compare with the unsplit model, token by token.")
    run("generate", PLAN, "A stage is", "--max-tokens", "60", "--check")
    run("generate", PLAN, "What is an epoch?", "--chat", "--check")
    chapter("An undisturbed run to compare with later ...")
    undisturbed = generate()
    chapter("... then the same while a host dies: `watch` stands by, and a runner is killed in mid-answer.")
    with watching() as events:
        answer, killed, seconds = disturbed()
        wait_for(events, "moved")
    same = answer["token_ids"] == undisturbed["token_ids"]
    say.print(f"\nthe answer that lived through it: [dim]{answer['text'][:160]!r} ...[/]")
    say.print(f"[bold]{len(answer['token_ids'])} tokens, equal to the undisturbed run: {'yes' if same else 'NO'}[/]")
    chapter("What serves now, and one more check.")
    run("status", PLAN)
    run("generate", PLAN, "A stage is", "--max-tokens", "60", "--check")
    if not same:
        raise subprocess.CalledProcessError(1, ["compare", "tokens"])
    return {"killed": killed, "tokens": len(answer["token_ids"]), "pause": seconds, "events": events}


def summary(facts: dict[str, object], seconds: float) -> None:
    moved = next(event for event in facts["events"] if event["event"] == "moved")
    say.rule("[bold]What you saw")
    say.print(
        f"A language model ran as one ring over three hosts, of which none was allowed to hold it whole; the host that "
        f"sees your text kept the first and the last layers.\n"
        f"Its tokens were those of the unsplit model, every one.\n"
        f"When {facts['killed']} died in mid-answer, `watch` found a new split, moved the layers "
        f"({moved['seconds']:.1f} s), and the answer went on: {facts['tokens']} tokens, none lost, none wrong.\n"
        f"Nothing is left running. The demo took {seconds:.0f} s.\n\n"
        "Next: copy inventory/example.yaml and plans/example.yaml, put your own machines and model in, and run\n"
        "  edgesplit profile PLAN && edgesplit plan PLAN && edgesplit deploy PLAN"
    )


# --- the parts ---


def chapter(text: str) -> None:
    say.print(f"\n[bold cyan]#[/] [bold]{text}[/]")


def show(*words: str) -> None:
    say.print(f"[green]$[/] edgesplit {shlex.join(words)}", soft_wrap=True)


def run(*words: str) -> None:
    show(*words)
    subprocess.run([EDGESPLIT, *words], check=True, cwd=ROOT)


def generate() -> dict[str, object]:
    words = ["generate", PLAN, PROMPT, "--max-tokens", str(LONG), "--temperature", "0", "--json"]
    show(*words)
    done = subprocess.run([EDGESPLIT, *words], check=True, cwd=ROOT, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def disturbed() -> tuple[dict[str, object], str, float]:
    """Generate in a thread; kill a runner when a few tokens are out."""
    answers: list[dict[str, object]] = []
    start = time.monotonic()
    before = tokens_so_far()
    asking = threading.Thread(target=lambda: answers.append(generate()))
    asking.start()
    while tokens_so_far() < before + LONG // 10 and asking.is_alive():
        time.sleep(0.05)
    victim = next(name for name in ("shelf", "attic") if (WORK / name / "demo" / "runner.pid").exists())
    pid = int((WORK / victim / "demo" / "runner.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    say.print(f"[green]$[/] kill -9 {pid}   [dim]# the runner of {victim}, in mid-answer[/]")
    asking.join()
    if not answers:
        raise subprocess.CalledProcessError(1, ["edgesplit", "generate"])
    return answers[0], victim, time.monotonic() - start


def tokens_so_far() -> int:
    import urllib.request

    with urllib.request.urlopen("http://127.0.0.1:8099/healthz", timeout=5) as response:
        return int(json.load(response)["tokens"])


@contextmanager
def watching() -> Iterator[list[dict[str, object]]]:
    """`edgesplit watch` in the background; yields its events, which are shown as they come."""
    show("watch", PLAN, "--json", "&")
    process = subprocess.Popen([EDGESPLIT, "watch", PLAN, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    events: list[dict[str, object]] = []
    reading = threading.Thread(target=listen, args=(process, events))
    reading.start()
    try:
        wait_for(events, "reading")
        yield events
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        reading.join()


def listen(process: subprocess.Popen[str], events: list[dict[str, object]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        events.append(event)
        if event["event"] != "reading":
            say.print(f"  [magenta]watch:[/] {event['event']}: {event['text']}")


def wait_for(events: list[dict[str, object]], kind: str) -> None:
    deadline = time.monotonic() + 90
    while not any(event["event"] == kind for event in events):
        if time.monotonic() > deadline:
            raise subprocess.CalledProcessError(1, ["edgesplit", "watch", f"(no event {kind!r} within 90 s)"])
        time.sleep(0.1)


@contextmanager
def cleared() -> Iterator[None]:
    """Whatever an earlier demo left is taken down first, and this one in the end."""
    subprocess.run([EDGESPLIT, "down", PLAN, "--yes"], check=True, cwd=ROOT, capture_output=True)
    try:
        yield
    finally:
        chapter("Take everything down.")
        run("down", PLAN, "--yes")


if __name__ == "__main__":
    sys.exit(main())
