"""The deployment's keys: one that signs commands, one that the keys of shards come from; and, for the ring of each
epoch, a certificate authority whose key nobody keeps.

The first two are made once per deployment and kept on the trusted entry host, so that any controller that may log in
there can take over. Of an epoch each host gets a key and a certificate of its own; the manifest names the certificates
by fingerprint.

Must not know: hosts' addresses, how anything travels.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID
from pydantic import Field

from edgesplit.errors import DeployError
from edgesplit.values import Value

# Links are made once per epoch, right after it was loaded (push.LOAD_SECONDS); open ones need no certificate.
LIFETIME = datetime.timedelta(hours=1)
EARLY = datetime.timedelta(days=1)  # before all clocks that are known, for one that is set meanwhile
FIRST_DAY = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
LAST_DAY = datetime.datetime(9999, 1, 1, tzinfo=datetime.timezone.utc)


class Secrets(Value):
    """A PEM text, and 32 bytes in hexadecimal. Never printed, never in a manifest; one file of mode 600 on the entry
    host."""

    command_key: str = Field(repr=False)
    shard_key: str = Field(repr=False)


@dataclass(frozen=True)
class HostKeys:
    """What one host gets for one epoch: PEM texts, and the fingerprint of its certificate."""

    authority: str
    certificate: str
    key: str = field(repr=False)
    fingerprint: str

    def told(self) -> dict[str, str]:
        """As runners take it."""
        return {name: text for name, text in asdict(self).items() if name != "fingerprint"}


@dataclass(frozen=True)
class Validity:
    begin: datetime.datetime
    end: datetime.datetime


def create() -> Secrets:
    return Secrets(command_key=_pem(Ed25519PrivateKey.generate()), shard_key=os.urandom(32).hex())


def command_key(secrets: Secrets) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(secrets.command_key.encode(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise DeployError("the deployment's command key is damaged", "take the deployment down and deploy again")
    return key


def controller_key(secrets: Secrets) -> str:
    """The public half of the command key, as PEM: what runners verify commands with."""
    public = command_key(secrets).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def shard_key(secrets: Secrets, sha256: str) -> bytes:
    """The key of the shard with this content: who has it can open that shard and no other (HKDF, RFC 5869)."""
    derived = HKDF(hashes.SHA256(), 32, None, f"edgesplit shard {sha256}".encode())
    return derived.derive(bytes.fromhex(secrets.shard_key))


def validity(now: datetime.datetime, ahead: Iterable[float]) -> Validity:
    """As long as it takes to make the links of an epoch, by every host's own clock. `ahead`: seconds that these are
    before ours; a board without a battery may think that it is another year."""
    clocks = [now, *(_moved(now, seconds) for seconds in ahead)]
    return Validity(max(FIRST_DAY, min(clocks) - EARLY), max(clocks) + LIFETIME)


def _moved(now: datetime.datetime, seconds: float) -> datetime.datetime:
    early, late = ((day - now).total_seconds() for day in (FIRST_DAY + EARLY, LAST_DAY))
    return now + datetime.timedelta(seconds=min(max(seconds, early), late))


def issue(deployment: str, hosts: Iterable[str], valid: Validity) -> dict[str, HostKeys]:
    """Fresh keys and certificates for the hosts of one epoch, under an authority of their own whose key is forgotten
    with the end of this function."""
    signer, name = ec.generate_private_key(ec.SECP256R1()), _name(f"edgesplit {deployment}")
    builder = _builder(name, name, signer, valid).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    authority = builder.sign(signer, hashes.SHA256())

    def one(host: str) -> HostKeys:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _builder(_name(host), name, key, valid).sign(signer, hashes.SHA256())
        return HostKeys(_text(authority), _text(certificate), _pem(key), fingerprint(certificate))

    return {host: one(host) for host in hosts}


def fingerprint(certificate: x509.Certificate) -> str:
    """sha256 of the certificate's DER bytes, in hexadecimal, as runners compute it from the TLS handshake."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid.begin)
        .not_valid_after(valid.end)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
