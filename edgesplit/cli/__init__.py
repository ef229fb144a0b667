"""The command line: one file per verb; each parses, calls, renders, and decides nothing.

Must not know, at import: torch, pydantic, paramiko. `edgesplit --help` must be quick.
"""

from __future__ import annotations

from edgesplit.cli.app import app


def main() -> None:
    app()
