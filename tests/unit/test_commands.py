"""Commands are compared as strings; then each is run by this machine's /bin/sh, to show that it does what it says."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from edgesplit.errors import CommandFailed
from edgesplit.hosts import commands
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import LocalHost

NASTY = ["plain", "a b", "it's", 'say "x"', "$HOME `id` \\n", "tab\there", "häß 模型", "star*", "-dash", "end\\"]
HOST = LocalHost("here")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- as strings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("/opt/edge", "/opt/edge"),
        ("~", '"$HOME"'),
        ("~/.edgesplit", '"$HOME"/.edgesplit'),
        ("~/my files/it's", '"$HOME"/' + """'my files/it'"'"'s'"""),
        ("~user/x", "'~user/x'"),
        ("a b; rm -rf /", "'a b; rm -rf /'"),
        ("$(id)", "'$(id)'"),
    ],
)
def test_path(text: str, quoted: str) -> None:
    assert commands.path(text) == quoted


def test_lines() -> None:
    assert commands.read("~/a b").line == "cat \"$HOME\"/'a b'"
    assert commands.remove("/w/a", "~/it's").line == "rm -rf /w/a \"$HOME\"/'it'\"'\"'s'"
    assert commands.unlock("~/w").line == 'rm -rf "$HOME"/w/lock'
    assert commands.control("python3", "~/w", "run ner.pyz", 5).line == (
        "cd \"$HOME\"/w && python3 'run ner.pyz' control --timeout 5"
    )
    assert commands.log_tail("/w", 5).line == "tail -n 5 /w/runner.log 2>/dev/null || true"
    assert commands.start_runner("~/venv/bin/python", "/w", "r.pyz", ["--port", "7431", "it's"]).line == (
        'umask 077 && cd /w && { setsid nohup env PYTHONUNBUFFERED=1 "$HOME"/venv/bin/python r.pyz serve '
        "--port 7431 'it'\"'\"'s' < /dev/null >> runner.log 2>&1 & echo $! | tee runner.pid; }"
    )
    assert commands.control("~/py", "/w", "r.pyz", 2.5, wait=5).line == (
        'cd /w && "$HOME"/py r.pyz control --timeout 2.5 --wait 5'
    )
    assert commands.receive("/w/it's", "0" * 64).line == (
        'umask 077 && f=\'/w/it\'"\'"\'s\' && p="$f.part" && mkdir -p "$(dirname "$f")" && trap \'rm -f "$p"\' EXIT '
        '&& cat > "$p" && got=$(sha256sum < "$p" | cut -c1-64) && '
        f'{{ [ "$got" = {"0" * 64} ] || {{ echo "content hash $got is not {"0" * 64}" >&2; exit 65; }}; }} && '
        'chmod 600 "$p" && mv "$p" "$f"'
    )


def test_titles_name_what_failed() -> None:
    assert commands.receive("/w/x", "0" * 64).title == "write /w/x"
    assert commands.measure("python3", "link", {}).title == "measure (link)"


# --- as acts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.mark.parametrize("name", NASTY)
def test_receive_then_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / "new folder" / name
    data = os.urandom(100_000)
    HOST.run(commands.receive(str(file), sha256(data)), [data[:7], data[7:]])
    assert file.read_bytes() == data
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.parent.iterdir()] == [name]
    assert HOST.run(commands.read(str(file))) == data.decode("utf-8", "replace")


def test_receive_keeps_the_mode_asked_for(tmp_path: Path) -> None:
    HOST.run(commands.receive(str(tmp_path / "x"), sha256(b"x"), "644"), b"x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", NASTY)
def test_receive_refuses_other_content(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"old")
    with pytest.raises(CommandFailed, match=r"content hash [0-9a-f]{64} is not") as failure:
        HOST.run(commands.receive(str(file), sha256(b"right")), b"wrong")
    assert failure.value.status == 65
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    HOST.run(commands.receive("~/my work/it's", sha256(b"x")), b"x")
    assert (tmp_path / "my work" / "it's").read_bytes() == b"x"


def test_read_if_there(tmp_path: Path) -> None:
    file = tmp_path / "it's"
    assert HOST.run(commands.read_if_there(str(file))) == ""
    with pytest.raises(CommandFailed, match="No such file"):
        HOST.run(commands.read(str(file)))
    file.write_text("there")
    assert HOST.run(commands.read_if_there(str(file))) == "there"


def test_free_space_of_a_folder_to_be(tmp_path: Path) -> None:
    free = int(HOST.run(commands.free_space(str(tmp_path / "not yet" / "there"))))
    assert 0 < free <= shutil.disk_usage("/").total + shutil.disk_usage(tmp_path).total
    assert free % 1024 == 0


def test_remove(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "kept").touch()
    HOST.run(commands.remove_empty(str(folder)))
    assert folder.is_dir()
    HOST.run(commands.remove(str(folder / "deep"), str(tmp_path / "absent")))
    assert list(folder.iterdir()) == []
    HOST.run(commands.remove_empty(str(folder)))
    HOST.run(commands.remove_empty(str(folder)))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", NASTY)
def test_lock(tmp_path: Path, name: str) -> None:
    folder, note = str(tmp_path / name), 'anna@desk since 12:00: deploy "it\'s" $HOME'
    HOST.run(commands.lock(folder, note))
    with pytest.raises(CommandFailed) as failure:
        HOST.run(commands.lock(folder, "bert"))
    assert (failure.value.status, failure.value.stderr) == (73, note + "\n")
    HOST.run(commands.unlock(folder))
    HOST.run(commands.lock(folder, "bert"))
    assert (tmp_path / name / "lock" / "note").read_text() == "bert\n"
    with pytest.raises(CommandFailed):
        HOST.run(commands.lock(folder, note, ["somebody", "be*"]))
    HOST.run(commands.lock(folder, note, ["somebody", "bert"]))  # left by us
    assert (tmp_path / name / "lock" / "note").read_text() == note + "\n"


def test_lock_says_why_it_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("a file is in the way")
    with pytest.raises(CommandFailed, match="File exists") as failure:
        HOST.run(commands.lock(str(tmp_path), "anna"))
    assert failure.value.status == 1


def test_audit(tmp_path: Path) -> None:
    for line in ("deploy epoch 1", "it's 100 % $HOME \\n"):
        HOST.run(commands.audit(str(tmp_path / "new"), line))
    first, second = (tmp_path / "new" / "audit.log").read_text().splitlines()
    assert first[10] == "T"
    assert first[19:] == "Z deploy epoch 1"
    assert second[21:] == "it's 100 % $HOME \\n"


def test_an_act_with_its_line_in_the_audit_log_and_without_where_there_is_no_room(tmp_path: Path) -> None:
    free, full = str(tmp_path), "/dev/null"
    for folder in (free, full):
        assert HOST.run(commands.audited(folder, "greeted", Command("greet", "echo hello"))) == "hello\n"
    assert (tmp_path / "audit.log").read_text()[19:] == "Z greeted\n"


def test_the_lock_of_environments_is_held_as_long_as_somebody_reads(tmp_path: Path) -> None:
    def held(note: str) -> Generator[str, None, None]:
        yield from HOST.stream(commands.hold(sys.executable, str(tmp_path), note))

    with closing(held("ada")) as first:
        assert next(first) == commands.HELD
        with closing(held("bob")) as second:
            assert next(second) == "ada"
            first.close()
            assert next(line for line in second if line != "ada") == commands.HELD


def test_measure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    archive = b"import sys\nprint(sys.argv[1:], sys.stdin.read())\n"
    said = HOST.run(commands.measure(sys.executable, "link", {"peer": "it's", "a": [1]}), archive)
    assert said == """['link', '{"a": [1], "peer": "it\\'s"}'] \n"""
    with pytest.raises(CommandFailed, match="broken") as failure:
        HOST.run(commands.measure(sys.executable, "link", {}), b"import sys\nsys.exit('broken')")
    assert failure.value.status == 1
    assert list(tmp_path.iterdir()) == []


RUNNER = """
import signal, sys, time
if sys.argv[1] == "control":
    print(sys.argv[2:], sys.stdin.read().upper())
else:
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(sys.argv[1:])
    time.sleep(30)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "it's work"
    folder.mkdir()
    (folder / "runner.py").write_text(RUNNER)
    return folder


def start_runner(folder: Path, *arguments: str) -> int:
    """Its process id, once it has spoken."""
    words = ["--host", "pi", "--deployment", "chat", *arguments]
    pid = int(HOST.run(commands.start_runner(sys.executable, str(folder), "runner.py", words)))
    assert (folder / "runner.pid").read_text() == f"{pid}\n"
    deadline = time.monotonic() + 10.0
    while not (said := HOST.run(commands.log_tail(str(folder)))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert said == f"{['serve', *words]}\n"
    return pid


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # empty: ended, and not yet reaped
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("arguments", [["a b"], ["deaf"]])
def test_a_runner_starts_detached_and_stops(folder: Path, arguments: list[str]) -> None:
    pid = start_runner(folder, *arguments)
    try:
        assert os.getsid(pid) != os.getsid(0)
        HOST.run(commands.stop_runner(str(folder), "pi", "other deployment"))
        assert runs(pid)
        HOST.run(commands.stop_runner(str(folder), "pi", "chat", seconds=1))
        deadline = time.monotonic() + 2.0
        while runs(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not runs(pid)
        assert not (folder / "runner.pid").exists()
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def test_only_a_runner_is_stopped(folder: Path) -> None:
    HOST.run(commands.stop_runner(str(folder), "pi", "chat"))
    with subprocess.Popen(["sleep", "30"]) as stranger:
        (folder / "runner.pid").write_text(str(stranger.pid))
        HOST.run(commands.stop_runner(str(folder), "pi", "chat"))
        assert stranger.poll() is None
        stranger.kill()


def test_control(folder: Path) -> None:
    assert (
        HOST.run(commands.control(sys.executable, str(folder), "runner.py", 9), b"stop") == "['--timeout', '9'] STOP\n"
    )
    assert HOST.run(commands.control(sys.executable, str(folder), "runner.py", 9, 5), b"x") == (
        "['--timeout', '9', '--wait', '5'] X\n"
    )


def test_survey(folder: Path) -> None:
    assert HOST.run(commands.survey(str(folder / "absent"))) == ""
    (folder / "a b" / "c").mkdir(parents=True)
    (folder / "a b" / "shard").touch()
    (folder / "a b" / "c" / "too deep").touch()
    first, *rest = HOST.run(commands.survey(str(folder))).splitlines()
    assert first == "."
    assert sorted(rest) == ["a b/shard", "runner.py"]


def test_log_tail(tmp_path: Path) -> None:
    assert HOST.run(commands.log_tail(str(tmp_path))) == ""
    (tmp_path / "runner.log").write_text("1\n2\n3\n")
    assert HOST.run(commands.log_tail(str(tmp_path), 2)) == "2\n3\n"
