"""A model cut anywhere answers as the whole one does, in process; real runners are tested in test_exact.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import FAMILIES, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    Llama4TextConfig,
    Mamba2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from edgesplit.runner.anatomy import AnatomyError, examine, model_class, read_config
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.hollow import Range
from edgesplit.runner.stage import Stage, StageError

LAYERS = 3  # blocks: 0 embedding, 1 to 3 layers, 4 head
PROMPT = [40, 7, 99, 140, 23, 200, 81, 17, 64]
COUNT = 5
CLOSE = 1e-4  # what "the same logits" means in float32
CUTS = [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (0, 1, 2, 3)]  # last block of every stage but the last

Chain = tuple[Stage, ...]


class Subject:
    """A checkpoint, its whole model, and stages of it; each is loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.stage: Callable[[int, int], Stage] = cache(lambda first, last: Stage.load(folder, first, last, "float32"))
        self.blocks = examine(self.whole).count + 2
        self._generated = cache(self._generate)

    def chain(self, cut: Sequence[int]) -> Chain:
        return tuple(self.stage(left + 1, right) for left, right in pairwise([-1, *cut, self.blocks - 1]))

    def generated(self, prompt: Sequence[int]) -> list[int]:
        return self._generated(tuple(prompt))

    @torch.no_grad()
    def _generate(self, prompt: tuple[int, ...]) -> list[int]:
        ids = torch.tensor([prompt])
        tokens = self.whole.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, eos_token_id=None
        )
        return tokens[0, len(prompt) :].tolist()

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.whole(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(make_checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param, LAYERS))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "model", "llama", LAYERS)


class Answer:
    """One sequence on its way through a chain of stages."""

    def __init__(self, chain: Chain, prompt: Sequence[int]) -> None:
        self.chain, self.tokens = chain, list(prompt)
        self._caches = [stage.sequence() for stage in chain]
        self._done = 0
        self.logits = torch.empty(0)

    def feed(self, count: int) -> torch.Tensor:
        value: Any = torch.tensor([self.tokens[self._done : self._done + count]])
        for stage, cache_ in zip(self.chain, self._caches, strict=True):
            value = stage.forward(cache_, value, all_logits=True)
            assert cache_.tokens == self._done + count
        self._done += count
        self.logits = torch.cat([self.logits, value[0]])
        return self.logits

    def step(self) -> None:
        """Feed what was not fed yet, pick the next token."""
        logits = self.feed(len(self.tokens) - self._done)
        self.tokens.append(int(logits[-1].argmax()))


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_gives_the_whole_models_tokens_and_logits(subject: Subject, cut: Sequence[int]) -> None:
    answer = Answer(subject.chain(cut), PROMPT)
    for _ in range(COUNT):
        answer.step()
    assert answer.tokens[len(PROMPT) :] == subject.generated(PROMPT)
    assert (answer.logits - subject.logits(answer.tokens[:-1])).abs().max() < CLOSE


@pytest.mark.parametrize("sizes", [[4, 4, 1], [1] * 9, [2, 7]])
def test_a_prompt_in_chunks_gives_the_same(subject: Subject, sizes: list[int]) -> None:
    answer = Answer(subject.chain((1,)), PROMPT)
    for size in sizes:
        answer.feed(size)
    assert (answer.logits - subject.logits(PROMPT)).abs().max() < CLOSE


def test_sequences_in_turns_do_not_disturb_each_other(subject: Subject) -> None:
    chain = subject.chain((1,))
    prompts = (PROMPT, PROMPT[3:7])
    answers = [Answer(chain, prompt) for prompt in prompts]
    for _ in range(COUNT):
        for answer in answers:
            answer.step()
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.tokens[len(prompt) :] == subject.generated(prompt)


def test_only_the_last_position_is_answered_unless_all_are_asked_for(subject: Subject) -> None:
    stage = subject.stage(0, subject.blocks - 1)
    logits = stage.forward(stage.sequence(), torch.tensor([PROMPT]))
    assert logits.shape[:2] == (1, 1)
    assert (logits[0, -1] - subject.logits(PROMPT)[-1]).abs().max() < CLOSE


