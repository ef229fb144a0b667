"""The verbs put together, and the one handler that prints errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from edgesplit.cli import (
    chat,
    check,
    deploy,
    down,
    evaluate,
    generate,
    history,
    init,
    keys,
    lab,
    plan,
    profile,
    rollback,
    rotate,
    simulate,
    status,
    unlock,
    watch,
)
from edgesplit.errors import EdgesplitError


class _Group(TyperGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _told():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong in here is told in one form, and becomes an exit code."""
    try:
        yield
    except EdgesplitError as error:
        _end(error.message, error.hint, error.exit_code)
    except TyperException as error:  # a verb, option or argument that does not exist, or has no such value
        text = error.format_message()
        if not text:  # no arguments at all: the help was shown instead
            raise
        where = getattr(getattr(error, "ctx", None), "command_path", "edgesplit")
        _end(text, f"{where} --help", error.exit_code)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            typer.echo(err=True)  # behind the ^C
        _end("interrupted", "", 130)
    except (typer.Exit, typer.Abort, BrokenPipeError):  # typer ends the process quietly
        raise
    except Exception as error:  # the CLI's top handler
        if os.environ.get("EDGESPLIT_DEBUG"):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space" if full else "this is an error in edgesplit; EDGESPLIT_DEBUG=1 shows where"
        _end(f"{type(error).__name__}: {error}", hint, 1)


def _end(error: str, hint: str, code: int) -> None:
    _say("error", error)
    if hint:
        _say("hint", hint)
    raise typer.Exit(code) from None


def _say(kind: str, text: str) -> None:
    style = {"error": typer.colors.RED, "hint": typer.colors.CYAN}[kind]
    plain = bool(os.environ.get("NO_COLOR"))
    mark = f"{kind}:" if plain else typer.style(f"{kind}:", fg=style, bold=True)
    lines = text.splitlines() or [""]
    typer.echo("\n".join([f"{mark} {lines[0]}", *(f"{'':{len(kind) + 2}}{line}" for line in lines[1:])]), err=True)


app = typer.Typer(
    cls=_Group,
    name="edgesplit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Split a Hugging Face model over the machines you have, keep it exact, and keep it answering.

    [bold]edgesplit init[/bold]          write a first inventory and plan
    [bold]edgesplit check PLAN[/bold]    can the hosts be used, and what do they lack
    [bold]edgesplit profile PLAN[/bold]  measure the hosts and the links between them
    [bold]edgesplit plan PLAN[/bold]     find the best split, show it, save it
    [bold]edgesplit deploy PLAN[/bold]   bring it up
    [bold]edgesplit watch PLAN[/bold]    keep it up
    """,
    epilog="PLAN is a YAML file such as plans/demo.yaml; it names the inventory of hosts.",
)

app.command("init", epilog="Example: edgesplit init --ansible hosts.yaml")(init.run)
app.command("check", epilog="Example: edgesplit check plans/demo.yaml")(check.run)
app.command("profile", epilog="Example: edgesplit profile plans/demo.yaml")(profile.run)
app.command("plan", epilog="Example: edgesplit plan plans/demo.yaml --json | jq .costs")(plan.run)
app.command("deploy", epilog="Example: edgesplit deploy plans/demo.yaml -y")(deploy.run)
app.command("rollback", epilog="Example: edgesplit rollback plans/demo.yaml --dry-run")(rollback.run)
app.command("rotate", epilog="Example: edgesplit rotate plans/demo.yaml -y")(rotate.run)
app.command("status", epilog="Example: edgesplit status plans/demo.yaml")(status.run)
app.command("generate", epilog="Example: edgesplit generate plans/demo.yaml 'A stage is' --max-tokens 40")(generate.run)
app.command("chat", epilog="Example: edgesplit chat plans/demo.yaml --system 'Answer briefly.'")(chat.run)
app.command("watch", epilog="Example: edgesplit watch plans/demo.yaml --json >> events.jsonl")(watch.run)
app.command("history", epilog="Example: edgesplit history plans/demo.yaml -n 50")(history.run)
app.command("down", epilog="Example: edgesplit down plans/demo.yaml -y")(down.run)
app.command("unlock", epilog="Example: edgesplit unlock plans/demo.yaml")(unlock.run)
app.add_typer(keys.app, name="keys")
app.add_typer(lab.app, name="lab")
app.command("simulate", epilog="Example: edgesplit simulate --hosts 10,100,1000 --json")(simulate.run)
app.command("evaluate", epilog="Example: edgesplit evaluate plans/evaluation/emergency.yaml --repeat 2")(evaluate.run)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"edgesplit {installed('edgesplit')}")
        raise typer.Exit
