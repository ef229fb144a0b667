"""Every causal language model transformers knows, as a tiny config: shrunk by the names of the config's own fields.

A new family needs nothing here while its fields have known names; what it needs beyond them is a line of OVERRIDES.
Must not know: edgesplit, checkpoints, what is tested with them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# A representative few, and what for.
FEW = {
    "llama": "dense",
    "qwen2": "windows on some layers, biases",
    "gpt2": "learned positions, a tied head",
    "bloom": "alibi, layers that return tuples",
    "gpt_neox": "attention and MLP side by side",
    "gemma4_text": "per-layer embeddings, windows, layers that share caches",
    "deepseek_v3": "latent attention, one dense layer, then experts",
    "glm_moe_dsa": "indexers, whose choice crosses boundaries",
    "jamba": "state, attention and experts",
    "mamba2": "state alone",
    "qwen3_next": "linear attention and full, experts",
    "recurrent_gemma": "state kept in modules",
    "zamba": "weights shared across layers, embeddings read again",
    "inkling2_text": "earlier layers' outputs read again",
}

LAYERS = 4
VOCABULARY = 99
WINDOW = 6  # sliding windows, chunks and top-k: all shorter than what the tests feed
PAD, BOS, EOS = 0, 1, 2

# (field's name, value), the first that matches; applied to fields whose default is a number
RULES: tuple[tuple[str, int], ...] = (
    (r"pad_token_id", PAD),
    (r"bos_token_id|decoder_start_token_id", BOS),
    (r"(forced_)?eos_token_id", EOS),
    (r"((num_)?hidden|num|n|(num_)?(en|de)coder)_layers?|num_blocks|depth", LAYERS),
    (r"(task_)?type_vocab_size|first_k_dense_replace|num_dense_layers|moe_layer_start_index|mamba_n_?groups", 1),
    (r"moe_layer_end_index", LAYERS - 1),
    (r"max_window_layers|n_groups|num_mem_blocks|n_layers_per_attn_res_block|H_cycles|L_cycles", 2),
    (r"(.*_)?vocab_size(_per_layer_input)?|.*_vocab", VOCABULARY),
    (r"hidden_size_per_layer_input|router_hidden_size|(ssm_)?state_size|mamba_d_state|time_step_rank", 8),
    (r"(backbone_|attention_|out_)?hidden_size|n_embd|d_model|emb_dim|lru_width", 32),
    (r"(word_)?embed(ding)?_(dim|proj_dim|size)|(in|out)put_embedding_size", 32),
    (r"(adapter|projector)_(in|out)(put)?_(dim|size)|vision_output_dim|output_proj_dims", 32),
    (r".*shared.*intermediate_size|moe_intermediate_size|expert_ffn_hidden_size", 16),
    (r"(.*_)?intermediate_size(_mlp)?|((en|de)coder_)?ffn_dim|dff|dim_ff", 48),
    (r"ffn_hidden_size|feed_forward_size|d_inner|n_inner", 48),
    (r"mamba_n(um)?_heads|n_mamba_heads|index_n_heads", 8),  # so many that no two keys score the same zero
    (r"(.*_)?(num_key_value|num_kv|indexer_kv)_heads|linear_num_key_heads", 2),
    (r"(.*_)?(num|n)_attention_heads|n_heads?|(linear_)?num(_value)?_heads", 4),
    (r"(num_)?((en|de)coder_)?attention_heads", 4),
    (r"(.*_)?head_dim|d_head|dim_head|kv_channels|.*_head_size|d_rel|mamba_d_head|rotary_dim", 8),
    (r"(.*_)?lora_rank|.*_rank|hc_lowrank", 16),
    (r"(n_routed_|num_local_|num_|moe_num_)experts|zero_expert_num", 4),
    (r"num_experts_per_tok|moe_k|moe_topk|top_k_experts|n_group|topk_group", 2),
    (r"(n_|num_|moe_num_)shared_experts", 1),
    (r"(.*_)?(sliding_window(_size)?|window_size|attention_chunk_size|local_attention)", WINDOW),
    (r"(mamba_)?chunk_size|index_topk|block_size|index_block_size|index_topk_blocks", 4),
    (r"max_(position_embeddings|seq_len|source_positions|target_positions)|n_positions|n_ctx", 128),
    (r"context_length|original_max_position_embeddings|rel_extent", 128),
)
_RULES = [(re.compile(pattern), value) for pattern, value in RULES]

_SWA = ["sliding_attention", "full_attention"]
_GLOBAL = {"rope_type": "default", "rope_theta": 10000.0}
_SHARED_KV = {"layer_types": _SWA * 3, "num_hidden_layers": 6, "num_kv_shared_layers": 2}

# What a family's config needs beyond its fields' names.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"layer_types": _SWA * 2, "rope_parameters": dict.fromkeys(_SWA, _GLOBAL)},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    "deepseek_v4": {
        "head_dim": 16,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "dots3_note_vision_encoder": {"pyramid_num_routed": [-1, -1, 4, 4]},
    "emu3": {"vocabulary_map": {"<image>": VOCABULARY - 1, "<|extra_200|>": VOCABULARY - 2}},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "attn_resolutions": []},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {**_SHARED_KV, "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0]},
    "gemma4_text": {**_SHARED_KV, "global_head_dim": 16},
    "gemma4_unified_text": {**_SHARED_KV, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "laguna": {"layer_types": _SWA * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": _SWA * 2, "mlp_layer_types": ["dense", "sparse"] * 2},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "index_n_heads": 4,
    },
    "ministral": {"head_dim": 8, "layer_types": _SWA * 2},
    "ministral3": {"sliding_window": WINDOW},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {"sliding_window": WINDOW},
    "qwen4_exp_text": {
        "eos_token_id": EOS,
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1, 3],
        "ngram_vocab_size_base": 50,
        "heads_per_ngram": 2,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 4,
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "starcoder2": {"sliding_window": WINDOW},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # its state is made for multiples of 64
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 3, "num_hidden_layers": 6},  # the third shares
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": WINDOW},
}


def families() -> Iterator[str]:
    """Every model type with a causal LM, as transformers names them."""
    yield from MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def class_name(family: str) -> str:
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]


def tiny(family: str) -> PreTrainedConfig:
    return _shrunk(CONFIG_MAPPING[family], {})


def _shrunk(kind: type[PreTrainedConfig], extra: Mapping[str, Any]) -> PreTrainedConfig:
    names = [field.name for field in dataclasses.fields(kind)]
    overrides = {**OVERRIDES.get(kind.model_type, {}), **extra}
    values: dict[str, Any] = {}
    for name in names:
        default = getattr(kind, name, None)
        if name in kind.sub_configs:
            values[name] = _part(kind, name, overrides.pop(name, {}))
        elif isinstance(default, int) and not isinstance(default, bool):
            values.update((name, value) for pattern, value in _RULES[::-1] if pattern.fullmatch(name))
    if "kv_lora_rank" in names:  # multi-head latent attention: as many heads of keys as of queries
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "is_decoder" in names:  # else it looks ahead
        values["is_decoder"] = True
    if "use_sliding_window" in names:
        values |= {"use_sliding_window": True, "sliding_window": WINDOW}
    config = kind(**{**values, **overrides})
    usual = _usual(kind)
    if usual is None or not overrides.keys().isdisjoint(_lists(usual)):
        return config
    return _with_every_kind(kind, config, usual, {**values, **overrides})


def _part(kind: type[PreTrainedConfig], name: str, overrides: Mapping[str, Any]) -> PreTrainedConfig | None:
    """A config within a config: the text model of one that also sees or hears, a tower, a block's attention."""
    part = kind.sub_configs[name]
    if part is AutoConfig:
        part = type(getattr(_usual(kind), name, None))
    usual = _usual(kind)
    return None if usual is not None and getattr(usual, name) is None else _shrunk(part, overrides)


