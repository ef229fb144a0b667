"""Quantities: what is read, what is refused and in which words, what is shown."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesplit.units import enough_size, format_rate, format_size, format_time, parse_rate, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("7B", 7), ("2kB", 2000), ("2KB", 2000), ("1.5 MB", 1_500_000), ("3GB", 3 * 10**9), ("1TB", 10**12),
     ("1KiB", 1024), (" 512 MiB ", 512 * 2**20), ("4GiB", 4 * 2**30), ("0.5TiB", 2**39), (17, 17), (0, 0)],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size
    assert isinstance(parse_size(text), int)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300ms", 0.3), ("250 us", 0.00025), ("2s", 2), ("1.5min", 90), ("1h", 3600), (2, 2), (0.25, 0.25), (0, 0)],
)
def test_times(text: object, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)
    assert isinstance(parse_time(text), float)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("8bit/s", 1), ("8kbit/s", 1e3), ("100Mbit/s", 12.5e6), ("1 Gbit/s", 125e6), ("5B/s", 5), ("5kB/s", 5e3),
     ("5MB/s", 5e6), ("1.5GB/s", 1.5e9), (12, 12)],
)  # fmt: skip
def test_rates(text: object, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


SIZE_RULE = 'expected a size such as "4GiB", with a unit of B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB'
TIME_RULE = 'expected a time such as "300ms", with a unit of us, ms, s, min, h'
RATE_RULE = 'expected a rate such as "100Mbit/s", with a unit of bit/s, kbit/s, Mbit/s, Gbit/s, B/s, kB/s, MB/s, GB/s'


@pytest.mark.parametrize("bad", ["", "4", "GiB", "4gib", "-4GiB", "4 Gi B", "4,5GiB", "1e3B", "4GiB/s", "٤GiB"])
def test_a_text_that_is_no_quantity(bad: str) -> None:
    for parse, rule in ((parse_size, SIZE_RULE), (parse_time, TIME_RULE), (parse_rate, RATE_RULE)):
        with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
            parse(bad)


@pytest.mark.parametrize("bad", [True, False, None, -1, -0.5, [], {}, b"4GiB", float("nan")])
@pytest.mark.parametrize("parse", [parse_size, parse_time, parse_rate])
def test_a_thing_that_is_no_quantity(parse: Callable[[object], float], bad: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a "):
        parse(bad)


def test_a_size_is_whole_bytes() -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(SIZE_RULE)}$"):
        parse_size(4.5)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_size(0), "0 B"),
        (format_size(1), "1 B"),
        (format_size(1536), "1.5 KiB"),
        (format_size(4 * 2**30), "4 GiB"),
        (format_size(2**40), "1 TiB"),
        (format_time(0), "0 us"),
        (format_time(0.0123), "12.3 ms"),
        (format_time(59), "59 s"),
        (format_time(90), "1.5 min"),
        (format_time(7200), "2 h"),
        (format_rate(12_500_000), "100 Mbit/s"),
        (format_rate(125e6), "1 Gbit/s"),
        (format_rate(0), "0 bit/s"),
    ],
)
def test_quantities_as_shown(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.integers(0, 10**15))
def test_a_size_as_shown_reads_back_nearly(size: int) -> None:
    assert parse_size(_plain(format_size(size))) == pytest.approx(size, rel=0.006)  # three digits


@given(st.integers(0, 2**50))
def test_enough_is_never_too_little(size: int) -> None:
    assert size <= parse_size(_plain(enough_size(size))) <= size * 1.011 + 1


@given(st.floats(1e-6, 1e6))
def test_a_time_as_shown_reads_back_nearly(seconds: float) -> None:
    assert parse_time(_plain(format_time(seconds))) == pytest.approx(seconds, rel=0.006)


@given(st.floats(1, 1e9))
def test_a_rate_as_shown_reads_back_nearly(rate: float) -> None:
    assert parse_rate(_plain(format_rate(rate))) == pytest.approx(rate, rel=0.006)


def _plain(text: str) -> str:
    number, unit = text.split()
    return f"{float(number):f}{unit}"


@pytest.mark.parametrize(("shown", "expected"), [(format_size(1000), "1000 B"), (format_rate(125e6 - 1), "1 Gbit/s")])
def test_no_quantity_is_shown_with_an_exponent(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_quantity_beyond_every_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected a size"):
        parse_size(400 * "9" + "GiB")
