"""Every shell command edgesplit ever sends to a host, as a value.

A Command is built here, quoted here, and compared as a string in the tests; hosts/host.py and hosts/ssh.py run it.
Must not know: how a command travels, nor what its output means.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
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
    return Command(
        f"write {target}",
        f'umask 077 && f={path(target)} && p="$f.part" && mkdir -p "$(dirname "$f")" && trap \'rm -f "$p"\' EXIT && '
        'cat > "$p" && got=$(sha256sum < "$p" | cut -c1-64) && '
        f'{{ [ "$got" = {sha256} ] || {{ echo "content hash $got is not {sha256}" >&2; exit 65; }}; }} && '
        f'chmod {mode} "$p" && mv "$p" "$f"',
    )


NO_PROGRAM = (126, 127)  # as sh says that a program cannot be run, or is not there
DAMAGED, CUT = 65, 75  # statuses of `receive_all`: the content is another one; the input ended too early


def receive_all(python: str, folder: str, archive: str, files: Sequence[tuple[str, str, int, int]]) -> Command:
    """Standard input becomes these files of a deployment's folder: (path, sha256, size, how much of it is there).

    As `receive` promises, but for many, fast (Python hashes while it writes), and a file that is cut off is kept as
    PATH.part, to go on from there. The runner archive is there already.
    """
    arguments = json.dumps({"files": files}, separators=(",", ":"))
    return Command(
        f"write {len(files)} files into {folder}",
        f"cd {path(folder)} && {path(python)} {_words(archive, 'receive', arguments)}",
    )


def give(python: str, folder: str, archive: str, arguments: Mapping[str, Any]) -> Command:
    """Send sealed files of a deployment's folder to another host; standard input is the token."""
    words = _words(archive, "give", json.dumps(arguments, separators=(",", ":"), sort_keys=True))
    return Command(f"give files of {folder}", f"cd {path(folder)} && {path(python)} {words}")


def take(python: str, folder: str, archive: str, arguments: Mapping[str, Any]) -> Command:
    """Receive them; standard input is keys and token."""
    words = _words(archive, "take", json.dumps(arguments, separators=(",", ":"), sort_keys=True))
    return Command(f"take files into {folder}", f"cd {path(folder)} && {path(python)} {words}")


def swallow() -> Command:
    return Command("take data", "cat > /dev/null")


def tidy(python: str, folder: str, archive: str, arguments: Mapping[str, Any]) -> Command:
    """Remove files of a deployment's folder that are of no more use; see `tidy` of the runner's arrivals."""
    words = _words(archive, "tidy", json.dumps(arguments, separators=(",", ":"), sort_keys=True))
    return Command(f"tidy {folder}", f"cd {path(folder)} && {path(python)} {words}")


def survey(folder: str) -> Command:
    """What is in a deployment's folder: "." and then its files, two levels deep, one a line; nothing without it.

    Behind the name of a file that did not arrive whole, PATH.part, stands how many bytes of it are there.
    """
    return Command(
        f"look into {folder}",
        f"if cd {path(folder)} 2>/dev/null; then echo .; find . -maxdepth 2 -type f | sed 's,^[.]/,,' | "
        'while IFS= read -r f; do case "$f" in *.part) echo "$f $(wc -c < "$f")";; *) echo "$f";; esac; done; fi',
    )


def read(file: str) -> Command:
    return Command(f"read {file}", f"cat {path(file)}")


def read_if_there(file: str) -> Command:
    return Command(f"read {file}", f"if [ -e {path(file)} ]; then cat {path(file)}; fi")


def notes(folder: str) -> Command:
    """Of each file in a folder one line: its name, and the one line that it holds. Nothing without the folder."""
    return Command(
        f"read the notes in {folder}",
        f"if cd {path(folder)} 2>/dev/null; then for f in *; do "
        '[ -f "$f" ] || continue; printf \'%s %s\\n\' "$f" "$(head -n 1 "$f")"; done; fi',
    )


def free_space(folder: str) -> Command:
    """Free bytes of the file system that `folder` is or will be on (its nearest existing parent)."""
    return Command(
        f"free space of {folder}",
        f'd={path(folder)}; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; '
        'df -Pk "$d" | awk \'NR==2 {printf "%.0f\\n", $4*1024}\'',
    )


def remove(*files: str) -> Command:
    return Command("remove files", "rm -rf " + " ".join(path(file) for file in files))


def clear(folder: str, but: Sequence[str]) -> Command:
    """Remove all that is in a folder but what bears these names."""
    names = " ".join(f"! -name {shlex.quote(name)}" for name in but)
    return Command(f"clear {folder}", f"find {path(folder)} -mindepth 1 -maxdepth 1 {names} -exec rm -rf {{}} +")


