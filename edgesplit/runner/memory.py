"""Memory that goes back to the system as soon as nobody holds it.

Must not know: what it is for.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# mallopt(3) of glibc. What is larger than the first is a mapping of its own; of what is free at the end of the heap,
# more than the second goes back.
_MMAP, _TRIM = -3, -1
_SPARING = {_MMAP: 2**15, _TRIM: 2**17}  # bytes; with 2**17 for both, int4 left holes of 3 % of a stage
_USUAL = {_MMAP: 2**25, _TRIM: 2**26}  # what glibc comes to by itself, once it was given back 32 MiB in one piece


@contextlib.contextmanager
def sparing() -> Iterator[None]:
    """Within, large allocations are mappings of their own.

    glibc puts them into its heap as soon as one as large was given back, between whatever came to stay: a stage made
    of much that is read, cast or laid out anew would keep up to half its weight in holes. Other C libraries may do as
    they like.
    """
    _set(_SPARING)
    try:
        yield
    finally:
        _set(_USUAL)


def _set(options: dict[int, int]) -> None:
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        for option, value in options.items():
            library.mallopt(option, value)
