"""What OpenSSH's configuration says of a host: keyword -> values, asked of `ssh -G`; and the names it lists.

`ssh -G` is asked, so that ~/.ssh/config means here what it means there: Include, Match, canonical names. Without an ssh
program, paramiko reads plain Host blocks; what it would read wrongly is an error.
Must not know: what the values are good for.
"""

from __future__ import annotations

import glob
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edgesplit.errors import Unreachable
from edgesplit.inventory import SshTarget

SECONDS = 10.0  # `ssh -G` answers in 10 ms, but `Match exec` may run anything
USER_FILE = "~/.ssh/config"
INCLUDES = 16  # as deep as ssh follows Include
Settings = dict[str, list[str]]

_WORD = re.compile(r"^\s*(\w+)\s*(?:=\s*|\s+)(.*?)\s*$")


def ask(name: str, spec: SshTarget) -> Settings:
    """Keyword (in small letters) -> values. Raises Unreachable."""
    binary = shutil.which("ssh")
    return _read(name, spec) if binary is None else _ask(binary, name, spec)


def _ask(binary: str, name: str, spec: SshTarget) -> Settings:
    given = [("-F", spec.config and str(Path(spec.config).expanduser())), ("-p", spec.port), ("-l", spec.user)]
    words = [str(word) for option in given if option[1] is not None for word in option]
    words += [word for option in spec.options for word in ("-o", option)]
    try:
        done = subprocess.run(
            [binary, "-G", *words, "--", spec.host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        hint = f"look into {spec.config or USER_FILE}"
        raise Unreachable(name, f"`ssh -G {spec.host}` did not end within {SECONDS:g} s", hint) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        hint = f"mend {spec.config or USER_FILE}, or `ssh` of the host in the inventory"
        raise Unreachable(name, f"`ssh -G {spec.host}` failed: {said[0] if said else done.returncode}", hint)
    settings: Settings = {}
    for text in done.stdout.decode("utf-8", "replace").splitlines():
        keyword, _, value = text.partition(" ")
        settings.setdefault(keyword.lower(), []).append(value)
    return settings


def _read(name: str, spec: SshTarget) -> Settings:
    import paramiko

    file = Path(spec.config or USER_FILE).expanduser()
    settings: Settings = {}
    for option in spec.options:
        keyword, _, value = option.partition("=")
        settings.setdefault(keyword.strip().lower(), [value.strip()])
    with suppress(FileNotFoundError):
        for number, keyword, _ in _lines(file):
            if keyword in ("include", "match"):
                hint = "install the OpenSSH client (ssh): it reads that file as it is meant"
                raise Unreachable(name, f"{file}:{number}: {keyword.title()} is not read without an ssh program", hint)
        found = paramiko.SSHConfig.from_path(str(file)).lookup(spec.host)
        for keyword, value in found.items():
            settings.setdefault(keyword, list(value) if isinstance(value, list) else [str(value)])
    return settings


# --- the names a person may choose from -------------------------------------------------------------------------------


def aliases(file: Path | None = None) -> list[str]:
    """The names that `Host` lines of a configuration, and of what it includes, spell out; in their order."""
    start = (file or Path(USER_FILE)).expanduser()
    found = (word for text in _hosts(start, 0) for word in _split(text))
    return list(dict.fromkeys(word for word in found if not re.search(r"[*?!]", word)))


def _hosts(file: Path, depth: int) -> Iterator[str]:
    with suppress(OSError):
        for _, keyword, value in _lines(file):
            if keyword == "host":
                yield value
            elif keyword == "include" and depth < INCLUDES:
                for included in _included(value):
                    yield from _hosts(included, depth + 1)


def _included(value: str) -> Iterator[Path]:
    for word in _split(value):
        pattern = Path("~/.ssh").expanduser() / Path(word).expanduser()
        yield from (Path(path) for path in sorted(glob.glob(str(pattern))))


def _lines(file: Path) -> Iterator[tuple[int, str, str]]:
    for number, text in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
        if match := _WORD.match(text):
            yield number, match[1].lower(), match[2]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # a quote that does not end
        return text.split()