@pytest.mark.parametrize("cut", [(), (LAYERS,)])
def test_the_head_is_not_asked_before_the_end_of_a_prompt(subject: Subject, cut: tuple[int, ...]) -> None:
    """In a stage of its own, or behind layers; what was read without it counts all the same."""
    chain, asked = subject.chain(cut), list[int]()
    sequences = [stage.sequence() for stage in chain]
    hook = chain[-1].model.get_output_embeddings().register_forward_hook(lambda *_: asked.append(1))
    for part in (PROMPT[:4], PROMPT[4:7], PROMPT[7:]):
        value: Any = torch.tensor([part])
        for stage, sequence in zip(chain, sequences, strict=True):
            value = stage.forward(sequence, value, wanted=part[-1] == PROMPT[-1])
    hook.remove()
    assert len(asked) == 1
    assert (value[0, -1] - subject.logits(PROMPT)[-1]).abs().max() < CLOSE


def test_a_stage_has_its_own_weights_and_no_others(subject: Subject) -> None:
    names = {name: set(dict(subject.stage(*part).model.named_parameters())) for name, part in PARTS.items()}
    layers = examine(subject.whole).layers
    assert {name.removeprefix(f"{layers}.").split(".")[0] for name in names["middle"] if layers in name} == {"1"}
    held = sum(weight.numel() for weight in subject.stage(*PARTS["middle"]).model.parameters())
    layer = sum(weight.numel() for weight in subject.whole.get_submodule(f"{layers}.1").parameters())
    rest = {name for name in names["middle"] if layers not in name}  # the final norm, learned positions
    assert held == layer + sum(dict(subject.whole.named_parameters())[name].numel() for name in rest)
    assert not any(layers in name for name in names["embedding"] | names["head"])
    embedding = f"{examine(subject.whole).embedding}.weight"
    assert embedding in names["embedding"]
    assert embedding not in names["middle"]
    assert not any(name.startswith("lm_head") for name in names["middle"] | names["embedding"])


PARTS = {"embedding": (0, 0), "middle": (2, 2), "head": (LAYERS + 1, LAYERS + 1)}


# --- families that need something of their own ---

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SPECIAL = {
    "layers that return tuples": BloomConfig(vocab_size=99, hidden_size=32, n_layer=LAYERS, n_head=4),
    "a sliding window": MistralConfig(**SIZES, sliding_window=4),
    "windows on some layers, a scaled embedding": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "a model that asks its embedding for the device": Llama4TextConfig(
        **SIZES, head_dim=8, num_local_experts=2, intermediate_size_mlp=48
    ),
}


def save(config: PreTrainedConfig, folder: Path) -> Subject:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    return Subject(folder)


@pytest.mark.parametrize("name", SPECIAL)
def test_special_families_are_exact_too(name: str, tmp_path: Path) -> None:
    subject, prompt = save(SPECIAL[name], tmp_path), [token % 99 for token in PROMPT]
    for cut in [(0,), (2,), (1, 3)]:
        answer = Answer(subject.chain(cut), prompt)
        answer.feed(4)
        for _ in range(COUNT):
            answer.step()
        assert (answer.logits - subject.logits(answer.tokens[:-1])).abs().max() < CLOSE, cut
        assert answer.tokens[len(prompt) :] == subject.generated(prompt)


def test_families_that_forget_between_chunks_say_so(subject: Subject) -> None:
    assert subject.stage(0, 1).chunks
    config = Mamba2Config(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_heads=2, head_dim=8, n_groups=1)
    assert not Stage.random(config, 1, 1, "float32").chunks


# --- what can be wrong ---


