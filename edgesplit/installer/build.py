"""Make a Python environment on this host: packages by pip, which lies in the archive beside this module.

    python3 installer.pyz ARGUMENTS     in the folder of all environments; prints a line of JSON for each thing it does

An environment is made aside, tried, and renamed: one that has its name is whole. Whoever comes while another one makes
it waits for that. Killed half way, it is begun again; what was fetched is not fetched twice. Standard library only.

Must not know: what the packages are for, where they come from (requirements.txt says), the controller.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

TROUBLE = 1  # exit status, where it cannot be made
IDLE = 7 * 86400.0  # seconds after which an environment that nothing runs from is removed
BREATH = 5.0  # seconds between two signs of life
TOLD = 8  # last lines of pip that are told when it fails
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_DOING = re.compile(r"(Collecting|Downloading|Processing|Installing)\b(?: collected packages: (?:.*, )?)?\s*(\S*)")
_CONFIG = "pyvenv.cfg"  # an environment has it
Run = Callable[..., None]


class Failed(Exception):
    """It cannot be made, because ..."""


def main() -> int:
    os.umask(0o077)
    arguments = json.loads(sys.argv[1])
    try:
        with _alone() as lock:
            build(arguments, lock)
    except Failed as error:
        print(error, file=sys.stderr)
        return TROUBLE
    except OSError as error:  # also when nobody listens any more
        with contextlib.suppress(OSError):
            print(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), file=sys.stderr)
        return TROUBLE
    return 0


def build(arguments: dict[str, Any], lock: int) -> None:
    """`arguments`: name (of the environment), sent (the folder of requirements.txt and perhaps wheels), wheels (are
    they there?), imports (what must work in it), bytes (that it takes). `lock`: held by what is started here, too."""
    target = Path(arguments["name"])
    if not _works(target):
        shutil.rmtree(target, ignore_errors=True)  # it did, before the system got another Python
        part = Path(f"{target}.part")
        shutil.rmtree(part, ignore_errors=True)
        _tidy(target.name, arguments["sent"])
        _room(arguments["bytes"])
        _say("making an environment")
        _venv(part)
        run = partial(_run, str(part / "bin" / "python"), lock)
        _install(run, Path(arguments["sent"]), wheels=arguments["wheels"])
        for name in arguments["imports"]:
            _say(f"trying {name}")
            run(["-c", f"import {name}"], f"{name} is installed, but does not work here")
        part.rename(target)
    shutil.rmtree(arguments["sent"], ignore_errors=True)
    shutil.rmtree("fetched", ignore_errors=True)


def _works(environment: Path) -> bool:
    try:
        return (
            subprocess.run(
                [environment / "bin" / "python", "-I", "-c", ""], capture_output=True, check=False
            ).returncode
            == 0
        )
    except OSError:
        return False


@contextlib.contextmanager
def _alone() -> Iterator[int]:
    """A lock that goes with its processes; its descriptor."""
    with open("lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _say("waiting for another installation on this host")
                time.sleep(BREATH / 10)
        yield file.fileno()


def _venv(folder: Path) -> None:
    """Without pip, so that Debian's package python3-venv is not needed."""
    try:
        import venv
    except ImportError:
        raise Failed(f"{sys.executable} has no module venv: it is not all of Python") from None
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)


def _room(need: int) -> None:
    free = shutil.disk_usage(".").free
    if free < need:
        raise Failed(f"No space left on device: it takes {_size(need)}, and {_size(free)} are free")


def _tidy(name: str, sent: str) -> None:
    """Remove environments that are of no more use, and what a kill left of others."""
    used = {_environment(process) for process in Path("/proc").glob("[0-9]*")}
    for folder in Path.cwd().iterdir():
        idle = folder.suffix == ".part" or time.time() - _last_used(folder) > IDLE
        ours = (folder / _CONFIG).exists() or folder.name.startswith("sent-")
        if ours and folder.name not in (name, sent) and str(folder) not in used and idle:
            _say(f"removing {folder.name}, which is used no more")
            shutil.rmtree(folder, ignore_errors=True)


def _last_used(folder: Path) -> float:
    """When it was made, or its Python started for the last time: that reads pyvenv.cfg, of which most systems take note
    once a day."""
    config = folder / _CONFIG
    return max(folder.stat().st_mtime, config.stat().st_atime if config.exists() else 0.0)


def _environment(process: Path) -> str:
    """The one that a process runs from; "" where that cannot be seen."""
    try:
        program = (process / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
        return str(Path(program).parents[1].resolve())
    except (OSError, IndexError):
        return ""


def _install(run: Run, sent: Path, *, wheels: bool) -> None:
    scratch = Path("fetched", "tmp").absolute()  # /tmp of a small board is in its memory
    scratch.mkdir(parents=True, exist_ok=True)
    words = [f"{os.path.abspath(sys.argv[0])}/pip", "install", "--no-input", "--disable-pip-version-check"]
    words += ["--progress-bar", "raw", "--only-binary", ":all:", "--no-warn-script-location"]
    words += ["--root-user-action", "ignore", "--cache-dir", "fetched", "--requirement", str(sent / "requirements.txt")]
    words += ["--no-index", "--no-deps", *map(str, sorted(sent.glob("wheels/*.whl")))] if wheels else []
    run(words, "pip could not install the packages", TMPDIR=str(scratch))


def _run(python: str, lock: int, words: list[str], trouble: str, **environment: str) -> None:
    """Until it ends, telling of it; it ends with us. Raises Failed."""
    process = subprocess.Popen(
        [python, "-I", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        env={**os.environ, **environment},
        pass_fds=[lock],
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - asked for above
    with process:
        try:
            said = _follow(process.stdout.fileno())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        died = f" (signal {-process.returncode})" if process.returncode < 0 else ""
        raise Failed(f"{said}\n{trouble}{died}: {said.rpartition(chr(10))[2] or 'it said nothing'}")


def _follow(source: int) -> str:
    """Tell of what pip does. What it said last."""
    said: list[str] = []
    doing = "working"
    for line in _lines(source):
        found, part = _DOING.match(line.strip()), _PROGRESS.match(line)
        if found:
            doing = " ".join(found.groups()).lower()
        if part:
            _say(doing, int(part[1]), int(part[2]))
        else:
            said = [*said, line][-TOLD:] if line else said
            _say(doing)
    return "\n".join(said).strip()


def _lines(source: int) -> Iterator[str]:
    """Lines as they come; an empty one where nothing comes for a while."""
    rest = b""
    while True:
        if not select.select([source], (), (), BREATH)[0]:
            yield ""
            continue
        data = os.read(source, 2**16)
        *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in (lines if data else [rest]) if line.strip())
        if not data:
            return


class _Voice:
    """Tells of the same thing ten times a second at most."""

    def __init__(self) -> None:
        self._last, self._at = "", 0.0

    def __call__(self, text: str, done: int = 0, of: int = 0) -> None:
        now = time.monotonic()
        if text != self._last or now - self._at > 0.1:
            self._last, self._at = text, now
            print(json.dumps({"doing": text, "done": done, "of": of}), flush=True)


_say = _Voice()


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
