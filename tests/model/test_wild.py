"""Checkpoints as they are found: whatever transformers loads is loaded, each tensor where it would be; what it would
have to make up is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import INDEX, config, rewrite, weights
from families.configs import tiny
from models import config as config_of
from models import make_checkpoint
from safetensors.torch import load_file, save_file
from splits import same, stages
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DeepseekV3Config,
    MixtralConfig,
    Qwen2Model,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from edgesplit.errors import ModelError
from edgesplit.model.blocks import COMMON
from edgesplit.model.checkpoint import Checkpoint, open_checkpoint, resolve
from edgesplit.model.sidefiles import notes

LAYERS = 2
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One checkpoint per family, in several files."""
    logging.disable_progress_bar()
    known: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in known:
            known[family] = make_checkpoint(tmp_path_factory.mktemp(family) / "model", family, LAYERS)
        return known[family]

    return of


@pytest.fixture
def copy(made: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy to be changed."""
    return lambda family: shutil.copytree(made(family), tmp_path / "model")


def opened(folder: Path, **more: Any) -> Checkpoint:
    return open_checkpoint(folder, "wild", "float32", **more)


def exact(folder: Path, tmp_path: Path, *cuts: tuple[int, ...]) -> Checkpoint:
    """It is what transformers makes of the same folder, cut at every boundary."""
    found, whole = opened(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for ends in cuts or [(end,) for end in range(len(found.chain.blocks) - 1)]:
        same(stages(found, tmp_path / "host", *ends), whole)
    return found


# --- files


def test_one_file_is_as_good_as_several(made: Callable[[str], Path], copy: Callable[[str], Path]) -> None:
    several, one = opened(made("llama")), opened(rewrite(copy("llama"), lambda tensors: tensors))
    assert len({tensor.file for tensor in several.tensors.values()}) > 1
    assert (one.places, one.chain.blocks, one.chain.checkpoint) == (
        several.places, several.chain.blocks, several.chain.checkpoint,
    )  # fmt: skip


def indexed(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    data = json.loads((folder / INDEX).read_text())
    change(data["weight_map"])
    (folder / INDEX).write_text(json.dumps(data))
    return folder


def test_of_an_index_the_files_count_as_in_transformers(copy: Callable[[str], Path], tmp_path: Path) -> None:
    """It leaves a tensor out, and takes another for a neighbour's."""

    def lie(files: dict[str, str]) -> None:
        del files["model.norm.weight"]
        files[EMBEDDING] = next(name for name in files.values() if name != files[EMBEDDING])

    exact(indexed(copy("llama"), lie), tmp_path, (1,))


def test_a_tensor_in_two_files_is_the_last_files(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("llama")
    first, *_, last = sorted(folder.glob("*.safetensors"))
    again = {**load_file(last), EMBEDDING: weights(folder)[EMBEDDING].flip(0).contiguous()}
    save_file(again, last)
    found = exact(folder, tmp_path, (1,))
    assert (found.tensors[EMBEDDING].file, EMBEDDING in load_file(first)) == (last, True)


def test_the_config_may_name_the_file(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewrite(copy("llama"), lambda tensors: tensors)
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "mine.safetensors")
    config(folder, transformers_weights="parts/mine.safetensors")
    exact(folder, tmp_path, (1,))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\\b", "a\0b"])
def test_but_none_outside_its_folder(copy: Callable[[str], Path], name: str) -> None:
    folder = copy("llama")
    config(folder, transformers_weights=name)
    with pytest.raises(ModelError, match=r"config.json names files outside its folder"):
        opened(folder)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_precision_it_was_saved_in_is_not_the_plans(
    made: Callable[[str], Path], copy: Callable[[str], Path], tmp_path: Path, key: str, dtype: str
) -> None:
    folder = rewrite(
        copy("llama"), lambda all_: {name: value.to(getattr(torch, dtype)) for name, value in all_.items()}
    )
    config(folder, dtype=None)
    config(folder, **{key: dtype})
    found = exact(folder, tmp_path, (1,))
    assert found.chain.weight_bytes == opened(made("llama")).chain.weight_bytes


# --- one matrix at both ends


def ends(folder: Path, change: Callable[[Tensors, torch.Tensor], Tensors]) -> Path:
    """A tied model, its ends stored otherwise."""
    return rewrite(folder, lambda tensors: change(tensors, tensors.pop(EMBEDDING)))


TIED: dict[str, tuple[Callable[[Tensors, torch.Tensor], Tensors], bool]] = {
    "the embedding alone": (lambda rest, matrix: {**rest, EMBEDDING: matrix}, True),
    "the head alone": (lambda rest, matrix: {**rest, HEAD: matrix}, True),
    "both": (lambda rest, matrix: {**rest, EMBEDDING: matrix, HEAD: matrix}, False),
    "both, and they differ": (lambda rest, matrix: {**rest, EMBEDDING: matrix, HEAD: matrix.flip(0)}, False),
}


@pytest.mark.parametrize("name", TIED)
def test_a_tied_model_however_it_was_stored(
    made: Callable[[str], Path], copy: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    change, tied = TIED[name]
    found = exact(ends(copy("qwen2"), change), tmp_path)
    usual = opened(made("qwen2")).chain.blocks
    assert found.tied is tied
    assert found.chain.blocks[0].weight_bytes == usual[0].weight_bytes
    assert found.chain.blocks[-1].weight_bytes == (0 if tied else usual[0].weight_bytes)


def test_a_tied_model_without_either_end_is_refused(copy: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="holds no weights of its token embedding"):
        opened(ends(copy("qwen2"), lambda rest, _: rest))


def test_weights_that_layers_share_go_to_every_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny("zamba")).save_pretrained(tmp_path / "model")
    found = opened(tmp_path / "model")
    shared = {place for key, place in found.places.items() if ".shared_transf." in key}
    assert shared == {COMMON}


# --- names


def test_a_bare_model_is_its_causal_lm_where_the_head_is_tied(copy: Callable[[str], Path], tmp_path: Path) -> None:
    bare = rewrite(copy("qwen2"), lambda all_: {key.removeprefix("model."): value for key, value in all_.items()})
    config(bare, architectures=[Qwen2Model.__name__])
    assert "embed_tokens.weight" in exact_bare(bare, tmp_path).tensors


def exact_bare(folder: Path, tmp_path: Path) -> Checkpoint:
    """A base model's class is no language model; AutoModelForCausalLM takes its checkpoint all the same."""
    config(folder, architectures=None)
    return exact(folder, tmp_path, (0,), (1,), (2,))


def test_a_bare_model_lacks_a_head_of_its_own(copy: Callable[[str], Path]) -> None:
    bare = rewrite(
        copy("llama"), lambda all_: {key.removeprefix("model."): value for key, value in all_.items() if key != HEAD}
    )
    with pytest.raises(ModelError, match=f"lacks weights of the model: {HEAD}"):
        opened(bare)


def test_experts_one_by_one_or_together(copy: Callable[[str], Path], tmp_path: Path) -> None:
    """The files of the hub have them one by one under old names; transformers has them stacked."""
    folder = copy("mixtral")
    loose = weights(folder)
    assert any(".experts.0." in key for key in loose)
    first = exact(folder, tmp_path / "loose", (1,))
    together = dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())
    second = exact(rewrite(folder, lambda _: together), tmp_path / "together", (1,))
    assert not any(".experts.0." in key for key in second.tensors)
    assert [block.weight_bytes for block in first.chain.blocks] == [block.weight_bytes for block in second.chain.blocks]


def test_names_as_transformers_would_save_them_again(made: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(made("mixtral"))
    assert set(revert_weight_conversion(model, model.state_dict())) == set(opened(made("mixtral")).tensors)


# --- more than is needed


def layer_ahead(tensors: Tensors) -> Tensors:
    """As a layer that guesses the next token but one is stored: behind the last layer."""
    ahead = {key.replace("layers.1.", f"layers.{LAYERS}."): value for key, value in tensors.items()}
    return {**tensors, **{key: value for key, value in ahead.items() if f"layers.{LAYERS}." in key}}


EXTRA: dict[str, Tensors] = {
    "rotary tables": {f"model.layers.{number}.self_attn.rotary_emb.inv_freq": torch.ones(4) for number in range(2)},
    "positions": {"model.position_ids": torch.arange(9)},
    "an optimizer": {"optimizer.state.0.exp_avg": torch.ones(3), "lr_scheduler.step": torch.tensor(3)},
    "a reward head": {"v_head.summary.weight": torch.ones(1, 32)},
}


@pytest.mark.parametrize("name", EXTRA)
def test_what_the_model_has_no_place_for_stays_behind(
    made: Callable[[str], Path], copy: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    found = exact(rewrite(copy("llama"), lambda tensors: {**tensors, **EXTRA[name]}), tmp_path, (1,))
    assert found.places == opened(made("llama")).places
    assert found.chain.blocks == opened(made("llama")).chain.blocks


def test_a_layer_that_guesses_ahead_stays_behind(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewrite(copy("llama"), layer_ahead)
    with pytest.raises(ModelError, match="holds layer 2, but its config says 2 layers"):
        opened(folder)
    config(folder, num_nextn_predict_layers=1)
    found = exact(folder, tmp_path, (1,))
    assert not any("layers.2." in key for key in found.places)


def test_layers_that_a_family_is_known_to_ignore(tmp_path: Path) -> None:
    """deepseek_v3 has 61 layers and one more; the pattern stands in transformers."""
    made = DeepseekV3Config(vocab_size=258, hidden_size=32, num_hidden_layers=2, intermediate_size=48, n_group=1,
                            topk_group=1, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8,
                            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4,
                            num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1)  # fmt: skip
    AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path, max_shard_size="20KB")
    rewrite(tmp_path, lambda tensors: {**tensors, "model.layers.61.eh_proj.weight": torch.ones(2, 2)})
    assert "model.layers.61.eh_proj.weight" not in opened(tmp_path).places


def test_an_encoders_pooler_is_not_missed(tmp_path: Path) -> None:
    made = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    BertForMaskedLM(made).save_pretrained(tmp_path)
    found = opened(tmp_path)
    assert {key.split(".")[0] for key in found.tensors} == {"bert", "cls"}
    assert {key.split(".")[0] for key in found.places} == {"bert"}
    assert sorted(set(found.places.values())) == [0, 1, 2]


# --- less than is needed


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_whatever_transformers_would_make_up_is_refused_by_name(
    made: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    """Each kind of tensor taken away in turn."""
    tensors = weights(made(family))
    last = (key for key in tensors if "layers.0." not in key and ".h.0." not in key)
    kinds = {re.sub(r"experts\.\d+", "experts.3", key) for key in last}
    for number, gone in enumerate(sorted(kinds)):
        folder = shutil.copytree(made(family), tmp_path / str(number))
        rewrite(folder, lambda all_, gone=gone: {key: value for key, value in all_.items() if key != gone})
        wrong = wanting(folder)
        with pytest.raises(ModelError) as caught:
            opened(folder)
        assert wrong, gone
        assert any(key in caught.value.message for key in wrong) or "holds no weights" in caught.value.message, gone


def wanting(folder: Path) -> set[str]:
    """The weights that transformers would make up."""
    try:
        told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)[1]
    except RuntimeError:
        return {"transformers cannot convert"}
    return {*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}


def test_an_expert_too_few_is_another_shape(copy: Callable[[str], Path]) -> None:
    folder = rewrite(copy("mixtral"), lambda all_: {key: t for key, t in all_.items() if ".experts.3." not in key})
    with pytest.raises(ModelError, match=r"experts\.\w+ has shape \[3, .*\], but its config asks for \[4, "):
        opened(folder)


def test_experts_that_do_not_fit_together(copy: Callable[[str], Path]) -> None:
    odd = "model.layers.1.block_sparse_moe.experts.1.w1.weight"
    folder = rewrite(copy("mixtral"), lambda all_: {**all_, odd: torch.ones(3, 5)})
    with pytest.raises(ModelError, match=r"transformers cannot convert its model\.layers\.1"):
        opened(folder)


def test_a_chain_known_already_is_what_was_found(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = ends(copy("qwen2"), TIED["the head alone"][0])
    assert opened(folder, cache=tmp_path / "c") == opened(folder, cache=tmp_path / "c") == opened(folder)
    assert opened(folder).tensors[EMBEDDING].size == opened(folder).tensors[HEAD].size


# --- quantised, or no model at all

METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inside", [False, True])
def test_quantised_checkpoints_are_refused_with_a_way_out(
    copy: Callable[[str], Path], method: str, inside: bool
) -> None:
    folder, told = copy("llama"), {"quantization_config": METHODS[method]}
    config(folder, **({"text_config": told} if inside else told))
    for file in folder.glob("*.safetensors"):
        file.unlink()  # it is told before the weights are looked at, or downloaded
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert caught.value.message == f"{folder} is quantised ({method})"
    assert "the checkpoint that it was made from; the plan's `quantization`" in caught.value.hint


@pytest.mark.parametrize("line", ["base_model: org/big-7B", "base_model:\n- org/big-7B", 'base_model: "org/big-7B"'])
def test_the_original_is_named_where_the_readme_knows_it(copy: Callable[[str], Path], line: str) -> None:
    folder = copy("llama")
    config(folder, quantization_config={"quant_method": "gptq"})
    (folder / "README.md").write_text(f"---\nlicense: mit\n{line}\n---\n# Model\n")
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert "made from, org/big-7B; " in caught.value.hint


LEFT_BEHIND = ["self_attn.q_proj.qweight", "mlp.up_proj.weight_scale", "mlp.up_proj.weight_scale_inv",
               "mlp.up_proj.weight_packed", "self_attn.q_proj.weight.absmax", "mlp.experts.gate_up_proj_blocks",
               "mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "mlp.up_proj.SCB"]  # fmt: skip


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_quantised_weights_are_not_taken_for_plain_ones(copy: Callable[[str], Path], name: str) -> None:
    """Whose config says nothing: some tools keep it in a file of their own."""
    extra = f"model.layers.0.{name}"
    folder = rewrite(copy("llama"), lambda tensors: {**tensors, extra: torch.ones(2)})
    with pytest.raises(ModelError, match=f"is quantised, though its config does not say so: {extra}$"):
        opened(folder)


def test_an_adapter_is_no_model(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter") as caught:
        opened(folder)
    assert "merge" in caught.value.hint


@pytest.mark.parametrize("kind", ["bin", "gguf"])
def test_weights_in_another_format(copy: Callable[[str], Path], kind: str) -> None:
    folder = copy("llama")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / f"model.{kind}").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"holds only \.{kind} files$"):
        opened(folder)


# --- the plan's wishes


def test_a_folder_has_no_revision(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    assert resolve("model", None, folder.parent) == folder
    with pytest.raises(ModelError, match="is a folder; it has no revision main") as caught:
        resolve("model", "main", folder.parent)
    assert "`revision`" in caught.value.hint


def generation(folder: Path, **more: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(more))
    return folder


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"num_beams": 4}, "num_beams (beam search)"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha (contrastive search)"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"dola_layers": "high"}, "dola_layers"),
        ({"force_words_ids": [[1]]}, "force_words_ids"),
        ({"cache_implementation": "quantized"}, "cache_implementation"),
    ],
)
def test_a_generation_that_is_not_done_here_is_refused(copy: Callable[[str], Path], asked: Any, word: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"wants to be generated with {word}")) as caught:
        opened(generation(copy("llama"), **asked))
    assert "generation_config.json" in caught.value.hint


def test_what_changes_no_token_is_a_note(made: Callable[[str], Path], copy: Callable[[str], Path]) -> None:
    assert opened(made("llama")).notes == ()
    (note,) = opened(generation(copy("llama"), prompt_lookup_num_tokens=3, num_beams=1, guidance_scale=1.0)).notes
    assert "prompt_lookup_num_tokens (assisted decoding)" in note


def test_embeddings_that_go_to_every_host_are_a_note(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for told, count in (({"model_type": "zamba2"}, 1), ({"text_config": {"model_type": "gemma4_text"}}, 1), ({}, 0)):
        (tmp_path / "config.json").write_text(json.dumps(told))
        assert len([note for note in notes(tmp_path) if "whoever holds a stage" in note]) == count


def test_no_tokenizer_is_a_note(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert opened(folder).notes == ("no tokenizer: the API takes and gives token ids only",)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_generation_config_is_not_passed_over(copy: Callable[[str], Path], text: str) -> None:
    folder = copy("llama")
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config.json is not"):
        opened(folder)


def test_side_files_of_every_kind_of_tokenizer_travel(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    names = ["tokenizer.model", "spiece.model", "vocab.txt", "merges.txt", "tekken.json", "qwen.tiktoken",
             "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"]  # fmt: skip
    for name in names:
        (folder / name).write_text("")
    (folder / "tokenization_mine.py").write_text("")
    (folder / "tokenizer.py").write_text("")
    travels = {path.name for path in opened(folder).side_files}
    assert {*names, "config.json", "generation_config.json", "tokenizer.json"} <= travels
    assert not any(name.endswith(".py") for name in travels)


def test_an_unshrunk_config_without_weights_is_told_quickly(tmp_path: Path) -> None:
    """Nothing of the size that a config claims is ever made."""
    MixtralConfig(num_hidden_layers=10**6, num_local_experts=10**6).save_pretrained(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="its config says 1000000 layers"):
        opened(tmp_path)
    assert config_of("llama").num_hidden_layers == 4