def test_bfloat16_loads_and_halves_the_weights(subject: Subject) -> None:
    stage = Stage.load(subject.folder, 0, 2, "bfloat16")
    assert {weight.dtype for weight in stage.model.parameters()} == {torch.bfloat16}
    hidden = stage.forward(stage.sequence(), torch.tensor([PROMPT]))
    assert hidden.tensors[0].dtype == torch.bfloat16
    exact = subject.stage(0, 2).forward(subject.stage(0, 2).sequence(), torch.tensor([PROMPT]))
    apart = (hidden.tensors[0].float() - exact.tensors[0]).norm() / exact.tensors[0].norm()
    assert apart < 0.05  # 8 bits of mantissa


@pytest.fixture
def thinned(llama: Path, tmp_path: Path) -> Iterator[Callable[[Callable[[dict[str, torch.Tensor]], Any]], Path]]:
    """A copy of the checkpoint, in one file, after something was done to its weights."""

    def thin(change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
        weights = {key: value for file in llama.glob("*.safetensors") for key, value in load_file(file).items()}
        change(weights)
        for file in llama.glob("*config.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    yield thin  # noqa: PT022 - a function


def test_missing_weights_are_named(thinned: Callable[..., Path]) -> None:
    folder = thinned(lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(StageError, match=r"blocks 2..3 lack 1 weights, first model.layers.1.mlp.up_proj.weight"):
        Stage.load(folder, 2, 3, "float32")
    Stage.load(folder, 3, 4, "float32")  # whoever does not need it does not miss it


def test_a_head_without_weights_is_no_head(thinned: Callable[..., Path]) -> None:
    with pytest.raises(StageError, match=r"first lm_head.weight"):
        Stage.load(thinned(lambda weights: weights.pop("lm_head.weight")), 4, 4, "float32")


def test_weights_of_another_shape_are_refused(thinned: Callable[..., Path]) -> None:
    key = "model.layers.0.self_attn.o_proj.weight"
    folder = thinned(lambda weights: weights.update({key: torch.zeros(3, 3)}))
    with pytest.raises(StageError, match=r"first model.layers.0.self_attn.o_proj.weight: \[3, 3\], not \[32, 32\]"):
        Stage.load(folder, 0, 1, "float32")


def test_a_file_cut_short_is_a_stage_error(thinned: Callable[..., Path]) -> None:
    file = thinned(lambda _: None) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StageError, match=r"blocks 0..1 cannot be loaded"):
        Stage.load(file.parent, 0, 1, "float32")


def test_an_unknown_kind_of_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(AnatomyError, match="'t5' has no causal language model and no encoder"):
        model_class(read_config(str(tmp_path)))


# --- parts ---


def test_made_up_weights_take_the_same_way(subject: Subject) -> None:
    config = read_config(str(subject.folder))
    stage = Stage.random(config, 1, 2, "float32")
    hidden = Hidden((torch.randn(1, 3, 32),))
    result = stage.forward(stage.sequence(), hidden)
    assert result.tensors[0].shape == (1, 3, 32)
    assert result.tensors[0].isfinite().all()


@pytest.mark.parametrize(
    ("part", "own", "embeds", "heads"),
    [
        ((0, 4), [0, 1, 2], True, True),
        ((0, 0), [], True, False),
        ((4, 4), [], False, True),
        ((2, 3), [1, 2], False, False),
    ],
)
def test_which_layers_are_whose(part: tuple[int, int], own: list[int], embeds: bool, heads: bool) -> None:
    place = Range(*part, LAYERS)
    assert (list(place.own), place.embeds, place.heads) == (own, embeds, heads)


def test_of_a_tuple_only_what_has_a_value_per_position_travels() -> None:
    hidden, other, weights = torch.zeros(1, 5, 8), torch.ones(1, 5, 2), torch.zeros(1, 4, 5, 9)
    crossing = Hidden.of((hidden, weights, None, other))
    assert crossing.tuple_
    assert [tensor is not None for tensor in crossing.tensors] == [True, False, False, True]
    assert Hidden.of(hidden).value() is hidden
