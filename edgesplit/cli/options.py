"""The arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan file (YAML).", show_default=False)]
Inventory = Annotated[
    Path | None,
    typer.Option("--inventory", "-i", help="The inventory file; the plan names one otherwise.", show_default=False),
]
AcceptNew = Annotated[
    bool,
    typer.Option(
        "--accept-new-host-keys",
        help="Believe a host that nobody knows yet, and remember its key; a changed key is refused all the same.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the steps, do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, talk only on standard error.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
