"""The verbs put together, and the one handler that prints errors."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from edgesplit.cli import deploy, down, generate, plan, profile, status, unlock, watch
from edgesplit.errors import EdgesplitError


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgesplitError as error:
            _say("error", error.message)
            if error.hint:
                _say("hint", error.hint)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _say("error", "interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # the CLI's top handler
            if os.environ.get("EDGESPLIT_DEBUG") or type(error).__module__.startswith(("click", "typer")):
                raise
            _say("error", f"{type(error).__name__}: {error}")
            _say("hint", "this is an error in edgesplit; EDGESPLIT_DEBUG=1 shows where")
            raise typer.Exit(1) from None


def _say(kind: str, text: str) -> None:
    style = {"error": typer.colors.RED, "hint": typer.colors.CYAN}[kind]
    mark = typer.style(f"{kind}:", fg=style, bold=True)
    lines = text.splitlines() or [""]
    typer.echo("\n".join([f"{mark} {lines[0]}", *(f"{'':{len(kind) + 2}}{line}" for line in lines[1:])]), err=True)


app = typer.Typer(
    cls=_Group,
    name="edgesplit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Split a Hugging Face model over the machines you have, keep it exact, and keep it answering.

    [bold]edgesplit profile PLAN[/bold]  measure the hosts and the links between them
    [bold]edgesplit plan PLAN[/bold]     find the best split, show it, save it
    [bold]edgesplit deploy PLAN[/bold]   bring it up
    [bold]edgesplit watch PLAN[/bold]    keep it up
    """,
    epilog="PLAN is a YAML file such as plans/demo.yaml; it names the inventory of hosts.",
)

app.command("profile", epilog="Example: edgesplit profile plans/demo.yaml")(profile.run)
app.command("plan", epilog="Example: edgesplit plan plans/demo.yaml --json | jq .costs")(plan.run)
app.command("deploy", epilog="Example: edgesplit deploy plans/demo.yaml -y")(deploy.run)
app.command("status", epilog="Example: edgesplit status plans/demo.yaml")(status.run)
app.command("generate", epilog="Example: edgesplit generate plans/demo.yaml 'A stage is' --max-tokens 40")(generate.run)
app.command("watch", epilog="Example: edgesplit watch plans/demo.yaml --json >> events.jsonl")(watch.run)
app.command("down", epilog="Example: edgesplit down plans/demo.yaml -y")(down.run)
app.command("unlock", epilog="Example: edgesplit unlock plans/demo.yaml")(unlock.run)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"edgesplit {installed('edgesplit')}")
        raise typer.Exit
