"""edgesplit chat: a conversation with the deployed model, over the same API any client uses."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Plan

if TYPE_CHECKING:
    from edgesplit.cli.asking import Api

HELP = "an empty line or Ctrl-D ends the chat; /new forgets what was said"


def run(
    plan: Plan,
    inventory: Inventory = None,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told first.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=1, help="Per answer; else the model's.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy; else the model's own.")] = None,
    accept_new: AcceptNew = False,
) -> None:
    """Talk with the model; it remembers what was said."""
    from edgesplit.cli.asking import Api
    from edgesplit.cli.render import talk
    from edgesplit.cli.workspace import at_entry

    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    first = [{"role": "system", "content": system}] if system else []
    said = list(first)
    with at_entry(plan, inventory, accept_new=accept_new) as (space, entry):
        talk.print(f"{space.plan.name} on {entry.name}; {HELP}", style="dim")
        api = Api(entry, space)
        while text := _line():
            if text == "/new":
                said = list(first)
                continue
            said.append({"role": "user", "content": text})
            answer = _answer(api, {**body, "messages": said})
            said.append({"role": "assistant", "content": answer})


def _line() -> str:
    """With the keys of a shell, where there is a terminal."""
    import sys

    with suppress(ImportError):
        import readline  # noqa: F401 - input() uses it where it is loaded
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _answer(api: Api, body: dict[str, Any]) -> str:
    """Shown as it comes; how fast it came is told behind it."""
    import time

    from edgesplit.cli.render import talk
    from edgesplit.units import format_time

    start, times, text, tokens = time.monotonic(), [], "", 0
    try:
        for choice in api.stream("/v1/chat/completions", {**body, "stream": True, "return_token_ids": True}):
            times.append(time.monotonic())
            piece = choice["delta"].get("content") or ""
            tokens = len(choice.get("token_ids", ())) or tokens
            text += piece
            typer.echo(piece, nl=False)
    finally:
        if text:
            typer.echo()
    if tokens > 1 and times[-1] > times[0]:
        speed = (tokens - 1) / (times[-1] - times[0])
        talk.print(
            f"{tokens} tokens, {speed:.1f} per second; the first after {format_time(times[0] - start)}", style="dim"
        )
    return text
