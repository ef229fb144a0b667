"""The deployment's keys: a certificate authority for the data plane, the key that signs commands, and the one that the
keys of shards come from.

They are made once per deployment and kept on the trusted entry host, so that any controller that may log in there can
take over. Each host gets a key and a certificate of its own; the manifest names the certificates by fingerprint.

Must not know: hosts' addresses, how files travel.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from edgesplit.errors import DeployError
from edgesplit.values import Value

# As long as any deployment: nothing renews a certificate, and the manifest's fingerprints say which ones count.
LIFETIME = datetime.timedelta(days=3650)
SKEW = datetime.timedelta(days=365)  # a board without a battery-backed clock wakes up on the day it was switched off


class Secrets(Value):
    """PEM texts, and 32 bytes in hexadecimal. Never printed, never in a manifest; one file of mode 600 on the entry
    host."""

    authority_key: str
    authority: str
    command_key: str
    shard_key: str


@dataclass(frozen=True)
class HostKeys:
    """What one host gets: PEM texts, and the fingerprint of its certificate."""

    authority: str
    certificate: str
    key: str
    controller: str
    fingerprint: str


def create(deployment: str, now: datetime.datetime) -> Secrets:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"edgesplit {deployment}")
    certificate = _builder(name, name, key, now).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    return Secrets(
        authority_key=_pem(key),
        authority=_text(certificate.sign(key, hashes.SHA256())),
        command_key=_pem(Ed25519PrivateKey.generate()),
        shard_key=os.urandom(32).hex(),
    )


def command_key(secrets: Secrets) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(secrets.command_key.encode(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise DeployError("the deployment's command key is damaged", "take the deployment down and deploy again")
    return key


def shard_key(secrets: Secrets, sha256: str) -> bytes:
    """The key of the shard with this content: who has it can open that shard and no other (HKDF, RFC 5869)."""
    derived = HKDF(hashes.SHA256(), 32, None, f"edgesplit shard {sha256}".encode())
    return derived.derive(bytes.fromhex(secrets.shard_key))


def issue(secrets: Secrets, host: str, now: datetime.datetime) -> HostKeys:
    """A fresh key and certificate for one host."""
    authority = x509.load_pem_x509_certificate(secrets.authority.encode())
    signer = serialization.load_pem_private_key(secrets.authority_key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise DeployError("the deployment's certificate authority is damaged", "take it down and deploy again")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _builder(_name(host), authority.subject, key, now).sign(signer, hashes.SHA256())
    return HostKeys(
        authority=secrets.authority,
        certificate=_text(certificate),
        key=_pem(key),
        controller=_public(command_key(secrets)),
        fingerprint=fingerprint(_text(certificate)),
    )


def fingerprint(certificate: str) -> str:
    """sha256 of the certificate's DER bytes, in hexadecimal, as runners compute it from the TLS handshake."""
    der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _public(key: Ed25519PrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
