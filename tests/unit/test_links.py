"""Links measured over the loopback, by hosts that are threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from conftest import LOCALHOST, free_port
from links import eventually

from edgesplit.profiling.probes import patience
from edgesplit.runner import hop, links, meeting

SIZES = [4096, 2**20]  # of a token and of a piece of a prompt
Found = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "BURST", 0.05)
    monkeypatch.setattr(hop, "PAUSE", 0.001)
    monkeypatch.setattr(meeting, "PATIENCE", 0.2)


def measured(
    ports: Mapping[str, Sequence[int]], pairs: Sequence[tuple[str, str]], timeout: float = 5.0, **odd: Any
) -> dict[str, Found]:
    """What each host finds; `odd`: what a host is told otherwise."""

    def host(me: str) -> Found:
        arguments = {
            "me": me, "token": "t", "address": LOCALHOST, "ports": ports[me], "timeout": timeout, "message": SIZES,
            "peers": {name: (LOCALHOST, there) for name, there in ports.items() if name != me},
            "pairs": [pair for pair in pairs if me in pair], "patience": 10.0, **odd.get(me, {}),
        }  # fmt: skip
        return list(links.measure(arguments))

    with ThreadPoolExecutor(len(ports)) as pool:
        return dict(zip(ports, pool.map(host, ports), strict=True))


def test_a_link_is_measured_in_both_directions() -> None:
    found = measured({"a": [free_port()], "b": [free_port()]}, [("a", "b")])
    assert found["b"] == [{"me": "b", "missed": {}}]
    link, last = found["a"]
    assert last == {"me": "a", "missed": {}}
    assert (link["pair"], link["both"]) == (["a", "b"], True)
    assert 0 < link["rtt"] < 0.05
    assert 10e6 < link["up"] < 1e12  # the loopback carries more than 80 Mbit/s
    assert 10e6 < link["down"] < 1e12
    assert link["rtt"] / 2 < link["echo"] < 0.5
    assert all(0 < link[way] < 1 for way in ("there", "back"))


def test_hosts_go_through_their_pairs_one_after_the_other() -> None:
    names = "abcd"
    pairs = [("a", "b"), ("c", "d"), ("a", "c"), ("b", "d"), ("a", "d"), ("b", "c")]
    found = measured({name: [free_port()] for name in names}, pairs)
    assert [line["pair"] for name in names for line in found[name] if "rtt" in line] == [
        list(pair) for name in names for pair in pairs if pair[0] == name
    ]


def test_a_taken_port_is_passed_over_by_both() -> None:
    with socket.create_server((LOCALHOST, 0)) as taken:
        first = taken.getsockname()[1]
        deaf = threading.Thread(target=_hang_up_on_callers, args=(taken,), daemon=True)
        deaf.start()
        found = measured({"a": [free_port()], "b": [first, free_port()]}, [("a", "b")])
        assert "rtt" in found["a"][0]
        taken.shutdown(socket.SHUT_RDWR)
        deaf.join(5)


def _hang_up_on_callers(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_where_one_way_is_closed_the_other_end_calls() -> None:
    ports = {"a": [free_port()], "b": [free_port()]}
    found = measured(ports, [("a", "b")], 1.0, a={"peers": {"b": (LOCALHOST, [free_port()])}})
    assert found["a"] == [{"me": "a", "missed": {"b": "Connection refused"}}]
    assert (found["b"][0]["pair"], found["b"][0]["both"]) == (["b", "a"], False)


def test_who_does_not_know_the_token_is_not_met() -> None:
    found = measured({"a": [free_port()], "b": [free_port()]}, [("a", "b")], 0.5, b={"token": "other"})
    assert found["a"] == [{"me": "a", "missed": {"b": "something else answers there"}}]


def test_nobody_there_is_told_by_the_deadline() -> None:
    start = time.monotonic()
    peers = {"b": (LOCALHOST, [free_port()])}
    found = measured({"a": [free_port()]}, [("a", "b")], 0.3, a={"peers": peers})
    assert found["a"] == [{"me": "a", "missed": {"b": "Connection refused"}}]
    assert time.monotonic() - start < 2


def test_strangers_do_not_end_the_waiting() -> None:
    port = free_port()

    def bother() -> Iterator[socket.socket]:
        for words in (b"", b"short\n", b"x a hello\n", b"t nobody hello\n"):
            sock = eventually(lambda: _connected(port))
            sock.sendall(words)
            yield sock

    with ThreadPoolExecutor(1) as pool:
        strangers = pool.submit(lambda: list(bother()))
        found = measured({"a": [free_port()], "b": [port]}, [("a", "b")])
        assert "rtt" in found["a"][0]
        for sock in strangers.result():
            sock.close()


def _connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection((LOCALHOST, port), timeout=5)
    except OSError:
        return None


def test_a_host_that_goes_leaves_the_others_their_pairs() -> None:
    """It greets, and is not heard of again."""
    ports = {"a": [free_port()], "b": [free_port()]}
    gone = socket.create_server((LOCALHOST, 0))
    pairs = [("a", "c"), ("a", "b")]
    there = {"c": (LOCALHOST, [gone.getsockname()[1]])}
    with closing(gone), ThreadPoolExecutor(1) as pool:
        pool.submit(_greet_and_go, gone, ports["a"][0])
        told = {"peers": {**there, "b": (LOCALHOST, ports["b"])}, "patience": 0.3}
        found = measured(ports, pairs, a=told)
    assert ["error" in line for line in found["a"]] == [True, False, False]


def _greet_and_go(server: socket.socket, port: int) -> None:
    with eventually(lambda: _connected(port)) as sock:
        sock.sendall(b"t c hello\n")
        sock.recv(10)
    with server.accept()[0] as caller:
        caller.sendall(b"c\n")
    server.close()


def test_patience_is_for_the_busiest_host() -> None:
    assert patience([("a", "b"), ("a", "c")]) > patience([("a", "b"), ("c", "d")]) > 0
