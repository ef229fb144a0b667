"""A checkpoint cut as a deployment cuts it: shards, folders as on a host, stages; and what they answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from links import manifest
from sealed import key, sealed
from transformers import PreTrainedModel

from edgesplit.model.checkpoint import Checkpoint
from edgesplit.model.shards import cut
from edgesplit.runner.manifest import Manifest, StagePlace
from edgesplit.runner.stage import Stage
from edgesplit.runner.store import Store

torch.set_num_threads(1)  # the barriers of two threads spin: tests would crawl whenever another process has a core
PROMPT = (40, 7, 99, 140, 23)
COUNT = 6


def ship(checkpoint: Checkpoint, folder: Path) -> Store:
    """A host's folder with every shard and side file."""
    made = cut(checkpoint, folder / "hashes.json")
    for name in ("shards", "files"):
        (folder / name).mkdir(parents=True)
    for sha, shard in made.all().items():
        (folder / "shards" / f"{sha}.sealed").write_bytes(sealed(b"".join(shard.chunks()), sha))
    for sha, file in made.files.values():
        (folder / "files" / sha).write_bytes(file.read_bytes())
    return opened(folder)


def opened(folder: Path) -> Store:
    """With the keys of all its shards."""
    store = Store(folder)
    store.keys = {path.stem: key(path.stem) for path in (folder / "shards").iterdir()}
    return store


def manifest_of(checkpoint: Checkpoint, folder: Path, ends: Iterable[int], **changes: Any) -> Manifest:
    """Stages on one host each; `ends`: the last block of each stage but the last one."""
    made = cut(checkpoint, folder / "hashes.json")
    lasts = [*ends, len(checkpoint.chain.blocks) - 1]
    firsts = [0, *(last + 1 for last in lasts[:-1])]
    return manifest(
        stages=tuple(StagePlace(f"host{number}", *pair) for number, pair in enumerate(zip(firsts, lasts, strict=True))),
        shards=tuple(shard.sha256 for shard in made.blocks),
        common=made.common.sha256,
        files={name: sha for name, (sha, _) in made.files.items()},
        tied=checkpoint.tied,
        **changes,
    )


def stages(checkpoint: Checkpoint, folder: Path, *ends: int, trusted: bool = False) -> list[Stage]:
    """Each loaded from a folder that holds its own shards only."""
    store = opened(folder) if (folder / "shards").is_dir() else ship(checkpoint, folder)
    wanted = manifest_of(checkpoint, folder, ends, trust_remote_code=trusted)
    return [
        Stage.load(store.lay_out(wanted, number), place.first, place.last, "float32", trusted=trusted, keys=store.keys)
        for number, place in enumerate(wanted.stages)
    ]


def generated(
    chain: Sequence[Stage], prompt: Sequence[int] = PROMPT, count: int = COUNT
) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits of the last one."""
    caches, value, tokens = [stage.sequence() for stage in chain], torch.tensor([prompt]), []
    logits = torch.empty(0)
    for _ in range(count):
        for stage, cache in zip(chain, caches, strict=True):
            value = stage.forward(cache, value)
        logits = value[0, -1]
        tokens.append(int(logits.argmax()))
        value = torch.tensor([tokens[-1:]])
    return tokens, logits


@torch.no_grad()
def expected(
    whole: PreTrainedModel, prompt: Sequence[int] = PROMPT, count: int = COUNT
) -> tuple[list[int], torch.Tensor]:
    """What the unsplit model answers, and its logits of the last token."""
    ids = torch.tensor([prompt])
    told = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return told.sequences[0, len(prompt) :].tolist(), told.logits[-1][0]


def same(chain: Sequence[Stage], whole: PreTrainedModel) -> None:
    tokens, logits = generated(chain)
    wanted, theirs = expected(whole)
    assert tokens == wanted
    assert len(set(tokens)) > 1
    assert (logits - theirs).abs().max() < 1e-4
