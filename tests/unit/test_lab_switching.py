"""What the lab's switch does with frames, without a switch: time and dice are the test's."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from edgesplit.lab.switching import FRAMING, HEADER, QUEUE_BYTES, Core, Link, wire_bytes

A, B, C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
MACS = {"a": A, "b": B, "c": C}
ETHERNET = 14


def frame(source: bytes, target: bytes, size: int = 1000) -> bytes:
    """A frame as a TAP hands it over: a header, then `size` bytes of Ethernet."""
    return bytes(HEADER.size) + (target + source + b"\x08\x00").ljust(size, b".")


def large(payload: int, segment: int) -> bytes:
    """A TCP frame that is to be cut into several: 20 bytes of IP, 32 of TCP."""
    start = ETHERNET + 20
    header = struct.pack("=BBHHHH", 1, 1, 66, segment, start, 16)
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)  # 8 words of 4 bytes
    return header + (B + A + b"\x08\x00" + bytes(20) + tcp).ljust(start + 32 + payload, b".")


class Dice:
    def __init__(self, *rolls: float) -> None:
        self._rolls: Iterator[float] = iter(rolls)

    def __call__(self) -> float:
        return next(self._rolls)


def core(dice: Dice | None = None) -> Core:
    switch = Core(dice or Dice())
    for name, mac in MACS.items():
        switch.attach(name, mac)
    return switch


def arrivals(switch: Core, until: float = 1e9) -> list[tuple[float, str]]:
    """(when, where) of everything under way, as a loop would see it that wakes when told to."""
    found, now = [], 0.0
    while (wait := switch.wait(now)) is not None and now + wait <= until:
        now += wait
        found += [(now, target) for target, _ in switch.due(now)]
    return found


def counter(switch: Core, source: str, target: str, name: str) -> int:
    return next(
        int(lane[name]) for lane in switch.state()["lanes"] if (lane["source"], lane["target"]) == (source, target)
    )


# --- size ---


def test_a_frame_takes_what_it_takes_on_a_cable() -> None:
    assert wire_bytes(frame(A, B, 1514)) == 1538  # what 1500 bytes of IP take on Ethernet


def test_a_large_frame_takes_what_its_segments_take() -> None:
    alone = 66 + 1448 + FRAMING
    assert wire_bytes(large(1448, 1448)) == alone
    assert wire_bytes(large(3 * 1448, 1448)) == 3 * alone
    assert wire_bytes(large(2 * 1448 + 1, 1448)) == 2 * alone + 66 + 1 + FRAMING


# --- ways ---


def test_a_frame_goes_to_the_port_of_its_address() -> None:
    switch = core()
    switch.accept(0.0, "a", frame(A, C))
    assert arrivals(switch) == [(0.0, "c")]


def test_a_frame_for_nobody_goes_nowhere() -> None:
    switch = core()
    switch.accept(0.0, "a", frame(A, b"\xff" * 6))
    switch.accept(0.0, "a", frame(A, bytes(6)))
    assert switch.wait(0.0) is None


def test_a_delay_is_one_way_and_of_that_way_only() -> None:
    switch = core()
    switch.set_link("a", "b", Link(delay=0.02))
    switch.accept(0.0, "a", frame(A, B))
    switch.accept(0.0, "b", frame(B, A))
    assert arrivals(switch) == [(0.0, "a"), (0.02, "b")]


def test_a_rate_spaces_frames_and_the_delay_comes_on_top() -> None:
    switch = core()
    switch.set_link("a", "b", Link(delay=1.0, rate=1024.0))
    for _ in range(3):
        switch.accept(0.0, "a", frame(A, B, 1000))  # 1024 bytes on the cable
    assert arrivals(switch) == [(pytest.approx(time), "b") for time in (2.0, 3.0, 4.0)]


def test_an_idle_link_saves_nothing_up() -> None:
    switch = core()
    switch.set_link("a", "b", Link(rate=1024.0))
    switch.accept(0.0, "a", frame(A, B))
    switch.accept(100.0, "a", frame(A, B))
    assert arrivals(switch) == [(pytest.approx(1.0), "b"), (pytest.approx(101.0), "b")]


def test_pairs_do_not_share_a_rate() -> None:
    switch = core()
    for target in ("b", "c"):
        switch.set_link("a", target, Link(rate=1024.0))
    switch.accept(0.0, "a", frame(A, B))
    switch.accept(0.0, "a", frame(A, C))
    assert arrivals(switch) == [(pytest.approx(1.0), "b"), (pytest.approx(1.0), "c")]


def test_a_full_queue_drops_and_counts() -> None:
    switch = core()
    switch.set_link("a", "b", Link(rate=1024.0))
    fit = QUEUE_BYTES // 1024
    for _ in range(fit + 5):
        switch.accept(0.0, "a", frame(A, B))
    assert len(arrivals(switch)) == fit
    assert counter(switch, "a", "b", "dropped") == 5
    assert counter(switch, "a", "b", "frames") == fit


def test_a_fast_link_queues_a_tenth_of_a_second() -> None:
    switch = core()
    switch.set_link("a", "b", Link(rate=1.024e8))
    for _ in range(20_000):
        switch.accept(0.0, "a", frame(A, B))
    assert arrivals(switch)[-1][0] == pytest.approx(0.1, rel=1e-3)


# --- chance ---


def test_loss_is_what_the_dice_say() -> None:
    switch = core(Dice(0.005, 0.015, 0.5))
    switch.set_link("a", "b", Link(loss=0.01))
    for _ in range(3):
        switch.accept(0.0, "a", frame(A, B))
    assert len(arrivals(switch)) == 2
    assert counter(switch, "a", "b", "lost") == 1


def test_who_loses_some_frames_must_send_small_ones() -> None:
    switch = core()
    assert not switch.lossy("a")
    switch.set_link("a", "b", Link(loss=0.01))
    assert switch.lossy("a")
    assert not switch.lossy("b")
    switch.set_link("a", "b", Link(loss=1.0))  # a link that is cut loses large frames as it loses small ones
    assert not switch.lossy("a")


# --- changes while it runs ---


def test_a_change_holds_from_the_next_frame_on_and_nothing_overtakes() -> None:
    switch = core()
    switch.set_link("a", "b", Link(delay=1.0))
    switch.accept(0.0, "a", frame(A, B))
    switch.set_link("a", "b", Link(delay=0.1))
    switch.accept(0.1, "a", frame(A, B))
    switch.accept(2.0, "a", frame(A, B))
    assert [time for time, _ in arrivals(switch)] == [1.0, 1.0, pytest.approx(2.1)]


def test_a_limit_that_is_lifted_leaves_no_debt() -> None:
    switch = core()
    switch.set_link("a", "b", Link(rate=1024.0))
    switch.accept(0.0, "a", frame(A, B))
    switch.set_link("a", "b", Link())
    assert [target for _, target in arrivals(switch)] == ["b"]
    switch.accept(5.0, "a", frame(A, B))
    switch.set_link("a", "b", Link(rate=1024.0))
    switch.accept(5.0, "a", frame(A, B))
    assert [time for time, _ in arrivals(switch)] == [5.0, pytest.approx(6.0)]


def test_a_pulled_cable_is_silence_both_ways_also_for_what_was_under_way() -> None:
    switch = core()
    switch.set_link("a", "b", Link(delay=1.0))
    switch.accept(0.0, "a", frame(A, B))
    switch.accept(0.0, "b", frame(B, C))
    switch.plug("b", in_=False)
    switch.accept(0.5, "a", frame(A, B))
    switch.accept(0.5, "b", frame(B, A))
    switch.accept(0.5, "a", frame(A, C))
    assert [target for _, target in arrivals(switch)] == ["c"]
    switch.plug("b", in_=True)
    switch.accept(2.0, "a", frame(A, B))
    assert arrivals(switch) == [(3.0, "b")]


def test_a_port_that_comes_back_has_its_links_again() -> None:
    switch = core()
    switch.set_link("a", "b", Link(delay=0.5))
    switch.accept(0.0, "a", frame(A, B))
    switch.detach("b")
    switch.accept(0.1, "a", frame(A, B))
    assert switch.wait(0.1) is None
    switch.attach("b", B)
    switch.accept(1.0, "a", frame(A, B))
    assert arrivals(switch) == [(1.5, "b")]


def test_links_can_be_set_before_there_are_ports() -> None:
    switch = Core(Dice())
    switch.set_link("a", "b", Link(delay=0.5))
    switch.attach("a", A)
    switch.attach("b", B)
    switch.accept(0.0, "a", frame(A, B))
    assert arrivals(switch) == [(0.5, "b")]
