"""The unsplit model at the plan's precision, on this machine: what a split is compared with.

Plain, it is what transformers loads from the checkpoint. Quantised, it is the same class with the shards' matrices.

Must not know: hosts, splits, how a split answers.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from edgesplit.errors import ModelError
from edgesplit.model.checkpoint import Checkpoint
from edgesplit.model.shards import Cut
from edgesplit.model.upstream import quiet
from edgesplit.runner.arithmetic import quicken
from edgesplit.runner.sampling import Sampler, defaults, stop_tokens
from edgesplit.runner.scheduler import even_piece
from edgesplit.runner.stage import DTYPES, Stage, StageError


@dataclass(frozen=True)
class Computing:
    """How a ring computes: tokens of a prompt given at once, and threads. Both decide in which order sums are made. A
    quantised model's kernels round what comes in to bfloat16, which turns such a last bit into a visible difference; so
    the whole one computes in the same way."""

    piece: int
    threads: int


def greedy(
    checkpoint: Checkpoint,
    made: Callable[[], Cut],
    prompt: Sequence[int],
    count: int,
    *,
    past_end: bool = False,
    computing: Computing | None = None,
) -> list[int]:
    """What `generate` of the whole model answers. `made`: the shards, where it is quantised. `past_end`: as if there
    were no end token. Raises ModelError."""
    with whole(checkpoint, made, computing) as answer:
        return answer(prompt, count, past_end)


@contextlib.contextmanager
def whole(
    checkpoint: Checkpoint, made: Callable[[], Cut], computing: Computing | None = None
) -> Iterator[Callable[[Sequence[int], int, bool], list[int]]]:
    """`greedy`, for many prompts: (prompt, count, past_end) -> answer."""
    with quiet(), contextlib.ExitStack() as stack:
        if checkpoint.chain.quantization is None:
            yield partial(_generated, _plain(checkpoint))
            return
        if computing is not None:
            stack.enter_context(_threads(computing.threads))
        most = computing.piece if computing is not None and checkpoint.chain.chunked else None
        yield partial(_stepped, stack.enter_context(_quantised(checkpoint, made())), most)


def _generated(model: Any, prompt: Sequence[int], count: int, past_end: bool) -> list[int]:
    ids = torch.tensor([[*prompt]])
    more: dict[str, Any] = {"eos_token_id": None} if past_end else {}
    mask = torch.ones_like(ids)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, **more)
    return [int(token) for token in found[0, len(prompt) :]]


def _stepped(stage: Stage, most: int | None, prompt: Sequence[int], count: int, past_end: bool) -> list[int]:
    """As `generate`, which cuts a prompt at other places."""
    config = stage.model.generation_config
    ends = frozenset() if past_end else stop_tokens(config)
    sampler, sequence = Sampler(replace(defaults(config), temperature=0.0, max_new=count)), stage.sequence()
    answer: list[int] = []
    coming = torch.tensor([[*prompt]])
    while len(answer) < count and ends.isdisjoint(answer[-1:]):
        *pieces, last = coming.split(even_piece(coming.shape[1], most or coming.shape[1]), dim=1)
        for part in pieces:
            stage.forward(sequence, part, wanted=False)
        logits = stage.forward(sequence, last)
        answer.append(sampler.pick(logits[0, -1], [*prompt, *answer]))
        coming = torch.tensor([answer[-1:]])
    return answer


def _plain(checkpoint: Checkpoint) -> Any:
    kind = AutoModelForImageTextToText if checkpoint.chain.kind == "vision" else AutoModelForCausalLM
    trusted = bool(checkpoint.own_code)
    dtype = DTYPES[checkpoint.chain.dtype]
    model = kind.from_pretrained(checkpoint.folder, dtype=dtype, local_files_only=True, trust_remote_code=trusted)
    quicken(model)
    return model


@contextlib.contextmanager
def _quantised(checkpoint: Checkpoint, made: Cut) -> Iterator[Stage]:
    """A stage of all blocks is the whole model; what is quantised stays in its shards, where it is mapped from."""
    chain = checkpoint.chain
    with tempfile.TemporaryDirectory() as place:
        lay_out(made, Path(place))
        try:
            last = len(chain.blocks) - 1
            stage = Stage.load(Path(place), 0, last, chain.dtype, trusted=bool(checkpoint.own_code))
        except StageError as error:
            raise ModelError(f"the unsplit model cannot be loaded: {error}") from error
        yield stage


def lay_out(made: Cut, folder: Path) -> None:
    """The whole model as a folder in the Hugging Face layout."""
    places = {}
    for sha, shard in made.all().items():
        file = folder / f"{sha}.safetensors"
        if shard.file is None:
            with file.open("wb") as data:
                data.writelines(shard.chunks())
        else:
            file.symlink_to(shard.file)
        places.update(dict.fromkeys((tensor.key for tensor in shard.tensors), file.name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name, (_, path) in made.files.items():
        (folder / name).symlink_to(path.resolve())


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
