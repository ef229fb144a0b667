"""Callers of the API, over a real server: keys, and those that dawdle; others are served all the while."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import LOCALHOST
from links import no_thread_left
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgesplit.broadcast import access
from edgesplit.errors import DeployError, InputError
from edgesplit.hosts.host import LocalHost
from edgesplit.runner import callers, control, knock
from edgesplit.runner.apikeys import FOLDER, Keys
from edgesplit.runner.callers import Guard, Hearing
from edgesplit.runner.manifest import Service
from edgesplit.runner.seldom import Seldom

HOST = LocalHost("desk")
NOW = datetime.datetime(2026, 11, 25, 8, 0, tzinfo=datetime.timezone.utc)


async def _echo(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


class Server:
    def __init__(self, folder: Path, *, private: bool = True) -> None:
        self.keys = Keys(folder)
        app = Starlette(routes=[Route("/echo", _echo, methods=["POST"]), Route("/healthz", _echo)])
        guard = Guard(app, self.keys, private=private, grumble=Seldom())
        more: Any = {"http": Hearing(Seldom()).protocol, "ws": "none", "log_config": None}
        self._uvicorn = uvicorn.Server(uvicorn.Config(guard, lifespan="off", **more))
        sock = socket.create_server((LOCALHOST, 0))
        self.port: int = sock.getsockname()[1]
        self._thread = threading.Thread(target=self._uvicorn.run, args=([sock],))
        self._thread.start()

    def ask(self, key: str | None = None, path: str = "/echo") -> tuple[int, dict[str, Any], str | None]:
        connection = http.client.HTTPConnection(LOCALHOST, self.port, timeout=5)
        with contextlib.closing(connection):
            login = {} if key is None else {"Authorization": key}
            connection.request("GET" if path == "/healthz" else "POST", path, b"12345", login)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers["WWW-Authenticate"]

    def dial(self, said: bytes = b"") -> socket.socket:
        sock = socket.create_connection((LOCALHOST, self.port), timeout=5)
        sock.sendall(said)
        return sock

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with no_thread_left():
        made = Server(tmp_path)
        yield made
        made.close()


# --- keys ---


def test_without_keys_anybody_on_this_machine_may_ask_and_nobody_else(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    assert keys.refusal("", private=True) == ""
    assert "no API key was given" in keys.refusal("", private=False)
    assert keys.refusal(f"Bearer {keys.own}", private=False) == ""


def test_from_the_first_key_on_one_is_wanted(server: Server, tmp_path: Path) -> None:
    assert server.ask() == (200, {"bytes": 5}, None)
    key = access.add(HOST, str(tmp_path), "phone", NOW)
    status, answer, scheme = server.ask()
    assert (status, scheme) == (401, "Bearer")
    assert answer["error"]["type"] == "invalid_request_error"
    assert "no API key was given" in answer["error"]["message"]
    for wrong in ("Bearer es-wrong", "Bearer ../keys", f"Bearer {key}x", "Bearer \xe9", f"Bearer {'x' * 9000}"):
        status, answer, _ = server.ask(wrong)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert wrong.split()[1] not in json.dumps(answer)
    assert server.ask(f"Basic {key}")[0] == 401
    for right in (f"Bearer {key}", f"bearer  {key} ", f"Bearer {server.keys.own}"):
        assert server.ask(right)[:2] == (200, {"bytes": 5})
    assert server.ask(path="/healthz")[0] == 200
    access.revoke(HOST, str(tmp_path), "phone")
    assert server.ask(f"Bearer {key}")[0] == 401
    assert server.ask()[0] == 401  # to revoke the last key opens nothing


def test_keys_are_named_listed_and_revoked_and_only_hashes_are_kept(tmp_path: Path) -> None:
    folder = str(tmp_path)
    first, second = access.add(HOST, folder, "phone", NOW), access.add(HOST, folder, "lab", NOW.replace(hour=9))
    assert [(key.name, key.created) for key in access.api_keys(HOST, folder)] == [
        ("phone", "2026-11-25 08:00:00 UTC"),
        ("lab", "2026-11-25 09:00:00 UTC"),
    ]
    with pytest.raises(InputError, match="called phone already"):
        access.add(HOST, folder, "phone", NOW)
    with pytest.raises(InputError, match="no key called desk"):
        access.revoke(HOST, folder, "desk")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files for key in (first, second) if key in file.name + file.read_text()]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    (tmp_path / FOLDER / ("0" * 64)).write_text("damaged")
    assert access.api_keys(HOST, folder)[0].name == "0" * 12
    access.revoke(HOST, folder, "0" * 12)
    access.revoke(HOST, folder, "phone")
    assert [key.name for key in access.api_keys(HOST, folder)] == ["lab"]
    audit = (tmp_path / "audit.log").read_text()
    assert audit.count("API key phone made") == audit.count("API key phone revoked") == 1


@pytest.mark.parametrize(
    ("address", "private"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("::", False), ("desk", False)],
)
def test_an_api_that_others_reach_needs_a_key(address: str, private: bool) -> None:
    service = Service(address, 1, "tiny", 1, 1, 1, 1)
    assert service.private is private
    access.check_closed(service, [f"{FOLDER}/{'0' * 64}"])
    if not private:
        with pytest.raises(DeployError, match="there is no API key"):
            access.check_closed(service, ["manifest.json"])


# --- those that dawdle ---


def closed(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        return sock.recv(1000) == b""
    except ConnectionError:
        return True


HEAD = b"POST /echo HTTP/1.1\r\nHost: desk\r\nContent-Length: 100\r\n"


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + b"\r\nten bytes.", b"POST /echo HTTP/1.1\r\nX: "])
def test_a_request_that_does_not_come_is_not_waited_for(
    server: Server, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "PATIENCE", 0.2)
    start = time.monotonic()
    with server.dial(said) as sock:
        threading.Thread(target=_drip, args=(sock,), daemon=True).start()  # a byte now and then does not help
        assert closed(sock, 3)
    assert 0.15 < time.monotonic() - start < 1.5
    assert server.ask()[0] == 200


def _drip(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(100):
            sock.sendall(b"x")
            time.sleep(0.05)


def test_who_sends_much_gets_the_time_for_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "PATIENCE", 0.2)
    with server.dial(b"POST /echo HTTP/1.1\r\nHost: desk\r\nContent-Length: 65536\r\n\r\n") as sock:
        for _ in range(8):  # 0.4 s, where the bytes are good for four more
            sock.sendall(bytes(8192))
            time.sleep(0.05)
        assert b"200 OK" in sock.recv(1000)


def test_a_crowd_that_says_nothing_keeps_nobody_out(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callers, "WAITING", 4)
    caplog.set_level(logging.WARNING, "runner")
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(server.dial(b"GET")) for _ in range(4)]
        assert server.ask()[0] == 200
        assert closed(crowd[0], 3)  # who has dawdled longest
        crowd[3].setblocking(False)
        with pytest.raises(BlockingIOError):
            crowd[3].recv(1)
    assert "hung up on 127.0.0.1: others are waiting" in caplog.text


def test_complaints_come_once_a_second_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    now, caplog.handler.level = [5.0], 0
    grumble = Seldom(lambda: now[0])
    for _ in range(1000):
        grumble("a stranger")
    now[0] += 1.0
    grumble("another")
    assert caplog.messages == ["a stranger", "another (and 999 more before)"]


def test_a_command_that_drips_in_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    with no_thread_left(), socket.socket(socket.AF_UNIX) as sock:
        server = control.Server(tmp_path, lambda request: {"ok": request})
        server.start()
        sock.connect(knock.SOCKET)
        start = time.monotonic()
        threading.Thread(target=_drip, args=(sock,), daemon=True).start()
        assert closed(sock, 3)
        assert 0.15 < time.monotonic() - start < 1.5
        assert knock.ask(tmp_path, b'{"verb": "status"}', 5) == b'{"ok": {"verb": "status"}}'
        server.close()
