"""What can go wrong, and the exit code each kind ends with.

    EdgesplitError                1   something failed that no other branch names
    ├── InputError                2   an inventory, plan or option is wrong (typer's own usage errors are 2 too)
    ├── ModelError                3   the checkpoint is absent, damaged or of a kind that cannot be split
    ├── HostError                 4   a host cannot do what was asked; the message names the host
    │   ├── Unreachable               name lookup, refused, timeout
    │   ├── HostKeyError              unknown or changed host key
    │   ├── LoginError                no key or password was accepted
    │   └── CommandFailed             a command on the host ended with a non-zero status
    ├── FleetError                4   several hosts failed; lists every one
    ├── InfeasibleError           5   no split satisfies memory, pins and load
    ├── MovedError                6   the world moved since the plan, or somebody else holds the lock
    ├── DeployError               7   the ring did not come up; the hosts are as before
    │   └── Abandoned                 a change was given up half-way, for something more pressing
    └── ServingError              8   the deployment did not answer
    Ctrl-C                      130

Must not know: how an error is printed (cli does), nor anything that can raise one.
"""

from __future__ import annotations

from collections.abc import Sequence


class EdgesplitError(Exception):
    """An error meant for a person: one sentence of what is wrong, and a hint of what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(EdgesplitError):
    exit_code = 2


class ModelError(EdgesplitError):
    exit_code = 3


class HostError(EdgesplitError):
    """A failure of one host. `host` is its name in the inventory."""

    exit_code = 4

    def __init__(self, host: str, message: str, hint: str = "") -> None:
        super().__init__(f"{host}: {message}", hint)
        self.host = host


class Unreachable(HostError):
    pass


class HostKeyError(HostError):
    pass


class LoginError(HostError):
    pass


class CommandFailed(HostError):
    """A remote command ended badly. `status` is its exit status, `stderr` what it said."""

    def __init__(self, host: str, what: str, status: int, stderr: str, hint: str = "") -> None:
        said = stderr.strip().splitlines()
        super().__init__(host, f"{what} failed with status {status}" + (f": {said[-1]}" if said else ""), hint)
        self.status = status
        self.stderr = stderr


class FleetError(EdgesplitError):
    """Several hosts failed at one act; every one is listed, none is hidden behind the first."""

    exit_code = 4

    def __init__(self, errors: Sequence[HostError]) -> None:
        hints = list(dict.fromkeys(error.hint for error in errors if error.hint))
        super().__init__("\n".join(error.message for error in errors), "\n".join(hints))
        self.errors = tuple(errors)


class InfeasibleError(EdgesplitError):
    exit_code = 5


class MovedError(EdgesplitError):
    exit_code = 6


class DeployError(EdgesplitError):
    exit_code = 7


class Abandoned(DeployError):
    pass


class ServingError(EdgesplitError):
    exit_code = 8
