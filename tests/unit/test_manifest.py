"""The manifest: it comes back from JSON as it was, says who talks to whom, and does not hold nonsense."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from links import SHAS, manifest

from edgesplit.runner.manifest import ManifestError, fingerprint, parse


def data() -> dict[str, Any]:
    return json.loads(json.dumps(manifest().to_dict()))


def test_it_survives_json() -> None:
    assert parse(data()) == manifest()


def test_who_holds_what_and_who_talks_to_whom() -> None:
    ring = manifest("desk", "shelf", "desk", "attic", "shelf", "desk")
    assert ring.entry == "desk"
    assert {number: (place.first, place.last) for number, place in ring.places("desk").items()} == {
        0: (0, 0),
        2: (2, 2),
        5: (5, 5),
    }
    assert ring.blocks("shelf") == {1, 4}
    assert ring.targets("desk") == {"shelf", "attic"}
    assert ring.sources("desk") == {"shelf"}
    assert ring.sources("shelf") == {"desk", "attic"}
    assert ring.places("cellar") == {}


def test_one_host_alone_talks_to_nobody() -> None:
    ring = manifest(*["desk"] * 6)
    assert (ring.targets("desk"), ring.sources("desk")) == (frozenset(), frozenset())


def test_the_holder_of_a_tied_head_needs_the_embedding_too() -> None:
    ring = manifest("desk", "desk", "shelf", "shelf", "shelf", "desk", tied=True)
    assert ring.blocks("desk") == {0, 1, 5}
    alien = manifest("desk", "desk", "shelf", "shelf", "shelf", "shelf", tied=True)
    assert alien.blocks("shelf") == {0, 2, 3, 4, 5}


@pytest.mark.parametrize("key", sorted(manifest().to_dict()))
def test_whatever_is_missing_is_named(key: str) -> None:
    broken = data()
    del broken[key]
    with pytest.raises(ManifestError, match=key):
        parse(broken)


def changed(*path: Any, to: Any) -> dict[str, Any]:
    broken = copy.deepcopy(data())
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return broken


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (changed("stages", 0, "first", to=1), "do not cover"),
        (changed("stages", 1, "last", to=4), "do not cover"),
        (changed("stages", to=[]), "do not cover"),
        (changed("shards", to=[*SHAS, SHAS[0]]), "do not cover blocks 0 to 6"),
        (changed("stages", 3, "host", to="shelf"), "does not end where it begins"),
        (changed("stages", 1, "host", to="desk"), "are one stage"),
        (changed("stages", 2, "host", to="cellar"), "no address of cellar"),
        (changed("stages", 0, to="desk"), "incomplete"),
        (changed("stages", 0, "first", to="one"), "incomplete"),
        (changed("peers", to=[]), "incomplete"),
        (changed("peers", "desk", to={"port": 1}), "incomplete"),
        (changed("epoch", to="first"), "incomplete"),
        (changed("files", to={"../config.json": SHAS[0]}), "a path for a name"),
        (changed("files", to={".bashrc": SHAS[0]}), "a path for a name"),
        (changed("files", to={"config.json": "../../key"}), "no sha256"),
        (changed("common", to="../common"), "no sha256"),
        (changed("service", "prefill_chunk", to=0), "below 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(broken: dict[str, Any], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        parse(broken)


@pytest.mark.parametrize("nonsense", [[], 7, "desk", None])
def test_what_is_no_object_is_refused(nonsense: Any) -> None:
    with pytest.raises(ManifestError):
        parse(nonsense)


def test_a_fingerprint_is_the_sha256_of_the_certificate() -> None:
    assert fingerprint(b"der") == hashlib.sha256(b"der").hexdigest()
