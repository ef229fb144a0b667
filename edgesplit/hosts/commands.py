"""Every shell command edgesplit ever sends to a host, as a value.

A Command is built here, quoted here, and compared as a string in the tests; hosts/host.py and hosts/ssh.py run it.
Must not know: how a command travels, nor what its output means.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """`line` is what /bin/sh gets; `title` is what an error message calls it."""

    title: str
    line: str


def path(text: str) -> str:
    """A path, quoted for sh; a leading ~/ stands for the home folder of the login."""
    if text == "~":
        return '"$HOME"'
    if text.startswith("~/"):
        return '"$HOME"/' + shlex.quote(text[2:])
    return shlex.quote(text)


def _words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


# --- folders and files ------------------------------------------------------------------------------------------------


def receive(target: str, sha256: str, mode: str = "600") -> Command:
    """Standard input becomes the file `target`, whole and verified, or nothing changes.

    No file is ever seen half written: bytes go to `target`.part, are checked against the hash, and are renamed.
    """
    file, part = path(target), path(target + ".part")
    return Command(
        f"write {target}",
        f"umask 077 && mkdir -p \"$(dirname {file})\" && trap 'rm -f {part}' EXIT && cat > {part} && "
        f'got=$(sha256sum {part} | cut -c1-64) && '
        f'{{ [ "$got" = {sha256} ] || {{ echo "content hash $got is not {sha256}" >&2; exit 65; }}; }} && '
        f"chmod {mode} {part} && mv {part} {file}",
    )


def listing(folder: str) -> Command:
    """Names in a folder, one a line; nothing when it is not there."""
    return Command(f"list {folder}", f"ls -1 {path(folder)} 2>/dev/null || true")


def read(file: str) -> Command:
    return Command(f"read {file}", f"cat {path(file)}")


def read_if_there(file: str) -> Command:
    return Command(f"read {file}", f"if [ -e {path(file)} ]; then cat {path(file)}; fi")


def free_space(folder: str) -> Command:
    """Free bytes of the file system that `folder` is or will be on (its nearest existing parent)."""
    return Command(
        f"free space of {folder}",
        f'd={path(folder)}; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; '
        "df -Pk \"$d\" | awk 'NR==2 {printf \"%.0f\\n\", $4*1024}'",
    )


def remove(*files: str) -> Command:
    return Command("remove files", "rm -rf " + " ".join(path(file) for file in files))


def remove_empty(folder: str) -> Command:
    """Take away a folder that holds nothing any more; a folder with something in it stays."""
    return Command(f"remove {folder} if empty", f"rmdir {path(folder)} 2>/dev/null || true")


# --- lock and audit ---------------------------------------------------------------------------------------------------


def lock(folder: str, note: str) -> Command:
    """Take the lock: a folder one mkdir makes, with a note a person can read. Status 73 when somebody holds it."""
    held = f"{folder}/lock"
    return Command(
        f"lock {folder}",
        f"umask 077 && mkdir -p {path(folder)} && if mkdir {path(held)} 2>/dev/null; "
        f"then printf '%s\\n' {shlex.quote(note)} > {path(held + '/note')}; "
        f"else cat {path(held + '/note')} >&2; exit 73; fi",
    )


def unlock(folder: str) -> Command:
    return Command(f"unlock {folder}", f"rm -rf {path(folder + '/lock')}")


def audit(folder: str, line: str) -> Command:
    """Leave a dated line in the host's audit log."""
    return Command(
        "write the audit log",
        f"umask 077 && mkdir -p {path(folder)} && "
        f"printf '%s %s\\n' \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\" {shlex.quote(line)} >> {path(folder + '/audit.log')}",
    )


# --- the runner -------------------------------------------------------------------------------------------------------


def measure(python: str, verb: str, arguments: Mapping[str, Any]) -> Command:
    """Standard input is the runner archive: run one of its measuring verbs from a temporary folder, leave nothing."""
    return Command(
        f"measure ({verb})",
        "umask 077 && t=$(mktemp -d) && trap 'rm -rf \"$t\"' EXIT && cat > \"$t/runner.pyz\" && "
        f'{path(python)} "$t/runner.pyz" {_words(verb, json.dumps(arguments, sort_keys=True))}',
    )


def start_runner(python: str, folder: str, archive: str, arguments: Sequence[str]) -> Command:
    """Start the runner detached from this login; print its process id."""
    return Command(
        "start the runner",
        f"umask 077 && cd {path(folder)} && {{ PYTHONUNBUFFERED=1 setsid nohup {path(python)} {_words(archive)} serve "
        f"{_words(*arguments)} < /dev/null >> runner.log 2>&1 & }} && echo $!",
    )


def control(python: str, folder: str, archive: str) -> Command:
    """Standard input is one control message (JSON); the runner's answer (JSON) is the output."""
    return Command("control the runner", f"cd {path(folder)} && {path(python)} {_words(archive)} control")


def log_tail(folder: str, lines: int = 20) -> Command:
    return Command("read the runner's log", f"tail -n {lines} {path(folder + '/runner.log')} 2>/dev/null || true")
