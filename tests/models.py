"""Small checkpoints in the true Hugging Face layout, made on the spot: random weights, a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SPECIAL = ["<s>", "</s>"]
VOCABULARY = 256 + len(SPECIAL)
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def config(family: str, layers: int = 4) -> PreTrainedConfig:
    """llama: untied head; qwen2: tied head, biases; gpt2: learned positions, tied; mixtral: experts."""
    sizes = {**_SIZES, "num_hidden_layers": layers}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    match family:
        case "llama":
            return LlamaConfig(**sizes)
        case "qwen2":
            return Qwen2Config(**sizes, tie_word_embeddings=True)
        case "gpt2":
            return GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=layers, n_head=4, n_positions=512, **ends)
        case "mixtral":
            return MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
        case _:
            raise ValueError(family)


FAMILIES = ("llama", "qwen2", "gpt2", "mixtral")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *alphabet])}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    return made


def make_checkpoint(folder: Path, family: str = "llama", layers: int = 4, seed: int = 0) -> Path:
    """Save a random model of a family, its weights in several files with an index."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(family, layers)).eval()
    for weight in model.parameters():  # large enough that greedy answers vary from token to token
        torch.nn.init.normal_(weight, std=0.25) if weight.dim() > 1 else None
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer().save_pretrained(folder)
    return folder
