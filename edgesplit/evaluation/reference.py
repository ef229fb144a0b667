"""The model a scenario is about: made where it is absent, and asked for the right answers, unsplit, on this machine.

Must not know: labs, runs, how an answer came about.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgesplit.errors import ModelError
from edgesplit.evaluation.scenario import Shape, Stage
from edgesplit.inventory import HostSpec, Inventory, SshTarget
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint, resolve
from edgesplit.model.shards import cut
from edgesplit.revision.problem import permitted

DEMO = Path(__file__).parents[2] / "plans" / "demo" / "model"  # its tokenizer serves a made model too
# Standard deviation of random weights. With 0.02, transformers' own, a small model repeats one token for ever, and no
# fault shows; at 32 to 256 wide this says another one each time, and rounding moves logits by less than a thousandth of
# what the best two are apart.
SPREAD = 0.2


def checkpoint(stage: Stage) -> Checkpoint:
    source = stage.plan.model
    folder = stage.folder / source.source
    if stage.scenario.checkpoint is not None and not folder.exists():
        make(stage.scenario.checkpoint, folder)
    cache = stage.folder / ".edgesplit" / stage.plan.name / f"chain-{stage.plan.dtype}.json"
    cache.parent.mkdir(parents=True, exist_ok=True)
    return open_checkpoint(
        resolve(source.source, source.revision, stage.folder),
        source.source,
        stage.plan.dtype,
        cache,
        trust_remote_code=source.trust_remote_code,
        quantization=stage.plan.quantization,
    )


def make(shape: Shape, folder: Path) -> None:
    """All of it, or nothing."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate, vocab_size=shape.vocabulary, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=SPREAD,
    )  # fmt: skip
    torch.manual_seed(0)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(part)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, part)
    part.rename(folder)


def vocabulary(found: Checkpoint) -> int:
    """Raises ModelError where the config does not say."""
    for part in (found.config, found.config.get("text_config") or {}):
        if "vocab_size" in part:
            return int(part["vocab_size"])
    raise ModelError(f"{found.folder}: config.json says no vocab_size", "prompts are drawn from the vocabulary")


def answers(found: Checkpoint, stage: Stage, prompts: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Of each prompt, as long as any request asks for; a shorter one is its beginning."""
    from edgesplit.model.unsplit import whole

    folder = stage.folder / ".edgesplit" / stage.plan.name
    count = stage.scenario.demand.new_tokens[1]
    with whole(found, lambda: cut(found, folder / "hashes.json")) as answer:
        return [tuple(answer(prompt, count, True)) for prompt in prompts]


def allowed(found: Checkpoint, stage: Stage) -> tuple[tuple[str, ...], ...]:
    """By block, the hosts that may hold it, as the plan's pins and the lab's inventory have it."""
    hosts = {
        name: HostSpec(
            connection="ssh", ssh=SshTarget(host=name), trusted=host.inventory.trusted, work="/w",
            labels=host.inventory.labels,
        )
        for name, host in stage.lab.hosts.items()
    }  # fmt: skip
    legal = permitted(found.chain, stage.plan, Inventory(hosts=hosts))
    return tuple(tuple(sorted(names)) for names in legal)
