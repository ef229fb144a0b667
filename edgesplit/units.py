"""Quantities as people write them: "4GiB", "100Mbit/s", "300ms".

Sizes are bytes (int), times are seconds (float), rates are bytes per second (float), everywhere in edgesplit.
Must not know: where a quantity comes from or what it limits.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"^\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z/]*)\s*$")

# IEC 80000-13 binary prefixes and SI decimal prefixes.
_SIZES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # fmt: skip
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_RATES = {"bit/s": 1 / 8, "kbit/s": 1e3 / 8, "Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8,
          "B/s": 1.0, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9}  # fmt: skip


def _parse(text: object, units: dict[str, float] | dict[str, int], kind: str, example: str) -> float:
    match = _NUMBER.match(text) if isinstance(text, str) else None
    if match is None or match.group(2) not in units:
        raise ValueError(f"expected a {kind} such as {example}, with a unit of {', '.join(units)}")
    return float(match.group(1)) * units[match.group(2)]


def parse_size(text: object) -> int:
    """Bytes from "512MiB"; a plain int is bytes already. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    return round(_parse(text, _SIZES, "size", '"4GiB"'))


def parse_time(text: object) -> float:
    """Seconds from "300ms"; a plain number is seconds already. Raises ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool) and text >= 0:
        return float(text)
    return _parse(text, _TIMES, "time", '"300ms"')


def parse_rate(text: object) -> float:
    """Bytes per second from "100Mbit/s". Raises ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool) and text >= 0:
        return float(text)
    return _parse(text, _RATES, "rate", '"100Mbit/s"')


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    """Three significant digits, in the largest unit of which there is at least one (after rounding)."""
    for number, (factor, unit) in enumerate(steps):
        digits = max(0, 2 - math.floor(math.log10(value / factor))) if value >= factor else 2
        rounded = round(value / factor, digits)
        if rounded >= 1 or number == len(steps) - 1:
            return f"{rounded:.{digits}f}".rstrip("0").rstrip(".") + f" {unit}" if digits else f"{rounded:.0f} {unit}"
    raise AssertionError("unreachable: the last step always answers")


def format_size(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    return _scaled(size, [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def enough_size(size: int) -> str:
    """As `format_size`, but never less than the size: who allows so much allows enough."""
    unit = next((unit for unit in (2**40, 2**30, 2**20, 2**10) if size >= unit), 0)
    if not unit:
        return format_size(size)
    step = 10 ** (min(3, len(str(size // unit))) - 1)  # three digits are said, so many hundredths of a unit apart
    return format_size(-(-size * 100 // (unit * step)) * unit * step / 100)


def format_time(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return _scaled(seconds, [(3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")])


def format_rate(rate: float) -> str:
    """12500000 (bytes per second) -> "100 Mbit/s"."""
    return _scaled(rate * 8, [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1, "bit/s")])
