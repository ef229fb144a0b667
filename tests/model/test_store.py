"""A runner's folder: a stage is laid out so that transformers reads it, and what is absent is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from links import SHAS, manifest
from models import make_checkpoint
from safetensors.torch import load
from sealed import key, sealed
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import Cut, cut
from edgesplit.runner.manifest import Manifest
from edgesplit.runner.sealing import SealedFile
from edgesplit.runner.stage import Stage, StageError
from edgesplit.runner.store import Store, StoreError
from edgesplit.runner.weights import sealed_slices, slices

WHOLE = ("desk",) * 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("store") / "model", "qwen2")


@pytest.fixture(scope="module")
def shards(model: Path) -> Cut:
    return cut(open_checkpoint(model, str(model), "float32"), model.parent / "hashes.json")


@pytest.fixture
def store(tmp_path: Path, shards: Cut) -> Store:
    """With everything shipped."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "files").mkdir()
    for sha, shard in shards.all().items():
        (tmp_path / "shards" / f"{sha}.sealed").write_bytes(sealed(b"".join(shard.chunks()), sha))
    for sha, file in shards.files.values():
        (tmp_path / "files" / sha).write_bytes(file.read_bytes())
    made = Store(tmp_path)
    made.keys = {sha: key(sha) for sha in shards.all()}
    return made


def of(shards: Cut, *placement: str) -> Manifest:
    return manifest(
        *placement,
        shards=tuple(shard.sha256 for shard in shards.blocks),
        common=shards.common.sha256,
        files={name: sha for name, (sha, _) in shards.files.items()},
        tied=True,
    )


def tensors(folder: Path, store: Store) -> dict[str, torch.Tensor]:
    return {key: found[...] for key, found, _ in slices(folder, store.keys)}


def test_the_whole_model_is_a_checkpoint_transformers_reads(store: Store, shards: Cut, model: Path) -> None:
    folder = store.lay_out(of(shards, *WHOLE), 0)
    ours = Stage.load(folder, 0, 5, "float32", keys=store.keys).model.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_stage_is_laid_out_with_its_own_weights_only(store: Store, shards: Cut) -> None:
    split = of(shards, "desk", "desk", "shelf", "shelf", "desk", "desk")
    folder = store.lay_out(split, 1)
    keys = tensors(folder, store)
    assert {key.split(".")[2] for key in keys if ".layers." in key} == {"1", "2"}
    assert not any("embed_tokens" in key for key in keys)
    assert Stage.load(folder, 2, 3, "float32", keys=store.keys).range.own == range(1, 3)


def test_a_head_that_is_tied_comes_with_the_embedding(store: Store, shards: Cut) -> None:
    folder = store.lay_out(of(shards, "desk", "shelf", "shelf", "shelf", "shelf", "desk"), 2)
    assert "model.embed_tokens.weight" in tensors(folder, store)


def test_weights_are_of_no_use_without_their_key(store: Store, shards: Cut) -> None:
    folder, sha = store.lay_out(of(shards, *WHOLE), 0), shards.blocks[1].sha256
    whole = b"".join(shards.blocks[1].chunks())
    assert whole[-64:] not in store.shard(sha).read_bytes()
    with pytest.raises(StageError, match="cannot be opened without its key"):
        Stage.load(folder, 0, 5, "float32")
    with pytest.raises(StageError, match="sealed with another key"):
        Stage.load(folder, 0, 5, "float32", keys={**store.keys, sha: key("another")})
    store.keys.pop(sha)
    with pytest.raises(StoreError, match=f"shard {sha[:12]}: .* without its key"):
        store.lay_out(of(shards, *WHOLE), 0)


@pytest.mark.parametrize("index", [..., 1, -1, slice(None), slice(1, 3), slice(2, 2), slice(None, None, 2), (2, 1)])
def test_sealed_tensors_are_sliced_as_others_are(store: Store, shards: Cut, index: Any) -> None:
    shard = shards.blocks[1]
    found = sealed_slices(store.shard(shard.sha256), store.keys)
    for name, tensor in load(b"".join(shard.chunks())).items():
        if tensor.dim() > 1 or not isinstance(index, tuple):
            assert torch.equal(found[name][index], tensor[index])


def test_only_the_rows_asked_for_are_opened(store: Store, shards: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many experts' matrices one at a time is in memory."""
    found = sealed_slices(store.shard(shards.blocks[0].sha256), store.keys)["model.embed_tokens.weight"]
    opened, real = [], SealedFile.read_into
    monkeypatch.setattr(SealedFile, "read_into", lambda *to: opened.append(len(to[2])) or real(*to))
    assert found[7].nbytes + found[3:5].nbytes == sum(opened)


def test_the_side_files_are_a_tokenizer(store: Store, shards: Cut) -> None:
    folder = store.lay_out_files(of(shards, *WHOLE))
    assert AutoTokenizer.from_pretrained(folder).decode([2, 3]) == '!"'
    assert folder.name == "1-api"


def test_a_folder_of_an_earlier_attempt_is_replaced(store: Store, shards: Cut) -> None:
    (store.folder / "stages" / "1-0").mkdir(parents=True)
    (store.folder / "stages" / "1-0" / "left over").touch()
    assert not (store.lay_out(of(shards, *WHOLE), 0) / "left over").exists()


def test_a_missing_shard_is_named(store: Store, shards: Cut) -> None:
    sha = shards.blocks[2].sha256
    store.shard(sha).unlink()
    with pytest.raises(StoreError, match=f"shard {sha[:12]} is not on this host"):
        store.lay_out(of(shards, *WHOLE), 0)


def test_a_missing_file_is_named(store: Store, shards: Cut) -> None:
    (store.folder / "files" / shards.files["config.json"][0]).unlink()
    with pytest.raises(StoreError, match=r"file config.json is not on this host"):
        store.lay_out_files(of(shards, *WHOLE))


@pytest.mark.parametrize("damage", [b"", b"\0" * 7, b"\xff" * 20, b"\4" + bytes(7) + b"{not", b"\2" + bytes(7) + b"{"])
@pytest.mark.parametrize("outside", [True, False])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: bytes, outside: bool) -> None:
    store = Store(tmp_path)
    store.keys = {SHAS[0]: key(SHAS[0])}
    (tmp_path / "shards").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / SHAS[0]).touch()
    store.shard(SHAS[0]).write_bytes(damage if outside else sealed(damage, SHAS[0]))
    with pytest.raises(StoreError, match=f"shard {SHAS[0][:12]}: "):
        store.lay_out(manifest(*WHOLE), 0)


def test_forgetting_an_epoch_leaves_the_others_and_the_shards(store: Store, shards: Cut) -> None:
    for epoch in (1, 11):
        store.lay_out(dataclasses.replace(of(shards, *WHOLE), epoch=epoch), 0)
    store.forget_stages(1)
    assert [folder.name for folder in (store.folder / "stages").iterdir()] == ["11-0"]
    assert store.shard(shards.common.sha256).exists()


def test_small_files_are_replaced_whole(store: Store) -> None:
    assert store.read("serial") == ""
    for text in ("1", "22"):
        store.write("serial", text)
        assert store.read("serial") == text
    assert [path.name for path in store.folder.iterdir() if path.is_file()] == ["serial"]
