"""The deployment's keys: certificates that TLS accepts among themselves, and nothing that should stay secret leaks."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from links import NOW, identities

from edgesplit.broadcast.authority import (
    EARLY,
    FIRST_DAY,
    LAST_DAY,
    LIFETIME,
    HostKeys,
    Secrets,
    command_key,
    controller_key,
    create,
    issue,
    validity,
)
from edgesplit.broadcast.push import LINK_SECONDS, LOAD_SECONDS
from edgesplit.errors import DeployError
from edgesplit.runner import manifest
from edgesplit.runner.identity import identity_of

SECRETS = create()
SECOND = datetime.timedelta(seconds=1)


def issued(*hosts: str) -> dict[str, HostKeys]:
    return issue("tiny", hosts, validity(NOW, ()))


def certificate(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


def test_the_hosts_of_an_epoch_have_certificates_of_one_authority_and_with_their_names() -> None:
    for name, keys in issued("desk", "shelf").items():
        authority, host = certificate(keys.authority), certificate(keys.certificate)
        host.verify_directly_issued_by(authority)
        assert host.subject.rfc4514_string() == f"CN={name}"
        assert authority.subject.rfc4514_string() == "CN=edgesplit tiny"
        assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        with pytest.raises(x509.ExtensionNotFound):  # a host cannot issue
            host.extensions.get_extension_for_class(x509.BasicConstraints)


def test_the_key_fits_the_certificate() -> None:
    keys = issued("shelf")["shelf"]
    key = serialization.load_pem_private_key(keys.key.encode(), None)
    assert key.public_key() == certificate(keys.certificate).public_key()


def test_every_epoch_has_another_authority_and_every_host_another_key() -> None:
    first, second = issued("desk", "shelf"), issued("desk", "shelf")
    assert len({keys.authority for epoch in (first, second) for keys in epoch.values()}) == 2
    assert len({keys.key for epoch in (first, second) for keys in epoch.values()}) == 4


def test_a_certificate_outlives_the_making_of_links_and_little_more() -> None:
    assert 1 < LIFETIME.total_seconds() / (LOAD_SECONDS + LINK_SECONDS) < 3
    host = certificate(issued("shelf")["shelf"].certificate)
    assert abs(host.not_valid_before_utc - (NOW - EARLY)) < SECOND
    assert abs(host.not_valid_after_utc - (NOW + LIFETIME)) < SECOND


@pytest.mark.parametrize(
    ("ahead", "begin", "end"),
    [
        ([-86400.0 * 365, 10.0], NOW - datetime.timedelta(days=365) - EARLY, NOW + 10 * SECOND + LIFETIME),
        ([-1e12], FIRST_DAY, NOW + LIFETIME),  # before 1970
        ([1e12], NOW - EARLY, LAST_DAY + LIFETIME),
    ],
)
def test_certificates_are_valid_by_every_hosts_own_clock(
    ahead: list[float], begin: datetime.datetime, end: datetime.datetime
) -> None:
    valid = validity(NOW, ahead)
    assert abs(valid.begin - begin) < SECOND
    assert abs(valid.end - end) < SECOND
    assert issue("tiny", ["desk"], valid)


def test_both_ends_compute_the_same_fingerprint() -> None:
    keys = issued("shelf")["shelf"]
    der = certificate(keys.certificate).public_bytes(serialization.Encoding.DER)
    assert keys.fingerprint == identity_of(keys.told()).fingerprint == manifest.fingerprint(der)


def test_what_is_shown_of_keys_is_no_secret() -> None:
    keys = issued("shelf")["shelf"]
    assert "PRIVATE" not in repr(keys) + repr(identity_of(keys.told())) + controller_key(SECRETS)
    assert keys.key not in repr(keys)
    assert not [secret for secret in SECRETS.model_dump().values() if secret in f"{SECRETS} {SECRETS!r}"]


def test_secrets_survive_their_file() -> None:
    again = Secrets.model_validate_json(SECRETS.to_json())
    assert again == SECRETS
    assert controller_key(again) == controller_key(SECRETS)


def test_a_key_of_the_wrong_kind_is_damage() -> None:
    swapped = SECRETS.model_copy(update={"command_key": issued("desk")["desk"].key})
    with pytest.raises(DeployError, match="command key is damaged"):
        command_key(swapped)


def test_a_long_host_name_fits_a_certificate() -> None:
    assert certificate(issued("h" * 80)["h" * 80].certificate).subject.rfc4514_string() == "CN=" + "h" * 64


def test_tls_takes_what_is_issued() -> None:
    identity = identities("shelf")["shelf"]
    for server in (True, False):
        context = identity.context(server=server)
        assert context.minimum_version.name == "TLSv1_3"
        assert context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize("part", ["authority", "certificate", "key"])
def test_an_identity_that_lacks_a_part_is_refused(part: str) -> None:
    told = issued("shelf")["shelf"].told()
    del told[part]
    with pytest.raises(ValueError, match=part):
        identity_of(told)
