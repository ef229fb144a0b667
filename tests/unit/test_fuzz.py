"""Hostile bytes for whatever reads bytes of others: frames, commands, manifests, sealed files. Each is read or refused
in its own words, at once, and leaves no memory behind.

EDGESPLIT_FUZZ says how many inputs (`make fuzz`: ten million); EDGESPLIT_SEED where to begin.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from links import manifest
from sealed import key, sealed

from edgesplit.broadcast.authority import command_key, controller_key, create
from edgesplit.broadcast.signing import Signer
from edgesplit.runner.gate import Gate, Refused
from edgesplit.runner.manifest import ManifestError, recorded
from edgesplit.runner.sealing import SealedFile, SealError
from edgesplit.runner.wire import MAX_TEXT, Decoder, Kind, Lap, Message, Row, Tensor, WireError, encode

COUNT = int(os.environ.get("EDGESPLIT_FUZZ", "60000"))
SEED = int(os.environ.get("EDGESPLIT_SEED", "1"))
LIMIT = 4096
SECONDS = 5.0  # that one slice of inputs may take at most: a decoder that hangs is ended
SLICE = 1000
GROWTH = 16 * 2**20  # bytes of resident memory, once warm
EDGES = [0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 65, 127, 128, 254, 255]
KEEP = 400  # inputs that showed something new, to go on from
Target = Callable[[bytes], str]


def mutated(chance: random.Random, seed: bytes, other: bytes) -> bytes:
    """Another input, a few changes away from one that made sense."""
    data = bytearray(seed)
    for _ in range(1 + int(chance.random() * 4)):
        at, how = int(chance.random() * (len(data) + 1)), chance.random()
        if how < 0.3 and at < len(data):
            data[at] ^= 1 << int(chance.random() * 8)
        elif how < 0.5 and at < len(data):
            data[at] = EDGES[int(chance.random() * len(EDGES))]
        elif how < 0.6:
            data[at : at + 4] = (2 ** int(chance.random() * 33) - int(chance.random() * 2)).to_bytes(5, "big")[1:]
        elif how < 0.7:
            del data[at:]
        elif how < 0.8:
            del data[at : at + 1 + int(chance.random() * 16)]
        elif how < 0.9:
            data[at:at] = other[: int(chance.random() * 64)]
        else:
            data[at:at] = data[at : at + 1 + int(chance.random() * 32)] * (1 + int(chance.random() * 3))
    return bytes(data)


# --- those that read ---


def frames() -> tuple[Target, list[bytes]]:
    def read(data: bytes) -> str:
        decoder, told, at = Decoder(LIMIT), "", 0
        while at < len(data):
            place = decoder.buffer()
            assert 0 < len(place) <= max(LIMIT, MAX_TEXT)
            count = min(len(place), len(data) - at, 1 + len(data) // 3)
            place[:count] = data[at : at + count]
            at += count
            try:
                message = decoder.advance(count)
            except WireError as error:
                return told + str(error)
            if message is not None:
                told += message.kind.name
        return told + "more"

    half = Tensor("float16", (2, 3), bytes(12))
    work = Message(Kind.WORK, 3, 1, (Row(7, 5), Row(8, 1)), 5, (half, None), None, {"mask": half}, (Lap(1, 2, 3, 4),))
    plain = [Message(Kind.BEAT, 3, text={"done": 1}), Message(Kind.DROP, 3, rows=(Row(1, 0),)), Message(Kind.BYE, 3)]
    hello = Message(Kind.HELLO, 3, text={"deployment": "tiny", "source": "desk", "target": "shelf"})
    return read, [b"".join(encode(message)) for message in (work, hello, *plain)]


def commands(folder: Path) -> tuple[Target, list[bytes]]:
    secrets = create()
    (folder / "controller.pub").write_text(controller_key(secrets))
    signer = Signer("tiny", command_key(secrets))
    gate = Gate(("tiny", "desk"), folder / "controller.pub", lambda: "", lambda _: None, lambda: 0.0)
    genuine = [signer.seal("retire", "desk", serial, 9e9, epoch=3) for serial in (1, 2, 3)]
    accepted = {json.loads(envelope)["payload"] for envelope in genuine}

    def read(data: bytes) -> str:
        try:
            envelope = json.loads(data)  # as control.py does
        except (ValueError, RecursionError):
            return "no JSON"
        if not isinstance(envelope, dict):
            return "no object"
        try:
            gate.open(envelope)
        except Refused as error:
            return str(error)
        assert str(envelope["payload"]) in accepted
        gate.serial = 0
        return "honoured"

    return read, genuine


def manifests() -> tuple[Target, list[bytes]]:
    def read(data: bytes) -> str:
        try:
            recorded(json.dumps({"payload": data.decode("latin-1")}))
        except ManifestError as error:
            return str(error)
        return "read"

    return read, [json.dumps({"manifest": manifest().to_dict()}).encode()]


def seals(folder: Path) -> tuple[Target, list[bytes]]:
    file = folder / "a.sealed"

    def read(data: bytes) -> str:
        file.write_bytes(data)
        try:
            found = SealedFile(file, key("a"))
            found.read(0, min(found.size, 2**16))
        except SealError as error:
            return str(error)
        return "read"

    return read, [sealed(b"weights" * 40, "a"), sealed(b"x", "a")]


# --- the run ---


def resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slices(count: int) -> Iterator[int]:
    for start in range(0, count, SLICE):
        yield min(SLICE, count - start)


def hung(*_: Any) -> None:
    raise AssertionError(f"{SLICE} inputs took more than {SECONDS:g} s of processor time")


@pytest.mark.parametrize(("name", "share"), [("frames", 0.8), ("manifests", 0.1), ("commands", 0.05), ("seals", 0.05)])
def test_hostile_bytes(name: str, share: float, tmp_path: Path) -> None:
    made = {"frames": frames, "manifests": manifests}.get(name)
    target, corpus = made() if made else {"commands": commands, "seals": seals}[name](tmp_path)
    chance, seen, warm = random.Random(SEED), set[str](), 0  # noqa: S311 - repeatable
    before = signal.signal(signal.SIGVTALRM, hung)
    try:
        for number, count in enumerate(slices(int(COUNT * share))):
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            for _ in range(count):
                seed, other = (corpus[int(chance.random() * len(corpus))] for _ in range(2))
                data = mutated(chance, seed, other)[: 4 * LIMIT]
                told = re.sub(r"\d+|'.*'|\(.*", "", target(data))[:80]
                if told not in seen and len(corpus) < KEEP:
                    seen.add(told)
                    corpus.append(data)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            warm = resident() if number == 20 else warm
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert len(seen) >= 3, seen  # it came further than the first check
    if warm:
        assert resident() - warm < GROWTH
