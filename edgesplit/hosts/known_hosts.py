"""Is the key that a host shows the one we know it by? The lines of known_hosts files -> a verdict.

One bad line costs only itself: unknown markers and garbage are passed over.
Must not know: how a key was shown, where the lines come from, what a certificate is.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


class Marker(Enum):
    NONE = ""
    AUTHORITY = "@cert-authority"
    REVOKED = "@revoked"


@dataclass(frozen=True)
class Entry:
    patterns: tuple[str, ...]
    kind: str
    blob: bytes
    marker: Marker = Marker.NONE
    where: str = ""  # file:line

    def names(self, name: str) -> bool:
        """Whether this line is about `name`; a pattern with ! in front takes a name out again."""
        if any(_matches(pattern[1:], name) for pattern in self.patterns if pattern.startswith("!")):
            return False
        return any(_matches(pattern, name) for pattern in self.patterns)


def place(host: str, port: int) -> str:
    """The name by which known_hosts files list a host."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def line(name: str, kind: str, blob: bytes, *, salt: bytes = b"") -> str:
    """A line that makes a key known; with a salt of 20 bytes, the name is hashed."""
    if salt:
        digest = hmac.digest(salt, name.encode(), "sha1")
        name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    return f"{name} {kind} {base64.b64encode(blob).decode()}"


def parse(lines: Iterable[str], file: str = "") -> tuple[Entry, ...]:
    found = (_entry(text, f"{file}:{number}") for number, text in enumerate(lines, 1))
    return tuple(entry for entry in found if entry is not None)


def about(entries: Iterable[Entry], names: Iterable[str], marker: Marker = Marker.NONE) -> Iterator[Entry]:
    """The lines of one kind that speak of any of these names."""
    wanted = tuple(names)
    return (entry for entry in entries if entry.marker is marker and any(entry.names(name) for name in wanted))


def judge(entries: Sequence[Entry], names: Sequence[str], *blobs: bytes) -> Verdict:
    """`names`: what the host may be listed as, the first of them its own; it is CHANGED only by lines on that one.

    `blobs`: its key, and the authority behind it if there is one: either of them may be revoked.
    """
    if any(entry.blob in blobs for entry in about(entries, names, Marker.REVOKED)):
        return Verdict.REVOKED
    if any(entry.blob == blobs[0] for entry in about(entries, names)):
        return Verdict.KNOWN
    return Verdict.CHANGED if any(about(entries, names[:1])) else Verdict.UNKNOWN


def _entry(text: str, where: str) -> Entry | None:
    words = text.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if marker not in [known.value for known in Marker] or len(words) < 3 or words[0].startswith("#"):
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except ValueError:
        return None
    return Entry(tuple(words[0].split(",")), words[1], blob, Marker(marker), where)


def _matches(pattern: str, name: str) -> bool:
    return _hashed(pattern, name) if pattern.startswith("|1|") else glob(pattern, name)


def glob(pattern: str, name: str) -> bool:
    """OpenSSH's: * and ?, and no difference between A and a."""
    expression = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name.lower()) is not None


def _hashed(pattern: str, name: str) -> bool:
    """|1|salt|HMAC-SHA1(salt, name)|, what `HashKnownHosts yes` writes."""
    try:
        salt, want = (base64.b64decode(word, validate=True) for word in pattern.split("|")[2:])
    except ValueError:
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), want)
