"""Encoders of text and of images cut anywhere give bit for bit the whole one's last hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertLMHeadModel,
    CLIPConfig,
    DebertaV2Config,
    Dinov2Config,
    DINOv3ViTConfig,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    SiglipVisionConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.runner.anatomy import AnatomyError, examine, model_class, skeleton
from edgesplit.runner.hidden import Hidden, Prompt
from edgesplit.runner.stage import Stage

LAYERS = 3
CUTS = [(), (0,), (1,), (2,), (3,), (0, 2), (0, 1, 2, 3)]  # last block of every stage but the last
SIDE = 16
TEXT: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                        "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 1}  # fmt: skip
SIGHT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                         "intermediate_size": 48, "image_size": SIDE, "patch_size": 4}  # fmt: skip
FAMILIES: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**TEXT),
    "roberta": RobertaConfig(**TEXT),
    "xlm_roberta": XLMRobertaConfig(**TEXT),
    "modernbert": ModernBertConfig(**TEXT, local_attention=8, global_attn_every_n_layers=2),
    "distilbert": DistilBertConfig(vocab_size=300, dim=32, n_layers=LAYERS, n_heads=4, hidden_dim=48),
    "mpnet": MPNetConfig(**TEXT),
    "electra": ElectraConfig(**TEXT, embedding_size=16),
    "deberta": DebertaV2Config(
        **{**TEXT, "max_position_embeddings": 512},
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
    ),
    "nomic_bert": NomicBertConfig(**TEXT),
    "eurobert": EuroBertConfig(**TEXT),
    "a decoder without its head": LlamaConfig(**TEXT, num_key_value_heads=2),
    "vit": ViTConfig(**SIGHT),
    "siglip": SiglipVisionConfig(**SIGHT),
    "dinov2": Dinov2Config(**SIGHT),
    "dinov3": DINOv3ViTConfig(**SIGHT),
}


@dataclass(frozen=True)
class Subject:
    folder: Path
    whole: PreTrainedModel

    @property
    def seeing(self) -> bool:
        return bool(self.whole.main_input_name == "pixel_values")

    def prompts(self) -> Iterator[Prompt]:
        """Rows of one length, then, of text, rows padded behind and in front."""
        generator = torch.Generator().manual_seed(2)
        if self.seeing:
            yield Prompt(None, {"pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=generator)})
            return
        ids, mask = torch.randint(5, 200, (3, 9), generator=generator), torch.ones(3, 9, dtype=torch.long)
        yield Prompt(ids[:1], {})
        yield Prompt(ids, {"attention_mask": mask})
        mask[1, 5:] = mask[2, :3] = 0
        yield Prompt(ids, {"attention_mask": mask})

    @torch.no_grad()
    def answer(self, prompt: Prompt) -> torch.Tensor:
        ids = {} if prompt.ids is None else {"input_ids": prompt.ids}
        return self.whole(**ids, **prompt.inputs).last_hidden_state


def save(config: PreTrainedConfig, folder: Path, kind: Any = AutoModel) -> Subject:
    torch.manual_seed(0)
    config.architectures = None
    model = kind.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    return Subject(folder, AutoModel.from_pretrained(folder).eval())


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return save(FAMILIES[request.param], tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def load(subject: Subject) -> Callable[[int, int], Stage]:
    return cache(lambda first, last: Stage.load(subject.folder, first, last, "float32"))


def run(load: Callable[[int, int], Stage], cut: Sequence[int], prompt: Prompt) -> torch.Tensor:
    value: Any = prompt
    for left, right in pairwise([-1, *cut, LAYERS + 1]):
        stage = load(left + 1, right)
        value = stage.forward([stage.sequence() for _ in range(prompt.shape[0])], value)
    assert isinstance(value, torch.Tensor)
    return value


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_gives_the_wholes_last_hidden_state(
    subject: Subject, load: Callable[[int, int], Stage], cut: Sequence[int]
) -> None:
    for prompt in subject.prompts():
        assert torch.equal(run(load, cut, prompt), subject.answer(prompt))


def test_ids_and_pixels_stay_where_they_are(subject: Subject, load: Callable[[int, int], Stage]) -> None:
    stage = load(0, 1)
    for prompt in subject.prompts():
        hidden = stage.forward([stage.sequence() for _ in range(prompt.shape[0])], prompt)
        assert isinstance(hidden, Hidden)
        given = {value.data_ptr() for name, value in prompt.inputs.items() if name == "pixel_values"}
        assert not {value.data_ptr() for value in hidden.told.values() if value is not None} & given
        assert not {"input_ids", "pixel_values"} & set(hidden.told)


def test_every_weight_is_somewhere_but_those_of_poolers(subject: Subject, load: Callable[[int, int], Stage]) -> None:
    parts = load(0, 0)._wire.parts
    held = {number: weights(load(number, number)) for number in range(LAYERS + 2)}
    whole = {name for name, weight in subject.whole.named_parameters() if weight.numel()}
    assert set.union(*held.values()) == {name for name in whole if not name.startswith(("pooler.", "head."))}
    assert parts.kind == "encoder"
    assert all(name.startswith((f"{parts.layers}.1.", *_rest(held))) for name in held[2])
    assert not any(name.startswith(parts.layers) for name in held[0] | held[LAYERS + 1])


def weights(stage: Stage) -> set[str]:
    return {name for name, weight in stage.model.named_parameters() if weight.numel()}


def _rest(held: dict[int, set[str]]) -> list[str]:
    """What all stages hold: norms and the like."""
    return sorted(set.intersection(*held.values()))


def test_a_second_epoch_shares_what_it_can(subject: Subject, load: Callable[[int, int], Stage]) -> None:
    donor = load(0, 1)
    fresh = Stage.load(subject.folder, 0, 2, "float32", donors=[donor])
    theirs = {weight.data_ptr() for weight in donor.model.parameters()}
    embedding = fresh._wire.parts.embedding
    shared = [weight for name, weight in fresh.model.named_parameters() if name.startswith(f"{embedding}.")]
    assert shared
    assert {weight.data_ptr() for weight in shared} <= theirs
    prompt = next(subject.prompts())
    hidden = fresh.forward([fresh.sequence() for _ in range(prompt.shape[0])], prompt)
    rest = load(3, LAYERS + 1)
    assert torch.equal(rest.forward([rest.sequence() for _ in range(prompt.shape[0])], hidden), subject.answer(prompt))


@pytest.mark.parametrize(
    "name", [name for name, config in FAMILIES.items() if type(config) in MODEL_FOR_MASKED_LM_MAPPING]
)
def test_of_a_masked_language_model_the_encoder_is_taken(name: str, tmp_path: Path) -> None:
    subject = save(FAMILIES[name], tmp_path, AutoModelForMaskedLM)
    for prompt in subject.prompts():
        loaded: Callable[[int, int], Stage] = lambda first, last: Stage.load(tmp_path, first, last, "float32")  # noqa: E731
        assert torch.equal(run(loaded, (1,), prompt), subject.answer(prompt))


# --- on the controller ---


def test_an_encoders_chain(subject: Subject, load: Callable[[int, int], Stage]) -> None:
    """Every weight but a pooler's is in it, and it keeps nothing between forwards."""
    if subject.seeing:
        return
    chain = open_checkpoint(subject.folder, "encoder", "float32").chain
    held = [weight for number in range(LAYERS + 2) for weight in load(number, number).model.parameters()]
    common = list(load(LAYERS + 1, LAYERS + 1).model.parameters())
    assert (chain.kind, chain.layers) == ("encoder", LAYERS)
    assert chain.common_bytes == 4 * sum(weight.numel() for weight in common)
    spread = chain.common_bytes * (LAYERS + 1)
    assert chain.weight_bytes == 4 * sum(weight.numel() for weight in held) - spread
    assert not any(block.kv_bytes_per_token or block.state_bytes for block in chain.blocks)
    assert all(block.flops_per_token > 0 for block in chain.blocks[1:-1])
    assert [block.output_bytes_per_token for block in chain.blocks[:-1]] == [4 * 32] * (LAYERS + 1)


