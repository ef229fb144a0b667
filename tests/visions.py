"""Tiny vision-language models: a checkpoint, and a prompt with an image, of each family."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from models import tokenizer
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GemmaConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    LlavaProcessor,
    PaliGemmaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from edgesplit.runner.anatomy import model_class, read_config
from edgesplit.runner.hidden import Prompt
from edgesplit.runner.images import Images, _without_videos

LAYERS = 3  # of the text model, and of the tower: they must not be taken for each other
IMAGE = 290  # the token that stands for a piece of an image
SIDE, PATCH = 16, 4  # pixels
PIECES = (SIDE // PATCH) ** 2
TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
TOWER: dict[str, Any] = {
    "hidden_size": 48,  # wider than the text model
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
QWEN_TOWER: dict[str, Any] = {"depth": LAYERS, "num_heads": 4, "patch_size": PATCH, "out_hidden_size": 32,
                              "hidden_size": 48, "intermediate_size": 64}  # fmt: skip
PLACES = {"image_token_id": IMAGE, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
GRIDS = [[16, 32], [32, 16]]


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def around(pieces: int, before: int = 5, behind: int = 6) -> list[int]:
    return [*range(10, 10 + before), *[IMAGE] * pieces, *range(40, 40 + behind)]


Family = Callable[[], tuple[PreTrainedConfig, list[int], dict[str, torch.Tensor]]]


def _llava() -> Any:
    tower = CLIPVisionConfig(**TOWER, projection_dim=32)
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=tower, image_token_id=IMAGE)
    return config, around(PIECES), {"pixel_values": pixels(1, 3, SIDE, SIDE)}


def _llava_next() -> Any:
    tower = CLIPVisionConfig(**TOWER, projection_dim=32)
    config = LlavaNextConfig(text_config=LlamaConfig(**TEXT), vision_config=tower, image_token_id=IMAGE,
                             image_grid_pinpoints=GRIDS)  # fmt: skip
    inputs = {"pixel_values": pixels(1, 3, 3, SIDE, SIDE), "image_sizes": torch.tensor([[16, 32]])}
    return config, around(PIECES + 2 * PIECES + 4), inputs  # the whole, its two halves, and an end of line for each row


def _llava_onevision() -> Any:
    config = LlavaOnevisionConfig(text_config=Qwen2Config(**TEXT), vision_config=SiglipVisionConfig(**TOWER),
                                  image_token_id=IMAGE, video_token_id=291, image_grid_pinpoints=GRIDS,
                                  vision_feature_layer=-1)  # fmt: skip
    inputs = {"pixel_values": pixels(1, 3, 3, SIDE, SIDE), "image_sizes": torch.tensor([[16, 32]])}
    return config, around(PIECES + 2 * PIECES + 4), inputs


def _qwen(kind: type[PreTrainedConfig], **tower: Any) -> Family:
    def make() -> Any:
        config = kind(text_config={**TEXT, "rope_parameters": MROPE}, vision_config={**QWEN_TOWER, **tower}, **PLACES)
        ids = [10, 11, 12, 292, *[IMAGE] * 6, 293, 40, 41, 42]
        inputs = {
            "pixel_values": pixels(24, 3 * 2 * PATCH**2),
            "image_grid_thw": torch.tensor([[1, 4, 6]]),  # four of its patches are one piece
            "mm_token_type_ids": torch.tensor([[int(token == IMAGE) for token in ids]]),
        }
        return config, ids, inputs

    return make


def _gemma3() -> Any:
    text = {**TEXT, "head_dim": 8, "sliding_window": 8}
    text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3Config(text_config=text, vision_config=TOWER, image_token_id=IMAGE, boi_token_index=291,
                          eoi_token_index=292, mm_tokens_per_image=4, image_token_index=IMAGE)  # fmt: skip
    ids = [10, 11, 12, 291, *[IMAGE] * 4, 292, 40, 41, 42, 43, 44]
    kinds = torch.tensor([[int(token == IMAGE) for token in ids]])
    return config, ids, {"pixel_values": pixels(1, 3, SIDE, SIDE), "token_type_ids": kinds}


def _paligemma() -> Any:
    tower = SiglipVisionConfig(**TOWER, projection_dim=32)
    config = PaliGemmaConfig(text_config=GemmaConfig(**TEXT, head_dim=8), vision_config=tower, projection_dim=32,
                             image_token_id=IMAGE, image_token_index=IMAGE)  # fmt: skip
    ids = around(PIECES, before=0)
    kinds = torch.zeros(1, len(ids), dtype=torch.long)  # all of the prompt sees all of it
    return config, ids, {"pixel_values": pixels(1, 3, SIDE, SIDE), "token_type_ids": kinds}


def _two_images(kind: type[PreTrainedConfig]) -> Family:
    def make() -> Any:
        config = kind(text_config=LlamaConfig(**TEXT), vision_config=dict(TOWER), image_token_id=IMAGE, scale_factor=2)
        mask = torch.ones(1, 2, SIDE, SIDE, dtype=torch.bool)
        return config, around(PIECES // 2), {"pixel_values": pixels(1, 2, 3, SIDE, SIDE), "pixel_attention_mask": mask}

    return make


FAMILIES: dict[str, Family] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen(Qwen2VLConfig, hidden_size=32, embed_dim=48, mlp_ratio=2),
    "qwen2_5_vl": _qwen(Qwen2_5_VLConfig, window_size=16, fullatt_block_indexes=[1]),
    "qwen3_vl": _qwen(Qwen3VLConfig, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "idefics3": _two_images(Idefics3Config),
    "smolvlm": _two_images(SmolVLMConfig),
}


@dataclass(frozen=True)
class Case:
    """A checkpoint, the whole model read back from it, and a prompt with an image."""

    family: str
    folder: Path
    whole: PreTrainedModel
    prompt: Prompt


def save(family: str, folder: Path) -> Case:
    config, ids, inputs = FAMILIES[family]()
    config.architectures = None
    kind = model_class(config)
    torch.manual_seed(0)
    model = kind(config).eval()
    for weight in model.parameters():  # large enough that what an image is can be seen in the answer
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    return Case(family, folder, kind.from_pretrained(folder).eval(), Prompt(torch.tensor([ids]), inputs))


# --- with a tokenizer and a processor, as the API needs them ---

_WORDS = {  # by id from IMAGE on: what stands for a piece of an image, and what stands around it
    "llava": ["<image>"],
    "qwen2_vl": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
    "gemma3": ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
}
_MARKS = {
    "llava": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
}
SPEAKING = tuple(_WORDS)


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    """One token per byte, and the family's own at the ids its config names."""
    words = _WORDS[family]
    named = {"image_token": words[0], "boi_token": words[1], "eoi_token": words[2]} if family == "gemma3" else {}
    made = tokenizer()
    made.add_tokens([f"<unused{number}>" for number in range(len(made), IMAGE)])
    made.add_tokens(words, special_tokens=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        extra_special_tokens=named,
    )  # fmt: skip
    part = f"{{% if p['type'] == 'image' %}}{_MARKS[family]}{{% else %}}{{{{ p['text'] }}}}{{% endif %}}"
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}" + part + "{% endfor %}\n{% endfor %}"
        "assistant:"
    )
    return made


