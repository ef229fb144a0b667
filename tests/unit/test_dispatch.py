"""Commands of a runner: signed ones are carried out one at a time and leave a trail; `status` needs no signature."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from links import manifest

from edgesplit.broadcast.authority import command_key, controller_key, create
from edgesplit.broadcast.signing import Signer
from edgesplit.runner.dispatch import MAX_LINE, Dispatch
from edgesplit.runner.gate import Gate
from edgesplit.runner.identity import Identity
from edgesplit.runner.manifest import Manifest

SECRETS = create()


class Recorder:
    """A core that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fail: Exception | None = None
        self.busy, self.most = 0, 0

    def _note(self, *what: Any) -> dict[str, Any]:
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.told.append(what)
        time.sleep(0.001)  # long enough for another thread to come in, if it could
        self.busy -= 1
        if self.fail is not None:
            raise self.fail
        return {"did": what[0]}

    def prepare(self, manifest: Manifest, keys: Mapping[str, bytes], identity: Identity) -> dict[str, Any]:
        self.keys, self.identity = dict(keys), identity
        return self._note("prepare", manifest.epoch)

    def link(self, epoch: int, timeout: float) -> dict[str, Any]:
        return self._note("link", epoch, timeout)

    def trial(self, epoch: int, timeout: float) -> dict[str, Any]:
        return self._note("trial", epoch, timeout)

    def commit(self, epoch: int, record: str) -> dict[str, Any]:
        return self._note("commit", epoch, record)

    def retire(self, epoch: int) -> dict[str, Any]:
        return self._note("retire", epoch)

    def status(self) -> dict[str, Any]:
        return {"well": True}

    def key(self) -> dict[str, Any]:
        return {"key": "es-own"}


class Desk:
    def __init__(self, folder: Path) -> None:
        (folder / "controller.pub").write_text(controller_key(SECRETS))
        gate = Gate(("tiny", "desk"), folder / "controller.pub", lambda: "", lambda _: None)
        self.core, self.audit = Recorder(), folder / "audit.log"
        self.dispatch = Dispatch(self.core, gate, self.audit)
        self._signer, self._serial = Signer("tiny", command_key(SECRETS)), 0

    def envelope(self, verb: str, **fields: Any) -> dict[str, Any]:
        self._serial += 1
        return dict(
            json.loads(self._signer.seal(verb, "desk", self._serial, time.time() + 60, **{"epoch": 3, **fields}))
        )

    def say(self, verb: str, **fields: Any) -> dict[str, Any]:
        return self.dispatch.handle(self.envelope(verb, **fields))

    @property
    def trail(self) -> list[str]:
        """Without the dates, which must be there."""
        lines = self.audit.read_text().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in lines)
        return [line.split(" ", 1)[1] for line in lines]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_life_of_an_epoch_leaves_a_line_for_each_command(desk: Desk) -> None:
    prepare = desk.envelope("prepare", manifest=manifest(epoch=3).to_dict())
    identity = {"authority": "a", "certificate": "b", "key": "c"}
    beside = {"keys": {"abc": "00ff"}, "identity": identity}
    assert desk.dispatch.handle({**prepare, **beside}) == {"ok": {"did": "prepare"}}
    assert (desk.core.keys, desk.core.identity) == ({"abc": b"\0\xff"}, Identity(**identity))
    for verb in ("link", "trial"):
        assert desk.say(verb, timeout=5.0) == {"ok": {"did": verb}}
    assert desk.say("commit") == {"ok": {"did": "commit"}}
    assert desk.say("retire") == {"ok": {"did": "retire"}}
    told = desk.core.told
    assert [entry[:2] for entry in told] == [(v, 3) for v in ("prepare", "link", "trial", "commit", "retire")]
    assert told[1][2] == 5.0
    assert json.loads(told[3][2]) == prepare  # what commit keeps is the signed manifest, and no key
    assert desk.trail == [f"{verb} epoch 3" for verb in ("prepare", "link", "trial", "commit", "retire")]
    assert desk.audit.stat().st_mode & 0o777 == 0o600


def test_status_needs_no_signature_and_leaves_no_trail(desk: Desk) -> None:
    assert desk.dispatch.handle({"verb": "status"}) == {"ok": {"well": True, "serial": 0}}
    assert not desk.audit.exists()


def test_a_refused_command_reaches_nobody_and_leaves_a_line(desk: Desk) -> None:
    envelope = desk.envelope("retire")
    desk.dispatch.handle(envelope)
    answer = desk.dispatch.handle(envelope)
    assert "replayed" in answer["error"]
    assert len(desk.core.told) == 1
    assert desk.trail[1].startswith("refused: serial 1 is not newer")


@pytest.mark.parametrize("message", [{}, {"verb": "retire", "epoch": 3}, {"payload": 1, "signature": None}])
def test_what_is_not_signed_is_refused(desk: Desk, message: dict[str, Any]) -> None:
    assert desk.dispatch.handle(message)["error"].startswith("refused: not a signed command")
    assert desk.core.told == []


def test_an_unknown_verb_is_refused(desk: Desk) -> None:
    assert desk.say("explode")["error"] == "refused: no command is called 'explode'"


def test_whoever_may_open_the_socket_gets_a_key_that_no_trail_shows(desk: Desk) -> None:
    assert desk.dispatch.handle({"verb": "key"}) == {"ok": {"key": "es-own"}}
    assert not desk.audit.exists()


def test_a_failure_is_answered_and_noted_in_one_line(desk: Desk) -> None:
    desk.core.fail = RuntimeError("no room\nfor this " + "x" * 1000)
    assert desk.say("link", timeout=1.0)["error"].startswith("no room\nfor this")
    assert desk.trail[0] == "link epoch 3"
    assert desk.trail[1].startswith("link epoch 3 failed: no room for this xxx")
    assert len(desk.trail[1]) <= MAX_LINE
    desk.core.fail = None
    assert "ok" in desk.say("retire")


def test_a_damaged_manifest_is_no_command(desk: Desk) -> None:
    assert "the manifest is incomplete" in desk.say("prepare", manifest={})["error"]
    assert desk.core.told == []


def test_a_command_without_its_fields_is_answered(desk: Desk) -> None:
    assert "timeout" in desk.say("link")["error"]


def test_a_trail_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.audit.mkdir()
    assert desk.say("retire") == {"ok": {"did": "retire"}}


def test_commands_come_one_at_a_time(desk: Desk) -> None:
    envelopes = [desk.envelope("retire") for _ in range(20)]
    threads = [threading.Thread(target=desk.dispatch.handle, args=(envelope,)) for envelope in envelopes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.core.told
    assert desk.core.most == 1
