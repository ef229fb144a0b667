"""Processes of a run: they end with the one that started them, however that ends; and so does the lab.

Must not know: what they are for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgesplit.errors import EdgesplitError
from edgesplit.lab.down import down

PARENT_DEATH = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
GOODBYE = 20.0  # seconds to end after SIGINT
_libc = ctypes.CDLL(None)
ROOT = str(Path(__file__).parents[2])
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT}


def python(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def _die_with_parent() -> None:
    _libc.prctl(PARENT_DEATH, signal.SIGKILL)


@contextmanager
def beside(words: Sequence[str], log: IO[Any], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process while something goes on; then it is asked to end, and made to. To be called from the main thread."""
    process = subprocess.Popen(
        words, stderr=log, text=True, env=ENVIRONMENT, start_new_session=True,
        preexec_fn=_die_with_parent, **more,  # noqa: PLW1509 - no thread holds a lock of prctl
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(GOODBYE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def carry_out(words: Sequence[str], log: IO[Any], environment: Mapping[str, str] = ENVIRONMENT) -> None:
    """One of edgesplit's own verbs. Raises EdgesplitError with what it said."""
    command = python("edgesplit", *words)
    done = subprocess.run(command, stdout=log, stderr=subprocess.PIPE, text=True, env={**environment}, check=False)
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line][-3:]
        raise EdgesplitError(f"`edgesplit {' '.join(words)}` ended with {done.returncode}: {' '.join(said)}")


@contextmanager
def warden(lab: str) -> Iterator[None]:
    """Takes the lab down when this process is gone, killed or not."""
    words = python("edgesplit.evaluation.processes", lab)
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, env=ENVIRONMENT) as process:
        try:
            yield
        finally:
            process.stdin.close() if process.stdin else None


def main() -> None:
    sys.stdin.read()
    down(sys.argv[1])


if __name__ == "__main__":
    main()
