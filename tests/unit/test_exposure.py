"""Who sees what of a split."""

from __future__ import annotations

from edgesplit.revision.exposure import who_sees_what
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
