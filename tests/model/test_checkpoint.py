"""Checkpoints: the chain read off them is true, and what is damaged is refused with the file and the reason."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import config, rewrite
from models import FAMILIES, VOCABULARY, make_checkpoint
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3Config
from transformers.utils import logging

from edgesplit.evaluation import reference
from edgesplit.evaluation.scenario import Shape
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint

LAYERS, WIDTH = 4, 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    logging.disable_progress_bar()
    return {family: make_checkpoint(tmp_path_factory.mktemp(family), family, LAYERS) for family in FAMILIES}


@pytest.fixture(scope="module")
def read(folders: dict[str, Path]) -> Callable[..., Checkpoint]:
    known: dict[tuple[str, str], Checkpoint] = {}

    def of(family: str, dtype: str = "float32") -> Checkpoint:
        if (family, dtype) not in known:
            known[family, dtype] = open_checkpoint(folders[family], family, dtype)
        return known[family, dtype]

    return of


@pytest.fixture
def llama(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(folders["llama"], tmp_path / "llama")


# --- the chain


def block(key: str) -> str:
    """Where a tensor of the four families belongs, by its name."""
    layer = re.search(r"\.(?:layers|h)\.(\d+)\.", key)
    if layer:
        return f"layers.{layer.group(1)}"
    names = {"embed_tokens": "embedding", "wte": "embedding", "lm_head": "head"}
    return next((name for part, name in names.items() if f"{part}." in key), "common")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_weighs_what_its_tensors_do(read: Any, folders: dict[str, Path], family: str) -> None:
    expected: Counter[str] = Counter()
    for file in folders[family].glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                expected[block(key)] += 4 * math.prod(tensors.get_slice(key).get_shape())
    chain = read(family).chain
    found = {block.name: block.weight_bytes for block in chain.blocks}
    assert found | {"common": chain.common_bytes} == {**dict.fromkeys(found, 0), **expected}
    assert chain.weight_bytes == sum(expected.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_are_named_in_order(read: Any, family: str) -> None:
    chain = read(family).chain
    assert [b.name for b in chain.blocks] == ["embedding", *(f"layers.{n}" for n in range(LAYERS)), "head"]
    assert [b.kind for b in chain.blocks] == ["embedding", *["layer"] * LAYERS, "head"]
    assert (chain.model, chain.dtype, chain.max_context) == (family, "float32", 512)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_takes_as_much_as_in_a_real_run(read: Any, folders: dict[str, Path], family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    cache, tokens = DynamicCache(config=model.config), 11
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    real = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    blocks = read(family).chain.blocks
    assert [block.cache_bytes(tokens) for block in blocks] == [0, *real, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_crosses_a_boundary_is_one_hidden_state(read: Any, family: str) -> None:
    def leaves(dtype: str) -> list[int]:
        return [block.output_bytes_per_token for block in read(family, dtype).chain.blocks]

    assert leaves("float32") == [4 * WIDTH] * (LAYERS + 1) + [4 * VOCABULARY]
    assert leaves("bfloat16") == [2 * WIDTH] * (LAYERS + 1) + [2 * VOCABULARY]


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_width_is_half_the_memory(read: Any, family: str) -> None:
    full, half = read(family).chain, read(family, "bfloat16").chain
    assert half.weight_bytes * 2 == full.weight_bytes
    assert [b.kv_bytes_per_token * 2 for b in half.blocks] == [b.kv_bytes_per_token for b in full.blocks]
    assert [b.flops_per_token for b in half.blocks] == [b.flops_per_token for b in full.blocks]


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True), ("gpt2", True), ("mixtral", False)])
def test_a_tied_head_weighs_nothing_but_computes(read: Any, family: str, tied: bool) -> None:
    found = read(family)
    head = found.chain.blocks[-1]
    assert (found.tied, head.weight_bytes) == (tied, 0 if tied else 4 * VOCABULARY * WIDTH)
    assert head.flops_per_token == 2 * VOCABULARY * WIDTH


def test_experts_compute_less_than_they_weigh(read: Any) -> None:
    dense, sparse = (read(family).chain.blocks[1] for family in ("llama", "mixtral"))
    norms, router, mlp = 2 * WIDTH, 4 * WIDTH, 3 * WIDTH * 48  # weights
    assert dense.flops_per_token == 2 * (dense.weight_bytes // 4 - norms)
    attention = sparse.weight_bytes // 4 - norms - router - 4 * mlp
    assert sparse.flops_per_token == 2 * (attention + router + 2 * mlp)  # two of four experts


# --- where tensors belong, whatever the checkpoint calls them


def test_a_checkpoint_of_the_bare_model_has_shorter_names(folders: dict[str, Path], tmp_path: Path, read: Any) -> None:
    """As GPT-2 is on the hub: no `transformer.`, and attention masks that nobody reads."""

    def shorten(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        return bare | {f"h.{number}.attn.bias": torch.ones(1, 1, 512, 512) for number in range(LAYERS)}

    folder = rewrite(shutil.copytree(folders["gpt2"], tmp_path / "gpt2"), shorten)
    found, usual = open_checkpoint(folder, "gpt2", "float32"), read("gpt2")
    assert found.chain.blocks == usual.chain.blocks
    assert found.places == {key.removeprefix("transformer."): place for key, place in usual.places.items()}
    assert found.tied


def test_a_tied_model_that_brings_its_own_head(folders: dict[str, Path], tmp_path: Path) -> None:
    def double(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    found = open_checkpoint(rewrite(shutil.copytree(folders["qwen2"], tmp_path / "q"), double), "q", "float32")
    assert not found.tied
    assert found.places["lm_head.weight"] == LAYERS + 1
    assert found.chain.blocks[0].weight_bytes == found.chain.blocks[-1].weight_bytes > 0


def test_layers_of_another_tower_are_no_blocks_of_the_chain(tmp_path: Path) -> None:
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    model.save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path, "gemma", "float32")
    tower = {place for key, place in found.places.items() if key.startswith("vision_tower.")}
    assert tower == {0}  # with the embedding
    assert set(found.places) == set(found.tensors)
    assert found.chain.layers == 2
    assert found.chain.blocks[1].weight_bytes == found.chain.blocks[2].weight_bytes


def test_the_single_file_goes_before_the_index_as_in_transformers(llama: Path, tmp_path: Path) -> None:
    whole = rewrite(shutil.copytree(llama, tmp_path / "whole"), lambda tensors: tensors)
    shutil.copy(whole / "model.safetensors", llama)
    assert {tensor.file.name for tensor in open_checkpoint(llama, "l", "float32").tensors.values()} == {
        "model.safetensors"
    }


# --- the cache

CACHED = """
import sys
from pathlib import Path
from edgesplit.model.checkpoint import open_checkpoint
found = open_checkpoint(Path(sys.argv[1]), "llama", "float32", Path(sys.argv[2]))
print(found.chain.to_json() if "torch" not in sys.modules and "transformers" not in sys.modules else "torch was needed")
"""


def test_a_checkpoint_seen_before_is_opened_without_torch(folders: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "chain.json"
    first = open_checkpoint(folders["llama"], "llama", "float32", cache)
    words = [sys.executable, "-c", CACHED, str(folders["llama"]), str(cache)]
    again = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert again.strip() == first.chain.to_json()


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"stamp": "another"}'])
def test_a_cache_that_makes_no_sense_is_made_again(llama: Path, tmp_path: Path, junk: str) -> None:
    cache = tmp_path / "chain.json"
    cache.write_text(junk)
    first = open_checkpoint(llama, "llama", "float32", cache)
    assert open_checkpoint(llama, "llama", "float32", cache) == first
    assert json.loads(cache.read_text())["chain"]["model"] == "llama"


def test_the_cache_is_for_one_config_dtype_and_transformers(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "chain.json"
    first = open_checkpoint(llama, "llama", "float32", cache).chain
    config(llama, max_position_embeddings=256)
    second = open_checkpoint(llama, "llama", "float32", cache).chain
    assert (first.max_context, second.max_context) == (512, 256)
    assert first.checkpoint != second.checkpoint
    assert open_checkpoint(llama, "llama", "float16", cache).chain.weight_bytes * 2 == second.weight_bytes
    before = json.loads(cache.read_text())["stamp"]
    monkeypatch.setattr("edgesplit.model.checkpoint.version", lambda _: "6.0")
    assert open_checkpoint(llama, "llama", "float16", cache).chain.weight_bytes * 2 == second.weight_bytes
    assert json.loads(cache.read_text())["stamp"] != before


def test_a_model_made_for_a_scenario_does_not_repeat_one_token(tmp_path: Path) -> None:
    reference.make(Shape(hidden=64, layers=4, heads=4, intermediate=96), tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    found = model.generate(torch.tensor([[5, 9, 11]]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert len(set(found[0].tolist())) > 8


def test_a_cache_that_cannot_be_written_is_done_without(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert open_checkpoint(llama, "llama", "float32", tmp_path / "file" / "chain.json").chain.layers == LAYERS
