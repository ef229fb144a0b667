"""Hosts that do not do their part, through the real command line: the exit code, what is wrong, nothing changed."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Sshd, SshdFarm, free_port
from models import make_checkpoint
from transformers.utils import logging
from workspaces import Desk, lay

Make = Callable[..., Desk]
ENTRY = "150KiB"  # so little that shelf is needed too


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    return lambda *names, **changes: lay(tmp_path / "desk", model, names or ("desk", "shelf"), **changes)


@pytest.fixture
def desk(make: Make) -> Desk:
    return make()


# --- nobody there


@pytest.fixture
def nobody(desk: Desk) -> Desk:
    """Both hosts behind ports at which nobody listens."""
    for name in ("desk", "shelf"):
        desk.change_host(name, connection="ssh", ssh={"host": "127.0.0.1", "port": free_port()})
    desk.planned()
    return desk


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["profile"], 4),
        (["deploy", "--yes"], 4),
        (["deploy", "--dry-run"], 4),
        (["status"], 4),
        (["watch", "--once"], 4),
        (["down", "--yes"], 4),
        (["generate", "Hello"], 8),
    ],
)
def test_hosts_that_refuse_the_connection(nobody: Desk, words: list[str], code: int) -> None:
    with nobody.unchanged():
        done = nobody.run(*words)
    port = nobody.read(nobody.inventory)["hosts"]["desk"]["ssh"]["port"]
    assert done.code == code
    assert f"desk: 127.0.0.1 port {port} refused the connection" in done.error
    assert done.hint


def test_a_name_nobody_knows(desk: Desk) -> None:
    desk.change_host("desk", connection="ssh", ssh="no-such-host.invalid")
    desk.planned()
    with desk.unchanged():
        done = desk.run("deploy", "--yes")
    assert (done.code, done.out) == (4, "")
    assert "desk: the name of no-such-host.invalid" in done.error
    assert "ssh" in done.hint


# --- no Python, or one that lacks torch


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has nothing."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize(("python", "said"), [("/nonexistent", "/nonexistent"), ("", "lacks torch")])
def test_no_python_to_measure_with(make: Make, bare: Path, python: str, said: str) -> None:
    desk = make("desk")
    desk.change_host("desk", python=python or str(bare))
    with desk.unchanged():
        done = desk.run("profile")
    assert (done.code, done.out) == (4, "")
    assert done.error.startswith("desk: ")
    assert said in done.error
    assert "`python`" in done.hint
    assert str(desk.inventory) in done.hint


@pytest.mark.parametrize(("python", "said"), [("/nonexistent", "/nonexistent"), ("", "No module named 'cryptography'")])
def test_no_python_to_run_with(make: Make, bare: Path, python: str, said: str) -> None:
    desk = make("desk")
    desk.change_host("desk", python=python or str(bare))
    desk.planned()
    with desk.unchanged():
        done = desk.run("deploy", "--yes")
    assert (done.code, done.out) == (7, "")
    assert done.error.startswith("desk: ")
    assert said in done.error
    assert done.hint


# --- no room


def path_with(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of ours in front of the system's."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_disk_with_too_little_room(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.planned()
    path_with(tmp_path / "bin", "df", "echo Size; echo /dev/sda1 100 99 1 99% /", monkeypatch)
    with desk.unchanged():
        done = desk.run("deploy", "--yes")
    assert (done.code, done.out) == (7, "")
    assert "desk: no space: " in done.error
    assert "1 KiB free" in done.error
    assert "`work`" in done.hint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=128k", "edgesplit-test", str(folder)]
    try:
        mounted = subprocess.run(words, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_all_of_a_sudden(
    make: Make, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """df promised more than there was."""
    desk = make("desk")
    desk.change_host("desk", work=str(small_disk))
    desk.planned()
    path_with(tmp_path / "bin", "df", "echo Size; echo /dev/sda1 999999 9 999990 1% /", monkeypatch)
    done = desk.run("deploy", "--yes")
    assert done.code == 7
    assert "desk: " in done.error
    assert "No space left on device" in done.error
    assert done.hint
    assert list(small_disk.iterdir()) == []


# --- locks


@pytest.mark.parametrize("verb", ["deploy", "down"])
def test_somebody_holds_the_lock(desk: Desk, verb: str) -> None:
    desk.change_host("desk", memory=ENTRY)
    desk.planned()
    lock = desk.work("desk") / "tiny" / "lock"
    lock.mkdir(parents=True)
    (lock / "note").write_text("eve on mars, 2026-01-01 12:00:00 UTC: deploy\n")
    with desk.unchanged():
        done = desk.run(verb, "--yes")
    assert (done.code, done.out) == (6, "")
    assert "desk is locked by eve on mars, 2026-01-01 12:00:00 UTC: deploy" in done.error
    assert "edgesplit unlock" in done.hint
    freed = desk.run("unlock", "--yes")
    assert freed.code == 0
    assert "desk: unlocked; it was held by eve on mars" in freed.err
    assert not lock.exists()


def test_no_lock_to_break(desk: Desk) -> None:
    with desk.unchanged():
        done = desk.run("unlock", "--yes")
    assert (done.code, done.out) == (6, "")
    assert "no host holds a lock of tiny" in done.error


def test_down_of_nothing_is_no_mistake(desk: Desk) -> None:
    with desk.unchanged():
        done = desk.run("down", "--yes")
    assert (done.code, done.out, done.error) == (0, "", "")
    assert "desk: nothing was there" in done.err
    assert not desk.work("desk").exists()


# --- answers that make no sense


def test_nobody_answers(desk: Desk) -> None:
    with desk.unchanged():
        done = desk.run("generate", "Hello")
    port = desk.read(desk.plan)["api"]["port"]
    assert (done.code, done.out.strip()) == (8, "")
    assert f"no API: desk: cannot connect to 127.0.0.1 port {port}: Connection refused" in done.error
    assert "edgesplit deploy " in done.hint


class Stranger(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(int(self.path == "/v1/completions") and self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(b"<h1>It works!</h1>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("status", [200, 404])
def test_a_stranger_answers(desk: Desk, status: int) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        server.status = status  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        desk.change_plan(api={"port": server.server_port})
        done = desk.run("generate", "Hello")
        server.shutdown()
    assert (done.code, done.out.strip()) == (8, "")
    assert f"what listens on 127.0.0.1:{server.server_port} of desk is not the API of edgesplit" in done.error
    assert "api.port" in done.hint


# --- ssh that says no


def behind(desk: Desk, server: Sshd, **changes: object) -> None:
    target = {**server.target().model_dump(exclude_none=True), **changes}
    desk.change_host("desk", connection="ssh", ssh=target, python=sys.executable, data={"address": "127.0.0.1"})
    desk.planned()


def refused(desk: Desk, *said: str) -> None:
    for words in (["profile"], ["deploy", "--yes"], ["down", "--yes"]):
        with desk.unchanged():
            done = desk.run(*words)
        assert (done.code, done.out) == (4, "")
        assert done.error.startswith("desk: ")
        assert [part for part in said if part not in done.error] == []
        assert done.hint


@pytest.mark.ssh
def test_a_host_key_that_changed(make: Make, sshd: SshdFarm) -> None:
    desk, server = make("desk"), sshd()
    other = sshd.keys.pair("other").with_suffix(".pub").read_text().split()[:2]
    server.known_hosts.write_text(f"[{server.host}]:{server.port} {' '.join(other)}\n")
    behind(desk, server)
    refused(desk, "the host key has CHANGED")


@pytest.mark.ssh
def test_a_host_key_nobody_knows(make: Make, sshd: SshdFarm) -> None:
    desk, server = make("desk"), sshd()
    server.known_hosts.write_text("")
    behind(desk, server)
    refused(desk, "the host key is unknown", f"{server.host} port {server.port}")
    assert desk.run("status", "--accept-new-host-keys").code == 8  # it was reached: nothing serves there
    assert server.known_hosts.read_text() == server.host_line


@pytest.mark.ssh
def test_a_login_that_is_refused(make: Make, sshd: SshdFarm) -> None:
    desk, server = make("desk"), sshd()
    behind(desk, server, key=str(sshd.keys.pair("stranger")))
    refused(desk, f"does not let {server.user} in", "stranger_ed25519")


# --- ports that are taken, found by real runners


@pytest.mark.fleet
@pytest.mark.parametrize("what", ["data port", "API port"])
def test_a_port_that_is_taken(make: Make, what: str) -> None:
    desk = make()
    desk.change_host("desk", memory=ENTRY)
    desk.planned()
    api, data = desk.read(desk.plan)["api"]["port"], desk.read(desk.inventory)["hosts"]["shelf"]["data"]["port"]
    host, port = ("shelf", data) if what == "data port" else ("desk", api)
    with desk.unchanged(), socket.create_server(("127.0.0.1", port)):
        done = desk.run("deploy", "--yes")
    assert (done.code, done.out) == (7, "")
    assert f"{host}: {what} {port} cannot be used: Address already in use" in done.error
    assert "the hosts are as they were" in done.error
    assert done.hint
    assert not desk.work("desk").exists()
    assert not desk.work("shelf").exists()


# --- a deployment that serves, and what is asked of it


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Desk]:
    desk = lay(tmp_path_factory.mktemp("serving"), model)
    desk.change_host("desk", memory=ENTRY)
    desk.planned()
    try:
        done = desk.run("deploy", "--yes")
        assert done.code == 0, done.err
        yield desk
    finally:
        done = desk.run("down", "--yes")
        assert done.code == 0, done.err
        assert not list(desk.folder.rglob("runner.pid"))


@pytest.mark.fleet
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x" * 200], "desk answers 400: the prompt has 200 tokens and the plan's max_context is 128"),
        (["x", "-n", "128"], "desk answers 400: 1 prompt tokens and max_tokens 128 exceed"),
        ([""], "desk answers 400: the prompt is empty"),
    ],
)
def test_a_request_that_cannot_be_met(serving: Desk, words: list[str], said: str) -> None:
    with serving.unchanged():
        done = serving.run("generate", *words)
    assert (done.code, done.out.strip()) == (8, "")
    assert said in done.error
    assert "workload" in done.hint


@pytest.mark.fleet
def test_another_model_of_the_same_name_at_another_port(serving: Desk, tmp_path: Path) -> None:
    other = lay(tmp_path / "other", make_checkpoint(tmp_path / "model", layers=3))
    other.inventory.write_text(serving.inventory.read_text())
    other.planned()
    with other.unchanged():
        done = other.run("deploy", "--yes")
    assert (done.code, done.out) == (7, "")
    assert "desk: the API listens on port" in done.error
    assert done.hint
    told = serving.run("status")
    assert told.code == 0
    assert "tiny, epoch 1" in told.out


@pytest.mark.fleet
def test_a_lock_on_what_serves(serving: Desk) -> None:
    lock = serving.work("shelf") / "tiny" / "lock"
    lock.mkdir()
    (lock / "note").write_text("eve on mars: watch\n")
    try:
        done = serving.run("down", "--yes")
        assert (done.code, done.out) == (6, "")
        assert "shelf is locked by eve on mars: watch" in done.error
        assert serving.run("generate", "Hello", "-n", "3", "--check").code == 0
    finally:
        assert serving.run("unlock", "--yes").code == 0


@pytest.mark.fleet
def test_what_serves_already_is_left_alone(serving: Desk) -> None:
    done = serving.run("deploy", "--yes", "--json")
    assert (done.code, done.out) == (0, '{\n  "changed": false,\n  "epoch": 1\n}\n')
    assert "nothing to do" in done.err