def remove_empty(folder: str) -> Command:
    """Take away a folder that holds nothing any more; a folder with something in it stays."""
    return Command(f"remove {folder} if empty", f"rmdir {path(folder)} 2>/dev/null || true")


LOCKED = 73  # the status of `lock` when somebody holds it; EX_CANTCREAT of sysexits.h
LOCK_HINT = "wait for it, or if that controller is gone: edgesplit unlock"

# --- lock and audit ---------------------------------------------------------------------------------------------------


def lock(folder: str, note: str, ours: Collection[str] = ()) -> Command:
    """Take the lock: a folder one mkdir makes, with a note a person can read. Status LOCKED when somebody holds it, but
    with one of `ours` for a note: that one was left by us."""
    held, mine = path(f"{folder}/lock"), "|".join(map(shlex.quote, sorted(ours)))
    take = f"printf '%s\\n' {shlex.quote(note)} > {held}/note"
    again = f'case "$(cat {held}/note 2>/dev/null)" in {mine}) {take}; exit;; esac; ' if ours else ""
    return Command(
        f"lock {folder}",
        f"umask 077 && mkdir -p {path(folder)} && if why=$(mkdir {held} 2>&1); then {take}; "
        f"elif [ -d {held} ]; then {again}cat {held}/note >&2; exit {LOCKED}; "
        "else printf '%s\\n' \"$why\" >&2; exit 1; fi",
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


def audited(folder: str, line: str, command: Command) -> Command:
    """The same command, and a line about it in the host's audit log before; a full disk does not stop it."""
    return Command(command.title, f"( {audit(folder, line).line} ); {command.line}")


def append(file: str, most: int) -> Command:
    """Add standard input to a log, and keep no more than its last lines."""
    log = path(file)
    return Command(
        f"write {file}",
        f'umask 077 && f={log} && cat >> "$f" && if [ "$(wc -l < "$f")" -gt {most + most // 10} ]; then '
        f'tail -n {most} "$f" > "$f.new" && mv "$f.new" "$f"; fi',
    )


def oust(folder: str) -> Command:
    """End the channel through which somebody watches, and print who it was; nothing where nobody does."""
    return Command(
        "end the watch",
        f'f={path(folder + "/watcher")}; p=$(sed -n 2p "$f" 2>/dev/null); '
        "case \"$(tr '\\0' ' ' < /proc/${p:-0}/cmdline 2>/dev/null)\" in *' stream '*) "
        'head -n 1 "$f"; kill $p;; esac',
    )


# --- the runner -------------------------------------------------------------------------------------------------------


def clock() -> Command:
    """Seconds since 1970, as the host counts them: the least that a login is good for."""
    return Command("read the clock", "date +%s")


def python_version(python: str) -> Command:
    """Of any Python, however old."""
    script = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    return Command(f"run {python}", f"{path(python)} -c {shlex.quote(script)}")


_NEWEST, _OLDEST = 14, 10  # minors of Python 3 that are looked for beside python3
_MARKS = """
import json, os, platform, sys
print(json.dumps({
    "os_name": os.name, "sys_platform": sys.platform, "platform_machine": platform.machine(),
    "platform_system": platform.system(), "platform_release": platform.release(),
    "platform_version": platform.version(), "platform_python_implementation": platform.python_implementation(),
    "implementation_name": sys.implementation.name, "implementation_version": platform.python_version(),
    "python_version": "%d.%d" % sys.version_info[:2], "python_full_version": platform.python_version(),
    "libc": " ".join(platform.libc_ver()), "executable": sys.executable,
    "gpu": any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/kfd")))}))
"""


def find_python(named: str | None) -> Command:
    """What there is to make an environment from, as JSON: what PEP 508 calls its marks, and a little more. The Python
    that was named, or the first that is new enough."""
    names = [named] if named else ["python3", *(f"python3.{minor}" for minor in range(_NEWEST, _OLDEST - 1, -1))]
    ask = f"import sys; sys.exit(sys.version_info < (3, {_OLDEST}))"
    return Command(
        "find a Python",
        f'for p in {" ".join(path(name) for name in names)}; do if "$p" -c {shlex.quote(ask)} 2>/dev/null; '
        f'then exec "$p" -c {shlex.quote(_MARKS)}; fi; done; exit {NO_PROGRAM[-1]}',
    )


def environment_there(folder: str) -> Command:
    """Is this environment there, and does its Python run? Prints yes or nothing; yes counts as use of it."""
    python = path(f"{folder}/bin/python")
    return Command(
        f"look for {folder}", f"if [ -x {python} ] && {python} -c '' && touch {path(folder)}; then echo yes; fi"
    )


def install(python: str, folder: str, installer: str, arguments: Mapping[str, Any]) -> Command:
    """Make an environment in this folder of environments; a line of JSON for each thing that happens."""
    words = _words(installer, json.dumps(arguments, separators=(",", ":"), sort_keys=True))
    return Command("install packages", f"cd {path(folder)} && {path(python)} {words}")


HELD = "yours"
_HOLD = f"""
import fcntl, sys, time
lock = open("lock", "a+")
while True:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        lock.seek(0)
        print(lock.readline().strip() or "somebody", flush=True)
        time.sleep(0.5)
lock.truncate(0)
lock.write(sys.argv[1] + "\\n")
lock.flush()
print("{HELD}", flush=True)
while True:
    time.sleep(0.2)
    print(flush=True)
"""


def hold(python: str, folder: str, note: str) -> Command:
    """Hold the lock of a folder of environments as long as somebody reads what this prints: until it is had, who has
    it, then HELD, then empty lines. The kernel drops it with the process, which ends with its connection."""
    place = path(folder)
    line = f"umask 077 && mkdir -p {place} && cd {place} && exec {path(python)} -c {_words(_HOLD, note)} 2>/dev/null"
    return Command(f"lock {folder}", line)


def remove_environments(work: str, folder: str) -> Command:
    """Remove all environments below `work`, unless something else is there still: then its names are printed."""
    return Command(
        f"remove {folder}",
        f'if cd {path(work)} 2>/dev/null; then if [ -n "$(ls)" ]; then ls; else rm -rf {path(folder)}; fi; fi',
    )


def measure(python: str, verb: str, arguments: Mapping[str, Any]) -> Command:
    """Standard input is the runner archive: run one of its measuring verbs from a temporary folder, leave nothing."""
    return Command(
        f"measure ({verb})",
        'umask 077 && t=$(mktemp -d) && trap \'rm -rf "$t"\' EXIT && trap "exit 1" HUP INT TERM && '
        f'cat > "$t/runner.pyz" && {path(python)} "$t/runner.pyz" '
        + _words(verb, json.dumps(arguments, sort_keys=True)),
    )


def serve(python: str, archive: str, arguments: Sequence[str]) -> str:
    """What becomes the runner, in its folder."""
    words = f"{path(python)} {_words(archive)} serve {_words(*arguments)}"
    return f"env PYTHONUNBUFFERED=1 {words} < /dev/null >> runner.log 2>&1"


def start_runner(python: str, folder: str, archive: str, arguments: Sequence[str]) -> Command:
    """Start the runner detached from this login; leave its process id in runner.pid and print it."""
    return Command(
        "start the runner",
        f"umask 077 && cd {path(folder)} && "
        f"{{ setsid nohup {serve(python, archive, arguments)} & echo $! | tee runner.pid; }}",
    )


def stop_runner(folder: str, host: str, deployment: str, seconds: int = 10) -> Command:
    """Ask the runner of this folder to end, then make it; a process id that is not its own any more is left alone."""
    mine = shlex.quote(f" serve --host {host} --deployment {deployment} ")
    alive = f"case \"$(tr '\\0' ' ' < /proc/$p/cmdline 2>/dev/null)\" in *{mine}*) true;; *) false;; esac"
    return Command(
        "stop the runner",
        f"p=$(cat {path(folder + '/runner.pid')} 2>/dev/null) || exit 0; {alive} || exit 0; kill -TERM $p; "
        f"i=0; while [ $i -lt {seconds * 10} ] && {alive}; do sleep 0.1; i=$((i+1)); done; "
        f"if {alive}; then kill -KILL $p; fi; rm -f {path(folder + '/runner.pid')}",
    )


def control(python: str, folder: str, archive: str, timeout: float, wait: int = 0) -> Command:
    """Standard input is one control message (JSON); the runner's answer (JSON) is the output.

    `timeout`: seconds the runner may think; `wait`: seconds one that has just been started is given to come up.
    """
    words = _words(archive, "control", "--timeout", f"{timeout:g}", *(["--wait", str(wait)] if wait else []))
    return Command("control the runner", f"cd {path(folder)} && {path(python)} {words}")


def log_tail(folder: str, lines: int = 20) -> Command:
    return Command("read the runner's log", f"tail -n {lines} {path(folder + '/runner.log')} 2>/dev/null || true")
