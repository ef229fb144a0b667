"""The chain: how people name its blocks, and how it names them back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesplit.model.blocks import Block, Chain, name_blocks


def chain(layers: int) -> Chain:
    def block(name: str, weight: int, layer: bool = False) -> Block:
        return Block(
            name=name,
            kind="layer" if layer else "embedding" if name == "embedding" else "head",
            weight_bytes=weight,
            kv_bytes_per_token=64 if layer else 0,
            state_bytes=0,
            flops_per_token=2 * weight,
            output_bytes_per_token=32,
        )

    middle = [block(f"layers.{number}", 100, layer=True) for number in range(layers)]
    return Chain(
        model="m",
        architecture="A",
        dtype="float32",
        blocks=(block("embedding", 1000), *middle, block("head", 10)),
        common_bytes=1,
        max_context=None,
        checkpoint="c",
    )


def test_a_chain_adds_up() -> None:
    assert chain(4).layers == 4
    assert chain(4).weight_bytes == 1000 + 4 * 100 + 10 + 1


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("embedding", [0]),
        ("layers.0", [1]),
        ("layers.3", [4]),
        ("layers.0-3", [1, 2, 3, 4]),
        ("layers.1-2", [2, 3]),
        ("layers.2-2", [3]),
        ("head", [5]),
    ],
)
def test_blocks_by_name(name: str, blocks: list[int]) -> None:
    assert list(chain(4).select(name)) == blocks


@pytest.mark.parametrize(
    "name",
    ["", "layer.0", "layers", "layers.", "layers.4", "layers.0-4", "layers.3-1", "layers.-1", "Head", "layers.0,1"],
)
def test_a_name_of_no_block(name: str) -> None:
    said = f"no block {name!r} in this model; it has embedding, layers.0 to layers.3 and head (ranges as layers.0-3)"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        chain(4).select(name)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], ""),
        ([0], "embedding"),
        ([9], "head"),
        ([1], "layers.0"),
        ([0, 1, 2], "embedding, layers.0-1"),
        ([2, 1, 0, 1], "embedding, layers.0-1"),
        ([0, 3, 5, 6, 9], "embedding, layers.2, layers.4-5, head"),
        (range(10), "embedding, layers.0-7, head"),
        ([7, 8, 9], "layers.6-7, head"),
    ],
)
def test_names_by_block(numbers: list[int], words: str) -> None:
    assert name_blocks(numbers, 10) == words


@given(st.integers(1, 30).flatmap(lambda layers: st.tuples(st.just(layers), st.sets(st.integers(0, layers + 1)))))
def test_names_lead_back_to_their_blocks(drawn: tuple[int, set[int]]) -> None:
    layers, numbers = drawn
    words = name_blocks(numbers, layers + 2)
    selected = [block for word in words.split(", ") if word for block in chain(layers).select(word)]
    assert selected == sorted(numbers)


def test_the_tower_is_in_the_embedding() -> None:
    seeing = chain(4).model_copy(update={"kind": "vision"})
    assert seeing.select("vision") == seeing.select("embedding") == range(1)
    with pytest.raises(ValueError, match="no block 'vision'"):
        chain(4).select("vision")
