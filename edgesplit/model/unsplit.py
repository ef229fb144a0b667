"""The unsplit model at the plan's precision, on this machine: what a split is compared with.

Plain, it is what transformers loads from the checkpoint. Quantised, it is the same class with the shards' matrices.

Must not know: hosts, splits, how a split answers.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

from edgesplit.errors import ModelError
from edgesplit.model.checkpoint import Checkpoint
from edgesplit.model.shards import Cut
from edgesplit.runner.arithmetic import quicken
from edgesplit.runner.stage import DTYPES, Stage, StageError


def greedy(
    checkpoint: Checkpoint,
    made: Callable[[], Cut],
    prompt: Sequence[int],
    count: int,
    *,
    past_end: bool = False,
    piece: int | None = None,
) -> list[int]:
    """What `generate` of the whole model answers. `made`: the shards, where it is quantised. `past_end`: as if there
    were no end token. `piece`: tokens of the prompt that a quantised model is given at once, where it takes pieces: its
    kernels round what comes in to bfloat16, and other pieces are summed in another order. Raises ModelError."""
    with whole(checkpoint, made, piece) as answer:
        return answer(prompt, count, past_end)


@contextlib.contextmanager
def whole(
    checkpoint: Checkpoint, made: Callable[[], Cut], piece: int | None = None
) -> Iterator[Callable[[Sequence[int], int, bool], list[int]]]:
    """`greedy`, for many prompts: (prompt, count, past_end) -> answer."""
    pieces = checkpoint.chain.quantization is not None and checkpoint.chain.chunked and piece is not None
    with _quiet(), contextlib.ExitStack() as stack:
        model = (
            _plain(checkpoint)
            if checkpoint.chain.quantization is None
            else stack.enter_context(_quantised(checkpoint, made()))
        )

        def answer(prompt: Sequence[int], count: int, past_end: bool) -> list[int]:
            ids = torch.tensor([[*prompt]])
            more: dict[str, Any] = {"eos_token_id": None} if past_end else {}
            more |= {"prefill_chunk_size": piece} if pieces else {}
            mask = torch.ones_like(ids)
            found = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, **more)
            return [int(token) for token in found[0, len(prompt) :]]

        yield answer


def _plain(checkpoint: Checkpoint) -> Any:
    kind = AutoModelForImageTextToText if checkpoint.chain.kind == "vision" else AutoModelForCausalLM
    trusted = bool(checkpoint.own_code)
    dtype = DTYPES[checkpoint.chain.dtype]
    model = kind.from_pretrained(checkpoint.folder, dtype=dtype, local_files_only=True, trust_remote_code=trusted)
    quicken(model)
    return model


@contextlib.contextmanager
def _quantised(checkpoint: Checkpoint, made: Cut) -> Iterator[Any]:
    """A stage of all blocks is the whole model; what is quantised stays in its shards, where it is mapped from."""
    chain = checkpoint.chain
    with tempfile.TemporaryDirectory() as place:
        lay_out(made, Path(place))
        try:
            last = len(chain.blocks) - 1
            stage = Stage.load(Path(place), 0, last, chain.dtype, trusted=bool(checkpoint.own_code))
        except StageError as error:
            raise ModelError(f"the unsplit model cannot be loaded: {error}") from error
        yield stage.model


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
def _quiet() -> Iterator[None]:
    loud, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(loud)
        if shown:
            logging.enable_progress_bar()
