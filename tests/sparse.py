"""A large checkpoint that takes no disk: true headers over files that are holes. Every weight reads as zero."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

LAYERS = 11


def make_sparse(folder: Path, layers: int = LAYERS) -> Path:
    """A Llama of about 1.1 GB in bfloat16 (hidden size 2048, 88 MB a layer), one file per layer, with an index."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, tie_word_embeddings=True, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in model.state_dict().items():
        layer = key.split(".")[2] if ".layers." in key else "ends"
        if key != "lm_head.weight":  # tied
            files.setdefault(f"model-{layer}.safetensors", {})[key] = tensor
    for name, tensors in files.items():
        _write(folder / name, tensors)
    places = {key: name for name, tensors in files.items() for key in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    entries, at = {}, 0
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as data:
        data.write(struct.pack("<Q", len(header)) + header)
        data.truncate(8 + len(header) + at)
