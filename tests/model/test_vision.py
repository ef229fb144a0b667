"""Vision-language models cut anywhere answer bit for bit as the whole one does; the tower is the first stage's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from transformers import DynamicCache
from visions import FAMILIES, IMAGE, LAYERS, Case, save

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.runner.anatomy import read_config
from edgesplit.runner.cache import Exported
from edgesplit.runner.hidden import Hidden, Prompt
from edgesplit.runner.ring import _from_wire, _to_wire
from edgesplit.runner.stage import Stage
from edgesplit.runner.told import ToldError, gather, restore
from edgesplit.runner.wire import Tensor

CUTS = [(), (0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 1, 2, 3)]  # last block of every stage but the last
STEPS = 4
WORDS = [20, 21, 22, 23, 24, 25, 26]  # a prompt without an image
TOLD = {  # what the layers are told beside the hidden state of a prompt with an image; elsewhere nothing
    "qwen2_vl": {"position_ids"},
    "qwen2_5_vl": {"position_ids"},
    "qwen3_vl": {"position_ids", "visual_pos_masks", *(f"deepstack_visual_embeds.{number}" for number in range(3))},
    "gemma3": {"attention_mask.full_attention", "attention_mask.sliding_attention"},
    "paligemma": {"attention_mask", "position_ids"},
}

Load = Callable[[int, int], Stage]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return save(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def load(case: Case) -> Load:
    return cache(lambda first, last: Stage.load(case.folder, first, last, "float32"))


class Whole:
    """The unsplit model's answer to a prompt, by its own forwards."""

    def __init__(self, case: Case, prompt: Prompt) -> None:
        self.logits: list[torch.Tensor] = []
        cached, ids, inputs = DynamicCache(config=case.whole.config), prompt.ids, dict(prompt.inputs)
        for name, module in case.whole.named_modules():
            if hasattr(module, "rope_deltas"):
                assert name == "model"
                module.rope_deltas = None  # of the prompt before
        for _ in range(STEPS):
            with torch.no_grad():
                out = case.whole(input_ids=ids, past_key_values=cached, use_cache=True, logits_to_keep=1, **inputs)
            self.logits.append(out.logits[:, -1:])
            ids, inputs = out.logits[:, -1:].argmax(-1), {}


class Answer:
    """One sequence on its way through a chain of stages."""

    def __init__(self, chain: Sequence[Stage], prompt: Prompt | torch.Tensor) -> None:
        self.chain, self.next, self.logits = chain, prompt, list[torch.Tensor]()
        self.caches = [stage.sequence() for stage in chain]

    def step(self) -> None:
        value: Any = self.next
        for stage, cached in zip(self.chain, self.caches, strict=True):
            value = stage.forward(cached, value)
        self.logits.append(value)
        self.next = value.argmax(-1)


def same(answer: Answer, whole: Whole) -> bool:
    return all(torch.equal(left, right) for left, right in zip(answer.logits, whole.logits, strict=True))


def chain(load: Load, cut: Sequence[int]) -> list[Stage]:
    return [load(left + 1, right) for left, right in pairwise([-1, *cut, LAYERS + 1])]


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_is_exact_with_sequences_with_and_without_images_in_turns(
    case: Case, load: Load, cut: Sequence[int]
) -> None:
    words = torch.tensor([WORDS])
    prompts: list[Prompt | torch.Tensor] = [case.prompt, words, case.prompt]
    answers = [Answer(chain(load, cut), prompt) for prompt in prompts]
    for _ in range(STEPS):
        for answer in answers:
            answer.step()
    seen, plain = Whole(case, case.prompt), Whole(case, Prompt(words, {}))
    assert [same(answer, whole) for answer, whole in zip(answers, [seen, plain, seen], strict=True)] == [True] * 3


def test_generate_answers_alike(case: Case, load: Load) -> None:
    answer = Answer(chain(load, (1,)), case.prompt)
    for _ in range(STEPS):
        answer.step()
    tokens = case.whole.generate(
        case.prompt.ids, attention_mask=torch.ones_like(case.prompt.ids), max_new_tokens=STEPS, do_sample=False,
        eos_token_id=None, **case.prompt.inputs,
    )  # fmt: skip
    assert [int(logits.argmax()) for logits in answer.logits] == tokens[0, case.prompt.shape[1] :].tolist()


