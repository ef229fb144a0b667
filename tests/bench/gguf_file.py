"""A checkpoint of `serve.py` as a GGUF file, which llama.cpp reads: in BF16 or Q8_0.

Its tokens get names of plain letters, so that each is text at once: llama.cpp holds back what is not yet whole UTF-8.
Must not know: who serves it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import safe_open
from transformers import AutoConfig

Kind = Literal["BF16", "Q8_0"]

ALIGNED = 32
BLOCK = 32  # columns that share a scale in Q8_0
TYPES = {"F32": 0, "Q8_0": 8, "BF16": 30}  # of tensors, by GGUF's numbers
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # of values
NORMAL, CONTROL = 1, 3  # kinds of tokens
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(model: Path, file: Path, kind: Kind) -> Path:
    """`model`: a checkpoint of the Qwen2 or Llama kind. Both are Qwen2 to llama.cpp, which does without the biases."""
    weights = dict(_weights(model))
    with file.open("wb") as out:
        values = dict(_values(AutoConfig.from_pretrained(model)))
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(weights), len(values)))
        for key, (sort, value) in values.items():
            out.write(_string(key) + _value(sort, value))
        at = 0
        for name, weight in weights.items():
            dimensions = weight.shape[::-1]
            out.write(_string(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
            out.write(struct.pack("<IQ", TYPES[_kind(weight, kind)], at))
            at += _padded(_size(weight, kind))
        _pad(out)
        for weight in weights.values():
            out.write(_content(weight, kind))
            _pad(out)
    return file


def _weights(model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as held:
            for key in held.keys():  # noqa: SIM118 - no mapping
                yield _name(key), held.get_tensor(key)


def _name(key: str) -> str:
    path, _, end = key.rpartition(".")
    if path.startswith("model.layers."):
        number, _, part = path.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[part]}.{end}"
    return f"{NAMES[path]}.{end}"


# --- values ---


def _values(config: Any) -> Iterator[tuple[str, tuple[int, Any]]]:
    yield "general.architecture", (STRING, "qwen2")
    for key, number in (
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
    ):
        yield f"qwen2.{key}", (UINT32, number)
    yield "qwen2.attention.layer_norm_rms_epsilon", (FLOAT32, config.rms_norm_eps)
    yield "qwen2.rope.freq_base", (FLOAT32, config.rope_parameters["rope_theta"])
    yield "tokenizer.ggml.model", (STRING, "gpt2")
    yield "tokenizer.ggml.pre", (STRING, "qwen2")
    yield "tokenizer.ggml.tokens", (ARRAY, (STRING, [f"t{number}" for number in range(config.vocab_size)]))
    ends = {config.bos_token_id, config.eos_token_id}
    kinds = [CONTROL if number in ends else NORMAL for number in range(config.vocab_size)]
    yield "tokenizer.ggml.token_type", (ARRAY, (INT32, kinds))
    yield "tokenizer.ggml.merges", (ARRAY, (STRING, ["t 0"]))
    yield "tokenizer.ggml.bos_token_id", (UINT32, config.bos_token_id)
    yield "tokenizer.ggml.eos_token_id", (UINT32, config.eos_token_id)


def _value(sort: int, value: Any) -> bytes:
    return struct.pack("<I", sort) + _bare(sort, value)


def _bare(sort: int, value: Any) -> bytes:
    if sort == STRING:
        return _string(value)
    if sort == ARRAY:
        inner, members = value
        return struct.pack("<IQ", inner, len(members)) + b"".join(_bare(inner, member) for member in members)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f"}[sort], value)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


# --- tensors ---


def _kind(weight: torch.Tensor, kind: Kind) -> str:
    return kind if weight.dim() > 1 else "F32"


def _size(weight: torch.Tensor, kind: Kind) -> int:
    per_block = {"F32": 4 * BLOCK, "BF16": 2 * BLOCK, "Q8_0": BLOCK + 2}
    return weight.numel() * per_block[_kind(weight, kind)] // BLOCK


def _content(weight: torch.Tensor, kind: Kind) -> bytes:
    match _kind(weight, kind):
        case "F32":
            return _bytes(weight.float())
        case "BF16":
            return _bytes(weight.bfloat16())
        case _:
            blocks = weight.float().reshape(-1, BLOCK)
            scales = blocks.abs().amax(1, keepdim=True) / 127
            codes = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
            return _bytes(torch.cat([scales.half().view(torch.uint8), codes.view(torch.uint8)], 1))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _pad(out: BinaryIO) -> None:
    out.write(bytes(_padded(out.tell()) - out.tell()))
