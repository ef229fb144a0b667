"""Only what the deployment's controller signed passes, and only once: the two ends against each other."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesplit.broadcast.authority import command_key, controller_key, create
from edgesplit.broadcast.signing import Signer
from edgesplit.runner.gate import Gate, Refused

SECRETS = create()
KEY = command_key(SECRETS)
CLOCK = 1e6  # of the host: it woke up in 1970


class Shelf:
    """A runner's folder as the gate sees it."""

    def __init__(self, folder: Path) -> None:
        self.serial = ""
        self.key = folder / "controller.pub"
        self.key.write_text(controller_key(SECRETS))

    def gate(self) -> Gate:
        whom = ("tiny", "shelf")
        return Gate(whom, self.key, lambda: self.serial, lambda serial: setattr(self, "serial", serial), lambda: CLOCK)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def seal(
    serial: int = 1, deployment: str = "tiny", host: str = "shelf", expires: float = CLOCK + 1, **fields: Any
) -> dict[str, str]:
    return dict(json.loads(Signer(deployment, KEY).seal("retire", host, serial, expires, **fields)))


def test_a_genuine_command_is_accepted_once(shelf: Shelf) -> None:
    gate, envelope = shelf.gate(), seal(epoch=3)
    whom = {"deployment": "tiny", "host": "shelf", "serial": 1, "expires": CLOCK + 1}
    assert gate.open(envelope) == {**whom, "verb": "retire", "epoch": 3}
    with pytest.raises(Refused, match="serial 1 is not newer than 1"):
        gate.open(envelope)
    assert gate.open(seal(2))["serial"] == 2


def test_an_older_command_is_refused(shelf: Shelf) -> None:
    gate = shelf.gate()
    gate.open(seal(10))
    with pytest.raises(Refused, match="serial 9 is not newer than 10"):
        gate.open(seal(9))


def test_the_last_serial_survives_a_restart(shelf: Shelf) -> None:
    shelf.gate().open(seal(5))
    assert shelf.serial == "5"
    with pytest.raises(Refused):
        shelf.gate().open(seal(5))
    shelf.gate().open(seal(6))


def test_another_deployments_command_is_refused(shelf: Shelf) -> None:
    with pytest.raises(Refused, match="for deployment other"):
        shelf.gate().open(seal(deployment="other"))


def test_a_command_to_another_host_is_refused(shelf: Shelf) -> None:
    with pytest.raises(Refused, match="for desk"):
        shelf.gate().open(seal(host="desk"))


@pytest.mark.parametrize("expires", [CLOCK, CLOCK - 100.0, 0.0, float("nan"), float("-inf")])
def test_an_expired_command_is_refused_and_costs_no_serial(shelf: Shelf, expires: float) -> None:
    gate = shelf.gate()
    with pytest.raises(Refused, match="expired"):
        gate.open(seal(expires=expires))
    assert gate.open(seal())


def test_another_key_is_refused(shelf: Shelf) -> None:
    forged = json.loads(Signer("tiny", Ed25519PrivateKey.generate()).seal("retire", "shelf", 1, CLOCK + 1))
    with pytest.raises(Refused, match="signature is not"):
        shelf.gate().open(forged)


def test_a_changed_payload_is_refused(shelf: Shelf) -> None:
    envelope = seal(epoch=3)
    envelope["payload"] = envelope["payload"].replace("3", "4")
    with pytest.raises(Refused, match="signature is not"):
        shelf.gate().open(envelope)


@pytest.mark.parametrize(
    "garbage",
    [
        {},
        {"payload": "{}"},
        {"payload": "{}", "signature": 7},
        {"payload": "{}", "signature": "no base64!"},
        {"payload": "{}", "signature": "\ud800"},
        {"payload": "\ud800", "signature": ""},
        {"payload": {"verb": "retire"}, "signature": ""},
    ],
)
def test_garbage_is_refused(shelf: Shelf, garbage: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        shelf.gate().open(garbage)


@pytest.mark.parametrize("payload", ["no json", "[1]", '"retire"', '{"deployment": "tiny"}', '{"serial": "x"}', "7"])
def test_a_signed_payload_that_is_no_command_is_refused(shelf: Shelf, payload: str) -> None:
    signature = base64.b64encode(KEY.sign(payload.encode())).decode()
    with pytest.raises(Refused, match="not a signed command"):
        shelf.gate().open({"payload": payload, "signature": signature})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["payload", "signature"]), st.text() | st.integers() | st.none()))
def test_nothing_unsigned_ever_passes(tmp_path_factory: pytest.TempPathFactory, envelope: dict[str, Any]) -> None:
    gate = Shelf(tmp_path_factory.mktemp("gate")).gate()
    with pytest.raises(Refused):
        gate.open(envelope)


def test_what_is_refused_does_not_move_the_serial(shelf: Shelf) -> None:
    gate = shelf.gate()
    for envelope in (seal(99, deployment="other"), {"payload": '{"serial": 99}', "signature": ""}):
        with pytest.raises(Refused):
            gate.open(envelope)
    assert shelf.serial == ""
    gate.open(seal(1))


def test_a_key_of_another_kind_is_no_gate(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    shelf.key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ValueError, match="no Ed25519 key"):
        shelf.gate()