def test_the_image_matters(case: Case, load: Load) -> None:
    other = {name: value * 3 if name == "pixel_values" else value for name, value in case.prompt.inputs.items()}
    one, two = (Answer(chain(load, (1,)), prompt) for prompt in (case.prompt, Prompt(case.prompt.ids, other)))
    one.step()
    two.step()
    assert not torch.equal(one.logits[0], two.logits[0])


def test_words_may_come_in_pieces_unless_the_family_says_no(case: Case, load: Load) -> None:
    stages = chain(load, (1,))
    assert [stage.chunks for stage in stages] == [case.family != "paligemma"] * 2
    if case.family == "paligemma":
        return
    caches = [stage.sequence() for stage in stages]
    for piece in (WORDS[:3], WORDS[3:]):
        value: Any = torch.tensor([piece])
        for stage, cached in zip(stages, caches, strict=True):
            value = stage.forward(cached, value)
    assert (value - Whole(case, Prompt(torch.tensor([WORDS]), {})).logits[0]).abs().max() < 1e-4


def test_pixels_stay_where_they_are(case: Case, load: Load) -> None:
    hidden = load(0, 1).forward(load(0, 1).sequence(), case.prompt)
    assert set(hidden.told) == TOLD.get(case.family, set())


def test_the_tower_is_held_by_the_first_stage_alone(case: Case, load: Load) -> None:
    text = load(0, 1)._wire.parts.inner
    whole, rest = dict(case.whole.named_parameters()), set[str]()
    for first, last in ((0, 0), (1, 1), (2, LAYERS), (LAYERS + 1, LAYERS + 1)):
        names = {name for name, _ in load(first, last).model.named_parameters()}
        outside = {name for name in names if not name.startswith((f"{text}.", "lm_head."))}
        assert bool(outside) == (first == 0)
        rest |= names
    assert rest == set(whole)


def test_a_second_epoch_shares_the_tower(case: Case, load: Load) -> None:
    donor = load(0, 1)
    fresh = Stage.load(case.folder, 0, 2, "float32", donors=[donor])
    theirs = {weight.data_ptr() for weight in donor.model.parameters()}
    mine = {name: weight for name, weight in fresh.model.named_parameters() if name.startswith(donor._wire.parts.front)}
    assert mine
    assert {weight.data_ptr() for weight in mine.values()} <= theirs
    answer = Answer([fresh, load(3, LAYERS + 1)], case.prompt)
    for _ in range(STEPS):
        answer.step()
    assert same(answer, Whole(case, case.prompt))


def test_a_sequence_that_has_seen_an_image_moves(case: Case, load: Load) -> None:
    answer, fresh = Answer(chain(load, (1,)), case.prompt), [Stage.load(case.folder, 0, 2, "float32"), load(3, 4)]
    answer.step()
    exported = [stage.caches.export(cached) for stage, cached in zip(answer.chain, answer.caches, strict=True)]
    whole = Exported.from_bytes((exported[0] | exported[1]).to_bytes())
    answer.chain, answer.caches = fresh, [stage.caches.adopt(whole) for stage in fresh]
    for _ in range(STEPS - 1):
        answer.step()
    assert same(answer, Whole(case, case.prompt))


def test_sequences_in_one_forward_keep_their_own_images(case: Case, load: Load) -> None:
    """Whether they run as rows or, where the family must, one by one."""
    stages, words = chain(load, (1,)), torch.tensor([WORDS])
    answers = [Answer(stages, case.prompt), Answer(stages, words)]
    for answer in answers:
        answer.step()
    for _ in range(STEPS - 1):
        value: Any = torch.cat([answer.next for answer in answers])  # type: ignore[arg-type]
        for number, stage in enumerate(stages):
            value = stage.forward([answer.caches[number] for answer in answers], value)
        for row, answer in enumerate(answers):
            answer.logits.append(value[row : row + 1])
            answer.next = value[row : row + 1].argmax(-1)
    for answer, prompt in zip(answers, (case.prompt, Prompt(words, {})), strict=True):
        for left, right in zip(answer.logits, Whole(case, prompt).logits, strict=True):
            assert (left - right).abs().max() < 1e-3


