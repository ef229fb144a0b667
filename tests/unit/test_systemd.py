"""A runner as a service: its unit, as text and to systemd's own judgement."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgesplit.hosts import systemd
from edgesplit.hosts.host import LocalHost
from edgesplit.profiling import findings


def test_the_unit() -> None:
    text = systemd.unit("~/env/bin/python", "/w/100% $HOME", "r.pyz", ["--host", "it's"])
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert line == (
        "ExecStart=/bin/sh -c \"umask 077 && cd '/w/100%% $$HOME' && echo $$$$ > runner.pid && exec env "
        "PYTHONUNBUFFERED=1 \\\"$$HOME\\\"/env/bin/python r.pyz serve --host 'it'\\\"'\\\"'s' "
        '< /dev/null >> runner.log 2>&1"'
    )


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    file = tmp_path / systemd.unit_name("desk", "chat-1.0")
    file.write_text(systemd.unit(sys.executable, "~/it's 100% w", "r.pyz", ["--host", "desk", "--threads", "0"]))
    words = ["systemd-analyze", "verify", "--user", "--man=no", file]
    done = subprocess.run(words, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert str(file.name) not in done.stderr
    assert done.returncode == 0, done.stderr


def test_stopping_what_is_not_there_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert LocalHost("pi").run(systemd.stop("edgesplit-no-such.service")) == ""
    assert list(tmp_path.iterdir()) == []


def test_what_a_host_without_systemd_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    lacks = LocalHost("pi").run(systemd.look()).strip()
    assert lacks in ("there is no systemctl", "no user manager of systemd answers")
    assert not findings.service(lacks).ok
    assert "enable-linger" in findings.service("its services end with the login").do
    assert findings.service("").ok


def test_a_watch_runs_as_the_unit_says() -> None:
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "/a b/$plan%.yaml", "--plain"]
    unit = systemd.watch_unit("demo", words, "/a 100%")
    assert "WorkingDirectory=/a 100%%\n" in unit
    assert "KillSignal=SIGINT\n" in unit  # as Ctrl-C: the ring goes on
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    as_systemd_reads = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]
    assert as_systemd_reads == words
    done = subprocess.run(as_systemd_reads, capture_output=True, text=True, check=True)
    assert done.stdout == "['/a b/$plan%.yaml', '--plain']\n"
