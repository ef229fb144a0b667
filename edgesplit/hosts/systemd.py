"""A runner, or a watch, as a unit of systemd's user manager, so that it comes back after a reboot: the unit, and the
commands.

Must not know: how a command travels, what a runner does.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from edgesplit.hosts.commands import Command, path, serve

# Where systemd looks, and how its manager is reached from a login that no session was made for.
_PLACE = '"${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user"'
_REACH = 'export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"'
_LINGERS = '[ -e "/var/lib/systemd/linger/$(id -un)" ]'
LINGER_HINT = "on the host: sudo loginctl enable-linger, or its services end with the login"
NO_LINGER = 77  # EX_NOPERM of sysexits.h


def unit_name(host: str, deployment: str) -> str:
    return f"edgesplit-{deployment}-{host}.service"


def unit(python: str, folder: str, archive: str, arguments: Sequence[str]) -> str:
    """Its text. Started again when it dies, five seconds later, for as long as it is wanted."""
    script = f"umask 077 && cd {path(folder)} && echo $$ > runner.pid && exec {serve(python, archive, arguments)}"
    return f"""[Unit]
Description=edgesplit runner in {folder.replace("%", "%%")}
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/sh -c {_quoted(script)}
Restart=on-failure
RestartSec=5
TimeoutStopSec=15

[Install]
WantedBy=default.target
"""


def watch_unit(deployment: str, words: Sequence[str], folder: str) -> str:
    """A watch that is started again 15 seconds after it failed: what is wrong may pass, and another watcher may go. Not
    where plan or checkpoint are wrong. Stopped as by Ctrl-C, which leaves the ring serving."""
    return f"""[Unit]
Description=edgesplit watches {deployment}
StartLimitIntervalSec=0

[Service]
WorkingDirectory={folder.replace("%", "%%")}
ExecStart={" ".join(map(_quoted, words))}
KillSignal=SIGINT
TimeoutStopSec=30
Restart=on-failure
RestartSec=15
RestartPreventExitStatus=2 3

[Install]
WantedBy=default.target
"""


def _quoted(script: str) -> str:
    """As systemd reads a word of a command line: C's escapes, % for specifiers, $ for variables."""
    escaped = script.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def start(name: str, text: str) -> Command:
    """Write the unit and start it, now and at every boot. Status NO_LINGER where the user's services end with the
    login, and the login may not change that."""
    return Command(
        f"start {name}",
        f"{_REACH}; {_LINGERS} || loginctl enable-linger >/dev/null 2>&1 || {{ echo 'services end with the login' >&2; "
        f"exit {NO_LINGER}; }}; mkdir -p {_PLACE} && printf %s {shlex.quote(text)} > {_PLACE}/{shlex.quote(name)} && "
        f"systemctl --user daemon-reload && systemctl --user --quiet enable {shlex.quote(name)} && "
        f"systemctl --user restart {shlex.quote(name)}",
    )


def stop(name: str) -> Command:
    """Stop it and forget it; nothing where there is no such unit."""
    word = shlex.quote(name)
    return Command(
        f"stop {name}",
        f'u={_PLACE}/{word}; [ -e "$u" ] || exit 0; {_REACH}; systemctl --user --quiet disable --now {word}; '
        'rm -f "$u"; systemctl --user daemon-reload',
    )


def look() -> Command:
    """Why no service can be had there; nothing where one can."""
    return Command(
        "look for systemd",
        f"{_REACH}; if ! command -v systemctl >/dev/null; then echo 'there is no systemctl'; "
        "elif ! systemctl --user show-environment >/dev/null 2>&1; then echo 'no user manager of systemd answers'; "
        f"elif ! {_LINGERS}; then echo 'its services end with the login'; fi",
    )