@functools.cache
def _usual(kind: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    """The config as it is when nothing is said. None where something must be."""
    try:
        return kind()
    except ValueError:
        return None


def _with_every_kind(
    kind: type[PreTrainedConfig], config: PreTrainedConfig, usual: PreTrainedConfig, values: dict[str, Any]
) -> PreTrainedConfig:
    """The config of these values; its layers a choice of the usual ones, so that none of their kinds is missing."""
    wanted, found = _kinds(usual), _kinds(config)
    if set(wanted) <= set(found):
        return config
    chosen = sorted({wanted.index(each) for each in wanted})
    spare = [number for number in range(len(wanted) - 1, -1, -1) if number not in chosen]
    chosen = sorted([*chosen, *spare[: max(0, LAYERS - len(chosen))]])
    lists = {name: [getattr(usual, name)[number] for number in chosen] for name in _lists(usual)}
    return kind(**{**values, **lists, "num_hidden_layers": len(chosen)})


def _lists(config: PreTrainedConfig) -> list[str]:
    """The fields that name a kind for each layer."""
    count = getattr(config, "num_hidden_layers", None)
    values = {field.name: vars(config).get(field.name) for field in dataclasses.fields(config)}
    return [
        name
        for name, value in values.items()
        if isinstance(value, list) and len(value) == count and all(isinstance(each, str) for each in value)
    ]


def _kinds(config: PreTrainedConfig) -> list[tuple[str, ...]]:
    return list(zip(*(getattr(config, name) for name in _lists(config)), strict=True))
