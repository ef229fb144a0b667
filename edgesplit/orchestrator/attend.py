"""A change carried out while the ring that serves is listened to: when it breaks, the change is given up at once.

Must not know: what the change is, how readings come, what is done about the break.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgesplit.hosts.leaving import Exit
from edgesplit.profiling.capacity import Heard

T = TypeVar("T")
MISSED = "the ring broke meanwhile"
INTERRUPTED = "interrupted"


def attend(
    act: Callable[[], T],
    way_out: Exit,
    hear: Callable[[], Mapping[str, Heard]],
    breaks: Callable[[Mapping[str, Heard]], bool],
) -> tuple[T | Exception, dict[str, Heard]]:
    """What came of the act, or how it failed; and the newest that was heard of each host meanwhile. `hear` waits a
    little; `breaks`: does this tell of a ring that no longer serves?"""
    heard: dict[str, Heard] = {}
    with ThreadPoolExecutor(1, "push") as thread:
        future = thread.submit(act)
        try:
            while not future.done():
                news = hear()
                heard.update(news)
                if breaks(news):
                    way_out.take(MISSED)
        except BaseException:
            way_out.take(INTERRUPTED)
            raise
    error = future.exception()
    if error is None:
        return future.result(), heard
    if not isinstance(error, Exception):
        raise error
    return error, heard
