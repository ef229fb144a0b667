"""Small encoders as they are found: a BERT of sentence-transformers, a ViT."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from models import tokenizer
from PIL import Image
from transformers import BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTImageProcessorPil, ViTModel

LAYERS = 3
SIDE = 16  # pixels; POSITIONS is what a ViT makes of them
POSITIONS = (SIDE // 4) ** 2 + 1
TRANSFORMER, POOLING, NORMALIZE = (
    {"idx": number, "path": path, "type": f"sentence_transformers.models.{name}"}
    for number, (name, path) in enumerate([("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")])
)


def save_bert(folder: Path) -> Path:
    """It normalises the mean of its positions."""
    config = BertConfig(
        vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=128, pad_token_id=1,
    )  # fmt: skip
    _save(BertModel, config, folder)
    tokenizer().save_pretrained(folder)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, POOLING, NORMALIZE]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def save_vit(folder: Path, sees: int = SIDE) -> Path:
    """`sees`: the size its processor gives it, in pixels."""
    config = ViTConfig(hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=48,
                       image_size=SIDE, patch_size=4)  # fmt: skip
    _save(ViTModel, config, folder)
    ViTImageProcessorPil(size={"height": sees, "width": sees}).save_pretrained(folder)
    return folder


def _save(kind: type[PreTrainedModel], config: object, folder: Path) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    model.save_pretrained(folder)


@torch.no_grad()
def text_vector(folder: Path, text: str) -> torch.Tensor:
    """What the unsplit BERT makes of a text."""
    ids = torch.tensor([tokenizer()(text)["input_ids"]])
    hidden = BertModel.from_pretrained(folder).eval()(ids).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0)


@torch.no_grad()
def image_vector(folder: Path, file: bytes) -> torch.Tensor:
    """What the unsplit ViT makes of an image."""
    pixels = ViTImageProcessorPil.from_pretrained(folder)(Image.open(io.BytesIO(file)), return_tensors="pt")
    hidden = ViTModel.from_pretrained(folder).eval()(**pixels).last_hidden_state[0]
    return hidden.mean(0)
