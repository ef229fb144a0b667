"""From a control message to the core's answer: signed commands one at a time, `status` and `key` at any time.

Every command that is honoured or refused leaves a dated line in the host's audit log. The keys of sealed shards, and
the host's own key in an epoch's ring, come beside the envelope, and are kept nowhere but in memory.
Must not know: sockets, keys, how a command is carried out.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .gate import ENVELOPE, Gate, Refused
from .identity import Identity, identity_of
from .manifest import Manifest, parse

MAX_LINE = 500  # characters of a line in the audit log
log = logging.getLogger("runner")


class Commanded(Protocol):
    """What carries commands out; core.Core."""

    def prepare(self, manifest: Manifest, keys: Mapping[str, bytes], identity: Identity) -> dict[str, Any]: ...
    def link(self, epoch: int, timeout: float) -> dict[str, Any]: ...
    def trial(self, epoch: int, timeout: float) -> dict[str, Any]: ...
    def commit(self, epoch: int, record: str) -> dict[str, Any]: ...
    def retire(self, epoch: int) -> dict[str, Any]: ...
    def status(self) -> dict[str, Any]: ...
    def key(self) -> dict[str, Any]: ...


class Dispatch:
    """`audit`: the file the trail is left in."""

    def __init__(self, core: Commanded, gate: Gate, audit: Path) -> None:
        self._core, self._gate, self._audit = core, gate, audit
        self._one = threading.Lock()
        self._records: dict[int, str] = {}  # epoch -> the envelope its manifest came in

    def handle(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """{"ok": the answer} or {"error": why not}. Never raises."""
        try:
            if message.get("verb") == "status":
                return {"ok": {**self._core.status(), "serial": self._gate.serial}}
            if message.get("verb") == "key":
                return {"ok": self._core.key()}
            with self._one:
                return {"ok": self._obey(message)}
        except Refused as error:
            self._note(f"refused: {error}")
            return {"error": f"refused: {error}"}
        except Exception as error:  # the main loop's: every failure is answered and logged
            log.exception("a command failed")
            return {"error": str(error) or repr(error)}

    def _obey(self, message: Mapping[str, Any]) -> dict[str, Any]:
        command = self._gate.open(message)
        verb, epoch = str(command.get("verb")), int(command.get("epoch", 0))
        act = self._acts(command, epoch, message).get(verb)
        if act is None:
            raise Refused(f"no command is called {verb!r}")
        self._note(f"{verb} epoch {epoch}")
        try:
            answer = act()
        except Exception as error:
            self._note(f"{verb} epoch {epoch} failed: {error or repr(error)}")
            raise
        if verb == "prepare":
            self._records[epoch] = json.dumps({name: message[name] for name in ENVELOPE})
        if verb == "retire":
            self._records.pop(epoch, None)
        return answer

    def _acts(
        self, command: Mapping[str, Any], epoch: int, beside: Mapping[str, Any]
    ) -> dict[str, Callable[[], dict[str, Any]]]:
        core = self._core
        return {
            "prepare": lambda: core.prepare(
                parse(command["manifest"]),
                {str(sha): bytes.fromhex(key) for sha, key in dict(beside.get("keys") or {}).items()},
                identity_of(dict(beside.get("identity") or {})),
            ),
            "link": lambda: core.link(epoch, command["timeout"]),
            "trial": lambda: core.trial(epoch, command["timeout"]),
            "commit": lambda: core.commit(epoch, self._records.get(epoch, "")),
            "retire": lambda: core.retire(epoch),
        }

    def _note(self, text: str) -> None:
        """One line, in the form the controller's own lines have there. A full disk does not stop a command."""
        log.info("%s", text)
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {' '.join(text.split())[:MAX_LINE]}\n"
        try:
            with open(os.open(self._audit, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as file:
                file.write(line.encode(errors="replace"))
        except OSError as error:
            log.warning("no line in the audit log: %s", error)