def test_an_image_too_many_is_an_error_that_leaves_the_stage_whole(case: Case, load: Load) -> None:
    ids = case.prompt.ids
    assert ids is not None
    odd = Prompt(torch.cat([ids, torch.tensor([[IMAGE]])], 1), case.prompt.inputs)
    stage = load(0, LAYERS + 1)
    with pytest.raises((ValueError, RuntimeError, LookupError, TypeError)):
        stage.forward(stage.sequence(), odd)
    answer = Answer([stage], case.prompt)
    for _ in range(STEPS):
        answer.step()
    assert same(answer, Whole(case, case.prompt))


def test_made_up_weights_take_the_same_way(case: Case) -> None:
    config = read_config(str(case.folder))
    middle = Stage.random(config, 1, 2, "float32")
    hidden = middle.forward(middle.sequence(), Hidden((torch.randn(1, 5, 32),)))
    assert hidden.tensors[0].isfinite().all()
    last = Stage.random(config, LAYERS + 1, LAYERS + 1, "float32")
    assert last.forward(last.sequence(), hidden).shape == (1, 1, 300)


# --- on the controller ---


def test_the_tower_weighs_in_the_first_block(case: Case, load: Load) -> None:
    chain = open_checkpoint(case.folder, "seeing", "float32").chain
    inner, layers = load(0, 1)._wire.parts.inner, load(0, 1)._wire.parts.layers
    sizes = {name: 4 * weight.numel() for name, weight in case.whole.named_parameters()}
    text = [size for name, size in sizes.items() if name.startswith((f"{inner}.", "lm_head."))]
    deep = [size for name, size in sizes.items() if name.startswith(f"{layers}.")]
    vectors = chain.common_bytes  # the norm, and what some put behind each row of an image
    table = 4 * case.whole.get_input_embeddings().weight.numel()
    assert (chain.kind, chain.select("vision"), chain.layers) == ("vision", range(1), LAYERS)
    assert chain.weight_bytes == sum(sizes.values())
    assert sum(block.weight_bytes for block in chain.blocks[1:-1]) == sum(deep)
    assert chain.blocks[0].weight_bytes == sum(sizes.values()) - sum(text) + table - (vectors - 128)
    assert all(block.kv_bytes_per_token == 4 * 2 * 2 * (sizes_of_heads(case)) for block in chain.blocks[1:-1])


def sizes_of_heads(case: Case) -> int:
    text = case.whole.config.get_text_config()
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


# --- what layers are told ---


def test_what_is_told_arrives_as_it_was() -> None:
    one, two = torch.ones(1), torch.zeros(2)
    arguments = {
        "position_ids": one,
        "attention_mask": {"full_attention": None, "sliding_attention": two},
        "deepstack": [one, two],
        "use_cache": True,
        "nothing": None,
        "inputs_embeds": one,
        "pixel_values": two,
    }
    told = gather(arguments, masks=True)
    assert restore(told) == {name: arguments[name] for name in ("position_ids", "attention_mask", "deepstack")}
    assert set(gather(arguments, masks=False)) == {"position_ids", "deepstack.0", "deepstack.1"}


@pytest.mark.parametrize("names", [["hidden_states"], ["pixel_values.0"], ["mask", "mask.full"]])
def test_what_nobody_may_tell_is_refused(names: list[str]) -> None:
    with pytest.raises(ToldError, match="cannot be told"):
        restore(dict.fromkeys(names, torch.ones(1)))


def test_truth_values_cross_the_wire_whatever_a_byte_claims() -> None:
    mask = torch.tensor([[True, False, True]])
    assert torch.equal(_from_wire(_to_wire(mask)), mask)
    assert _from_wire(Tensor("bool", (3,), bytearray([0, 1, 7]))).tolist() == [False, True, True]


def test_what_rows_were_told_is_told_them_again() -> None:
    rows = torch.arange(4.0).reshape(2, 1, 2)
    hidden = Hidden((rows,), told={"0/position_ids": rows[0], "1/position_ids": rows[1]})
    assert torch.equal(hidden.row(1, 0).told["position_ids"], rows[1])  # type: ignore[arg-type]
