"""The deployment's keys: certificates that TLS accepts among themselves, and nothing that should stay secret leaks."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from links import NOW, identities

from edgesplit.broadcast.authority import LIFETIME, SKEW, Secrets, command_key, create, fingerprint, issue
from edgesplit.errors import DeployError
from edgesplit.runner import manifest

SECRETS = create("tiny", NOW)


def certificate(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


def test_a_host_certificate_is_signed_by_the_authority_and_names_the_host() -> None:
    keys = issue(SECRETS, "shelf", NOW)
    authority, host = certificate(keys.authority), certificate(keys.certificate)
    host.verify_directly_issued_by(authority)
    assert host.subject.rfc4514_string() == "CN=shelf"
    assert authority.subject.rfc4514_string() == "CN=edgesplit tiny"
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):  # a host cannot issue
        host.extensions.get_extension_for_class(x509.BasicConstraints)


def test_the_key_fits_the_certificate() -> None:
    keys = issue(SECRETS, "shelf", NOW)
    key = serialization.load_pem_private_key(keys.key.encode(), None)
    assert key.public_key() == certificate(keys.certificate).public_key()


def test_every_key_is_fresh() -> None:
    assert issue(SECRETS, "shelf", NOW).key != issue(SECRETS, "shelf", NOW).key
    assert create("tiny", NOW).authority_key != SECRETS.authority_key


def test_certificates_are_valid_for_hosts_whose_clock_is_late() -> None:
    host = certificate(issue(SECRETS, "shelf", NOW).certificate)
    seconds = datetime.timedelta(seconds=1)
    assert abs(host.not_valid_before_utc - (NOW - SKEW)) < seconds
    assert abs(host.not_valid_after_utc - (NOW + LIFETIME)) < seconds


def test_both_ends_compute_the_same_fingerprint() -> None:
    keys = issue(SECRETS, "shelf", NOW)
    der = certificate(keys.certificate).public_bytes(serialization.Encoding.DER)
    assert keys.fingerprint == fingerprint(keys.certificate) == manifest.fingerprint(der)


def test_a_host_gets_no_key_but_its_own() -> None:
    keys = issue(SECRETS, "shelf", NOW)
    text = keys.authority + keys.certificate + keys.key + keys.controller
    for secret in (SECRETS.authority_key, SECRETS.command_key):
        assert secret not in text
    assert "PRIVATE" not in keys.authority + keys.certificate + keys.controller


def test_secrets_survive_their_file() -> None:
    again = Secrets.model_validate_json(SECRETS.to_json())
    assert again == SECRETS
    assert command_key(again).public_key() == command_key(SECRETS).public_key()


def test_a_key_of_the_wrong_kind_is_damage() -> None:
    swapped = SECRETS.model_copy(update={"command_key": SECRETS.authority_key, "authority_key": SECRETS.command_key})
    with pytest.raises(DeployError, match="command key is damaged"):
        command_key(swapped)
    with pytest.raises(DeployError, match="certificate authority is damaged"):
        issue(swapped, "shelf", NOW)


def test_a_long_host_name_fits_a_certificate() -> None:
    assert certificate(issue(SECRETS, "h" * 80, NOW).certificate).subject.rfc4514_string() == "CN=" + "h" * 64


def test_tls_takes_what_is_issued(tmp_path: Path) -> None:
    (identity, _), *_ = identities(tmp_path, "shelf").values()
    for server in (True, False):
        context = identity.context(server=server)
        assert context.minimum_version.name == "TLSv1_3"
        assert context.verify_mode.name == "CERT_REQUIRED"