def _processor(family: str) -> Any:
    words = _tokenizer(family)
    size = {"height": SIDE, "width": SIDE}
    match family:
        case "llava":
            eyes = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
            return LlavaProcessor(
                eyes, words, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                image_token="<image>", chat_template=words.chat_template,
            )  # fmt: skip
        case "qwen2_vl":
            eyes = Qwen2VLImageProcessorPil(patch_size=PATCH, size={"shortest_edge": 64, "longest_edge": 1024})
            return _without_videos(Qwen2VLProcessor)(eyes, words, chat_template=words.chat_template)
        case _:
            eyes = Gemma3ImageProcessorPil(size=size)
            return Gemma3Processor(eyes, words, image_seq_length=4, chat_template=words.chat_template)


def save_speaking(family: str, folder: Path) -> Case:
    """As `save`, with everything a chat needs."""
    case = save(family, folder)
    _processor(family).save_pretrained(folder)
    return case


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    numbers = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers.numpy()).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def message(*parts: str | bytes) -> dict[str, Any]:
    """Of a user: words, and images as files."""
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    return {"role": "user", "content": content}


def unsplit_answer(case: Case, chat: list[Any], count: int) -> list[int]:
    """The tokens of the whole model's greedy `generate`."""
    ids, inputs = Images.load(case.folder, read_config(str(case.folder))).read(chat, None)
    prompt = torch.tensor([ids])
    tokens = case.whole.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, eos_token_id=None,
        **inputs,
    )  # fmt: skip
    return [int(token) for token in tokens[0, len(ids) :]]