# --- which class a config means ---


@pytest.mark.parametrize(
    ("config", "architecture", "kind"),
    [
        (BertConfig(), "BertModel", "BertModel"),
        (BertConfig(), "BertForMaskedLM", "BertModel"),
        (BertConfig(), "BertForPreTraining", "BertModel"),
        (BertConfig(), "BertLMHeadModel", "BertLMHeadModel"),
        (BertConfig(), None, "BertLMHeadModel"),  # as transformers has it
        (RobertaConfig(), "RobertaForMaskedLM", "RobertaModel"),
        (ViTConfig(), "ViTForImageClassification", "ViTModel"),
        (ViTConfig(), None, "ViTModel"),
        (LlamaConfig(), "LlamaForCausalLM", "LlamaForCausalLM"),
        (LlamaConfig(), "LlamaModel", "LlamaModel"),
        (LlamaConfig(), "SomebodysForCausalLM", "LlamaForCausalLM"),
        (LlamaConfig(), None, "LlamaForCausalLM"),
    ],
)
def test_which_class_a_checkpoint_runs_as(config: PreTrainedConfig, architecture: str | None, kind: str) -> None:
    config.architectures = [architecture] if architecture else None
    assert model_class(config).__name__ == kind


def test_what_is_neither_is_told() -> None:
    with pytest.raises(AnatomyError, match="'t5' has no causal language model and no encoder"):
        model_class(T5Config())
    with pytest.raises(AnatomyError, match="CLIPModel is several models in one"):
        examine(skeleton(CLIPConfig(), torch.float32))


def test_a_bert_that_generates_is_a_language_model(tmp_path: Path) -> None:
    config = BertConfig(**TEXT, is_decoder=True, architectures=["BertLMHeadModel"])
    BertLMHeadModel(config).save_pretrained(tmp_path)
    stage = Stage.load(tmp_path, 0, LAYERS + 1, "float32")
    assert stage.kind == "text"
    assert stage.forward(stage.sequence(), torch.tensor([[5, 6]])).shape == (1, 1, 300)
