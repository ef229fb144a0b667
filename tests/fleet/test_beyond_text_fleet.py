"""Encoders and models that see, over real runners on three hosts: what the unsplit model gives, bit for bit its
tokens, to rounding its vectors."""

from __future__ import annotations

from pathlib import Path

import torch
from deployments import deployment
from encoders import save_bert, text_vector
from transformers.utils import logging
from visions import message, png, save_speaking, unsplit_answer

from edgesplit.plan import Pin, Workload

TEXTS = ["hello", "a longer text than the other one", "?"]
THREE = ("desk", "shelf", "attic", "attic", "desk")  # embedding with tower, three layers, head
COUNT = 10


def test_vectors_of_a_split_encoder_are_the_unsplit_ones(tmp_path: Path) -> None:
    logging.disable_progress_bar()
    model = save_bert(tmp_path / "model")
    with deployment(tmp_path, model=model, workload=Workload(prompt_tokens=16, new_tokens=1, max_context=128)) as made:
        made.push(*THREE)
        answer = made.ask("/v1/embeddings", input=TEXTS)
        for text, item in zip(TEXTS, answer["data"], strict=True):
            assert (torch.tensor(item["embedding"]) - text_vector(model, text)).abs().max() < 1e-6


def test_a_chat_with_an_image_is_answered_as_by_the_unsplit_model(tmp_path: Path) -> None:
    logging.disable_progress_bar()
    case = save_speaking("qwen2_vl", tmp_path / "model")
    chat = [message("look ", png(40, 24), " and ", png(24, 24, seed=1), " what is it?")]
    with deployment(tmp_path, model=case.folder, pins=(Pin(blocks=("vision",), to="desk"),)) as made:
        made.push(*THREE)
        body = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        answer = made.ask("/v1/chat/completions", messages=chat, max_tokens=COUNT, **body)["choices"][0]
        assert answer["token_ids"] == unsplit_answer(case, chat, COUNT)
        assert len(set(answer["token_ids"])) > 1
