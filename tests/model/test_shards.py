"""Shards: valid files that together are the checkpoint, named by what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoints import rewrite, weights
from models import FAMILIES, make_checkpoint
from safetensors.torch import load

from edgesplit.errors import ModelError
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint
from edgesplit.model.shards import Cut, Shard, cut
from edgesplit.runner.stage import Stage

LAYERS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: make_checkpoint(tmp_path_factory.mktemp(family), family, LAYERS) for family in FAMILIES}
    for folder in made.values():
        opened(folder)
    return made


@pytest.fixture
def llama(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(folders["llama"], tmp_path / "llama")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hashes.json"


def opened(folder: Path) -> Checkpoint:
    """What the first look found is kept in the folder, for its copies too."""
    return open_checkpoint(folder, "model", "float32", folder / "chain.json")


def shards(of: Cut) -> list[Shard]:
    return [*of.blocks, of.common]


def names(of: Cut) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in shards(of)}


def whole(shard: Shard) -> bytes:
    return b"".join(shard.chunks())


# --- what is in them


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shard_is_a_safetensors_file_of_its_name_and_size(
    folders: dict[str, Path], cache: Path, family: str
) -> None:
    for shard in shards(cut(opened(folders[family]), cache)):
        data = whole(shard)
        assert len(data) == shard.size
        assert hashlib.sha256(data).hexdigest() == shard.sha256
        assert set(load(data)) == {tensor.key for tensor in shard.tensors}


@pytest.mark.parametrize("family", FAMILIES)
def test_together_they_are_the_checkpoint(folders: dict[str, Path], cache: Path, family: str) -> None:
    found = [load(whole(shard)) for shard in shards(cut(opened(folders[family]), cache))]
    original = weights(folders[family])
    assert Counter(key for tensors in found for key in tensors) == Counter(list(original))
    assert all(torch.equal(tensor, original[key]) for tensors in found for key, tensor in tensors.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_needs_no_more_than_its_own_shards(
    folders: dict[str, Path], cache: Path, tmp_path: Path, family: str
) -> None:
    checkpoint = opened(folders[family])
    made = cut(checkpoint, cache)
    for block in range(LAYERS + 2):
        needed = {block, 0} if checkpoint.tied and block == LAYERS + 1 else {block}
        folder = tmp_path / f"stage{block}"
        folder.mkdir()
        lay_out(folder, made, needed)
        stage = Stage.load(folder, block, block, "float32")
        assert not any(weight.is_meta for weight in stage.model.parameters())


def lay_out(folder: Path, made: Cut, blocks: set[int]) -> None:
    """As a runner does it: links to shards and side files, and an index."""
    places = {}
    for shard in [*(made.blocks[block] for block in blocks), made.common]:
        (folder / f"{shard.sha256}.safetensors").write_bytes(whole(shard))
        places.update(dict.fromkeys((tensor.key for tensor in shard.tensors), f"{shard.sha256}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name, (sha, path) in made.files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha
        shutil.copy(path, folder / name)


def test_side_files_are_what_a_tokenizer_needs(folders: dict[str, Path], cache: Path) -> None:
    assert set(cut(opened(folders["llama"]), cache).files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


# --- their names


def test_the_same_content_has_the_same_name_wherever_it_lies(llama: Path, tmp_path: Path, cache: Path) -> None:
    other = rewrite(shutil.copytree(llama, tmp_path / "other"), lambda tensors: tensors)  # one file instead of four
    assert names(cut(opened(llama), cache)) == names(cut(opened(other), tmp_path / "other.json"))


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.1.self_attn.q_proj.weight", "layers.1"),
        ("model.norm.weight", "common"),
        ("lm_head.weight", "head"),
    ],
)
def test_one_byte_changes_the_name_of_one_shard(llama: Path, cache: Path, key: str, block: str) -> None:
    checkpoint = opened(llama)
    before = names(cut(checkpoint, cache))
    tensor = checkpoint.tensors[key]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start + tensor.size - 1)
        byte = file.read(1)[0]
        file.seek(tensor.start + tensor.size - 1)
        file.write(bytes([byte ^ 1]))
    after = names(cut(opened(llama), cache))
    assert [name for name in before if before[name] != after[name]] == [block]


# --- the cache of the names


def read_bytes(checkpoint: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Cut]:
    """How many bytes of weights a cut read, and the cut."""
    read = 0
    real = Path.open

    def counted(path: Path, *args: object, **kwargs: object) -> object:
        nonlocal read
        read += path.suffix == ".safetensors"
        return real(path, *args, **kwargs)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", counted)
        made = cut(checkpoint, cache)
    return read, made


def test_unchanged_files_are_read_once(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(llama)
    first, made = read_bytes(checkpoint, cache, monkeypatch)
    second, again = read_bytes(checkpoint, cache, monkeypatch)
    assert (first > 0, second) == (True, 0)
    assert names(made) == names(again)


def test_a_touched_file_is_read_again(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(llama)
    cut(checkpoint, cache)
    file = next(llama.glob("*.safetensors"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert read_bytes(checkpoint, cache, monkeypatch)[0] > 0


def test_other_files_of_the_same_age_are_read_again(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(opened(llama), cache)
    for file in llama.glob("*.safetensors"):
        os.utime(file, ns=(0, 0))
    rewrite(llama, lambda tensors: tensors)
    os.utime(llama / "model.safetensors", ns=(0, 0))
    assert read_bytes(opened(llama), cache, monkeypatch)[0] > 0


@pytest.mark.parametrize("junk", ["", "{}", "null", "\0"])
def test_a_cache_that_makes_no_sense_is_made_again(llama: Path, cache: Path, tmp_path: Path, junk: str) -> None:
    cache.write_text(junk)
    checkpoint = opened(llama)
    assert names(cut(checkpoint, cache)) == names(cut(checkpoint, tmp_path / "fresh.json"))
    assert cache.read_text() == (tmp_path / "fresh.json").read_text()


def test_progress_counts_every_byte_of_the_weights(llama: Path, cache: Path) -> None:
    checkpoint = opened(llama)
    for _ in ("read", "remembered"):
        seen: list[int] = []
        cut(checkpoint, cache, seen.append)
        assert sum(seen) == checkpoint.chain.weight_bytes


# --- files that change meanwhile


def test_a_file_that_shrinks_while_it_is_read(llama: Path, cache: Path) -> None:
    made = cut(opened(llama), cache)
    file = made.blocks[1].tensors[0].file
    os.truncate(file, made.blocks[1].tensors[0].start + 1)
    with pytest.raises(ModelError, match=f"{file} became shorter while it was read"):
        whole(made.blocks[1])


@pytest.mark.parametrize("pattern", ["*.safetensors", "tokenizer.json"])
def test_a_file_that_goes(llama: Path, cache: Path, pattern: str) -> None:
    checkpoint = opened(llama)
    file = min(llama.glob(pattern))
    file.unlink()
    with pytest.raises(ModelError, match=f"{file} cannot be read: No such file or directory"):
        cut(checkpoint, cache)


def test_a_file_that_goes_while_it_travels(llama: Path, cache: Path) -> None:
    made = cut(opened(llama), cache)
    made.blocks[0].tensors[0].file.unlink()
    with pytest.raises(ModelError, match="cannot be read: No such file or directory"):
        whole(made.blocks[0])
