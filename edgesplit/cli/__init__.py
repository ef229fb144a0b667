"""The command line: one file per verb; each parses, calls, renders, and decides nothing.

Must not know, at import: torch, pydantic, paramiko. `edgesplit --help` must be quick.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Whoever is told to end, or loses the terminal, puts things back as after Ctrl-C; nohup is respected."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        from edgesplit.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    app()
