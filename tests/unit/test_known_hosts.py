"""known_hosts files as OpenSSH writes them, and as people leave them."""

from __future__ import annotations

import base64

import pytest

from edgesplit.hosts.known_hosts import Marker, Verdict, about, judge, line, parse, place

OURS, OTHER = b"\0\0\0\x0bssh-ed25519 ours", b"\0\0\0\x0bssh-ed25519 other"
KEY, OTHER_KEY = (f"ssh-ed25519 {base64.b64encode(blob).decode()}" for blob in (OURS, OTHER))
# what `ssh-keygen -H` makes of pi.lan, with the salt 0, 1, ... 19
HASHED = "|1|AAECAwQFBgcICQoLDA0ODxAREhM=|hOuYCWZhtl4/aCJ7J2tjxO/vL98="


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([], Verdict.UNKNOWN),
        ([f"pi.lan {KEY}"], Verdict.KNOWN),
        ([f"PI.lan {KEY} a comment"], Verdict.KNOWN),
        ([f"a,pi.lan,b\t{KEY}"], Verdict.KNOWN),
        ([f"pi.lan {OTHER_KEY}"], Verdict.CHANGED),
        ([f"pi.lan {OTHER_KEY}", f"pi.lan {KEY}"], Verdict.KNOWN),
        ([f"# pi.lan {KEY}", f"other.lan {KEY}"], Verdict.UNKNOWN),
        ([f"*.lan {KEY}"], Verdict.KNOWN),
        ([f"p?.lan {KEY}"], Verdict.KNOWN),
        ([f"*.lan,!pi.lan {KEY}"], Verdict.UNKNOWN),
        ([f"[pi.lan]:2222 {KEY}"], Verdict.UNKNOWN),
        ([f"pi.lan {KEY}", f"@revoked * {KEY}"], Verdict.REVOKED),
        ([f"pi.lan {KEY}", f"@revoked * {OTHER_KEY}"], Verdict.KNOWN),
        ([f"@cert-authority *.lan {KEY}"], Verdict.UNKNOWN),
        (["", "garbage", "pi.lan ssh-ed25519", "pi.lan ssh-ed25519 not!base64", f"@odd pi.lan {KEY}"], Verdict.UNKNOWN),
        (["|1|", "|1|x|y| a AAAA", f"|1|a|b {KEY}", "\0\ufffd \0 \0", f"pi.lan {KEY}"], Verdict.KNOWN),
    ],
)
def test_judge(lines: list[str], verdict: Verdict) -> None:
    assert judge(parse(lines), ["pi.lan"], OURS) is verdict


def test_hashed_names() -> None:
    entries = parse([f"{HASHED} {KEY}"])
    assert judge(entries, ["pi.lan"], OURS) is Verdict.KNOWN
    assert judge(entries, ["pi.lan"], OTHER) is Verdict.CHANGED
    assert judge(entries, ["[pi.lan]:2222"], OURS) is Verdict.UNKNOWN


def test_place() -> None:
    assert place("Pi.lan", 22) == "pi.lan"
    assert place("Pi.lan", 2222) == "[pi.lan]:2222"


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([f"[pi.lan]:2222 {KEY}"], Verdict.KNOWN),
        ([f"pi.lan {KEY}"], Verdict.KNOWN),
        ([f"pi.lan {OTHER_KEY}"], Verdict.UNKNOWN),
        ([f"[pi.lan]:2222 {OTHER_KEY}"], Verdict.CHANGED),
        ([f"[pi.lan]:2222 {OTHER_KEY}", f"pi.lan {KEY}"], Verdict.KNOWN),
        ([f"[pi.lan]:2222 {KEY}", f"@revoked pi.lan {KEY}"], Verdict.REVOKED),
    ],
)
def test_at_another_port_the_plain_name_counts_too_but_never_as_a_change(lines: list[str], verdict: Verdict) -> None:
    assert judge(parse(lines), ["[pi.lan]:2222", "pi.lan"], OURS) is verdict


def test_an_authority_may_be_revoked_like_a_key() -> None:
    entries = parse([f"pi.lan {KEY}", f"@revoked * {OTHER_KEY}"])
    assert judge(entries, ["pi.lan"], OURS) is Verdict.KNOWN
    assert judge(entries, ["pi.lan"], OURS, OTHER) is Verdict.REVOKED


def test_lines_say_where_they_stand() -> None:
    lines = ["# mine", f"pi.lan {KEY}", f"@cert-authority *.lan,!x.lan {OTHER_KEY}", f"@revoked * {OTHER_KEY}"]
    entries = parse(lines, "/k")
    found = {marker: [entry.where for entry in about(entries, ["pi.lan"], marker)] for marker in Marker}
    assert found == {Marker.NONE: ["/k:2"], Marker.AUTHORITY: ["/k:3"], Marker.REVOKED: ["/k:4"]}
    assert not list(about(entries, ["x.lan"], Marker.AUTHORITY))


def test_a_line_is_read_as_it_was_written() -> None:
    assert line("pi.lan", "ssh-ed25519", OURS) == f"pi.lan {KEY}"
    assert line("pi.lan", "ssh-ed25519", OURS, salt=bytes(range(20))) == f"{HASHED} {KEY}"
