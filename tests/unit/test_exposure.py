"""Who sees what of a split."""

from __future__ import annotations

from edgesplit.revision.exposure import audit_words, who_sees_what
from edgesplit.split import split_from_placement


def test_each_host_is_told_what_crosses_its_borders() -> None:
    split = split_from_placement(["home", "home", "far", "far", "near", "far", "home"])
    entry, far, near = who_sees_what(split, {"home", "near"})
    assert (entry.host, entry.sees, entry.depth, entry.blocks) == (
        "home", "text and token ids", None, "embedding, layers.0, head")  # fmt: skip
    assert far.sees == "activations behind layers.0, behind layers.2, behind layers.3, behind layers.4"
    assert (far.depth, far.trusted, near.trusted) == (1, False, True)
    assert near.sees == "activations behind layers.2, behind layers.3"


def test_behind_the_embedding_the_depth_is_nothing() -> None:
    _, far = who_sees_what(split_from_placement(["home", "far", "home"]), {"home"})
    assert (far.depth, far.sees) == (0, "activations behind embedding, behind layers.0")


SPLIT = split_from_placement(["home", "home", "near", "far", "far", "home"])


def test_what_is_measured_is_told_of_the_first_untrusted_host() -> None:
    words = audit_words(dict(enumerate([1.0, 0.8, 0.6, 0.5, 0.2])), SPLIT, {"home", "near"})
    assert words == [
        "far is the first untrusted host on the way; behind layers.1, 60% of the tokens are recovered.",
        "To limit exposure to 50% of the tokens, pin everything up to layers.2.",
        "To limit exposure to 10% of the tokens, no depth is enough.",
    ]


def test_a_deep_boundary_that_gives_away_more_counts() -> None:
    words = audit_words(dict(enumerate([1.0, 0.4, 0.6, 0.05, 0.0])), SPLIT, {"home", "near"})
    assert words[1:] == [
        "To limit exposure to 50% of the tokens, pin everything up to layers.2.",
        "To limit exposure to 10% of the tokens, pin everything up to layers.2.",
    ]


def test_where_all_are_trusted_nothing_is_exposed() -> None:
    assert audit_words(dict.fromkeys(range(5), 1.0), SPLIT, {"home", "near", "far"}) == [
        "No untrusted host sees activations."
    ]
