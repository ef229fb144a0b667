"""/v1/embeddings of a split encoder: the whole model's vectors, made as the checkpoint says."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import (
    LAYERS,
    NORMALIZE,
    POOLING,
    POSITIONS,
    TRANSFORMER,
    image_vector,
    save_bert,
    save_vit,
    text_vector,
)
from links import eventually, no_thread_left
from models import make_checkpoint, tokenizer
from rings import Rig, ship
from visions import data_url, png

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.runner.core import CoreError
from edgesplit.runner.images import MAX_IMAGES
from edgesplit.runner.pooling import Pooling, PoolingError

TWO = ("desk", "desk", "shelf", "desk", "desk")
TEXTS = ["hello", "a longer text than the other one", "?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def rig(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    with no_thread_left():
        made = Rig(folder, ship(model, folder), "desk", "shelf")
        made.up(1, *TWO)
        yield made
        made.close()


def ask(rig: Rig, path: str = "/v1/embeddings", **body: Any) -> tuple[int, dict[str, Any]]:
    return rig.post(path, body)


def vectors(rig: Rig, given: Any) -> list[list[float]]:
    status, answer = ask(rig, input=given)
    assert status == 200, answer
    assert [item["index"] for item in answer["data"]] == [*range(len(answer["data"]))]
    return [item["embedding"] for item in answer["data"]]


def test_vectors_are_the_whole_models(rig: Rig, model: Path) -> None:
    for text, vector in zip(TEXTS, vectors(rig, TEXTS), strict=True):
        assert (torch.tensor(vector) - text_vector(model, text)).abs().max() < 1e-6
    assert vectors(rig, TEXTS[0]) == [vectors(rig, TEXTS)[0]]
    ids = tokenizer()(TEXTS[1])["input_ids"]
    assert vectors(rig, ids) == vectors(rig, [ids]) == vectors(rig, TEXTS[1])
    eventually(lambda: not any(rig.sequences(1)))


def test_many_texts_are_no_overload(rig: Rig) -> None:
    many = [f"text {number}" for number in range(100)]  # more than may wait
    found = vectors(rig, many)
    assert len(found) == 100
    assert found[7] == vectors(rig, "text 7")[0]


def test_the_reply_is_as_openai_has_it(rig: Rig) -> None:
    status, answer = ask(rig, input=TEXTS, model="tiny", encoding_format="base64")
    assert status == 200
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "tiny", "embedding")
    count = sum(len(tokenizer()(text)["input_ids"]) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    packed = base64.b64decode(answer["data"][0]["embedding"])
    plain = vectors(rig, TEXTS[0])[0]
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "prompt"),
        ({"input": []}, "input"),
        ({"input": [""]}, "prompt"),
        ({"input": [1, "a"]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [999]}, "prompt"),
        ({"input": "x" * 300}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "x", "model": "other"}, "model"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_bad_requests_are_told_off(rig: Rig, body: dict[str, Any], param: str) -> None:
    status, answer = ask(rig, **body)
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_an_encoder_does_not_talk(rig: Rig) -> None:
    for path, body in [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ]:
        status, answer = ask(rig, path, **body)
        assert status == 400
        assert "is an encoder" in answer["error"]["message"]


def test_a_language_model_has_no_vectors(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", 2)
    with no_thread_left():
        rig = Rig(tmp_path, ship(folder, tmp_path), "desk")
        rig.up(1, *["desk"] * 4)
        status, answer = ask(rig, input="x")
        assert (status, answer["error"]["message"]) == (400, "this model generates text; it has no embeddings to give")
        rig.close()


# --- images


def part(file: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(file)}}


def seeing(folder: Path, *placement: str, **more: Any) -> Rig:
    rig = Rig(folder, ship(save_vit(folder / "model", **more), folder), *dict.fromkeys(placement))
    rig.up(1, *placement)
    return rig


def test_vectors_of_images_are_the_whole_models(tmp_path: Path) -> None:
    files = [png(40, 24), png(9, 30, seed=1)]
    with no_thread_left():
        rig = seeing(tmp_path, *TWO)
        status, answer = ask(rig, input=[part(file) for file in files])
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 2 * POSITIONS), answer
        for file, item in zip(files, answer["data"], strict=True):
            assert torch.equal(torch.tensor(item["embedding"]), image_vector(tmp_path / "model", file))
        assert vectors(rig, part(files[1])) == [answer["data"][1]["embedding"]]
        for given, word in [
            ("x", "takes images"),
            ([], "takes images"),
            ([part(files[0]), "x"], "takes images"),
            (part(b"no image"), "none of PNG"),
            ({"type": "image_url"}, "data URL"),
            ([part(files[0])] * (MAX_IMAGES + 1), "more than"),
        ]:
            status, answer = ask(rig, input=given)
            assert (status, answer["error"]["param"]) == (400, "input"), answer
            assert word in answer["error"]["message"]
        eventually(lambda: not any(rig.sequences(1)))
        rig.close()


def test_an_image_of_another_size_is_told_off_and_the_ring_goes_on(tmp_path: Path) -> None:
    with no_thread_left():
        rig = seeing(tmp_path, *TWO, sees=24)
        for _ in range(2):
            status, answer = ask(rig, input=part(png(9, 9)))
            assert (status, answer["error"]["message"]) == (400, "the image does not fit the model")
        assert rig.state("desk", 1) == "serving"
        rig.close()


def test_an_encoder_of_images_is_planned_by_its_positions(tmp_path: Path) -> None:
    found = open_checkpoint(save_vit(tmp_path), "vit", "float32")
    assert (found.chain.image_positions, found.notes) == (POSITIONS, ())
    layer = found.chain.blocks[1]
    matrices = 4 * 32 * 32 + 2 * 32 * 48  # multiplied with every position; and each position sees all
    assert layer.prefill_flops(POSITIONS) == 2 * POSITIONS * (matrices + 2 * POSITIONS * 32)


# --- pooling ---


def pooling(folder: Path, modules: Any, settings: Any) -> Pooling:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling-config.json").write_text(json.dumps(settings))
    return Pooling.load(folder)


STATES = torch.tensor([[1.0, 5.0], [3.0, 1.0], [2.0, 0.0]])


@pytest.mark.parametrize(
    ("settings", "vector"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [2.0, 2.0]),
        ({"pooling_mode_cls_token": True}, [1.0, 5.0]),
        ({"pooling_mode_max_tokens": True}, [3.0, 5.0]),
        ({"pooling_mode": "lasttoken"}, [2.0, 0.0]),
    ],
)
def test_a_vector_is_made_as_the_checkpoint_says(tmp_path: Path, settings: Any, vector: list[float]) -> None:
    assert pooling(tmp_path, [TRANSFORMER, POOLING], settings).vector(STATES) == vector
    normal = pooling(tmp_path, [TRANSFORMER, POOLING, NORMALIZE], settings).vector(STATES)
    assert sum(value * value for value in normal) == pytest.approx(1)


def test_without_a_word_of_it_the_mean_is_taken(tmp_path: Path) -> None:
    assert Pooling.load(tmp_path) == Pooling("mean", normalised=False)


@pytest.mark.parametrize(
    ("modules", "settings", "words"),
    [
        ([TRANSFORMER, POOLING], {"pooling_mode_weightedmean_tokens": True}, "asks for weightedmean"),
        ([TRANSFORMER, POOLING], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean, cls"),
        ([TRANSFORMER, POOLING], {}, "asks for nothing"),
        ([TRANSFORMER, POOLING, {"type": "sentence_transformers.models.Dense"}], {}, "Transformer, Pooling, Dense"),
        ([], {}, "modules.json asks for"),
        ("x", {}, "modules.json asks for"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, modules: Any, settings: Any, words: str) -> None:
    with pytest.raises(PoolingError, match=words):
        pooling(tmp_path, modules, settings)
    (tmp_path / "1_Pooling-config.json").unlink()
    with pytest.raises(PoolingError):
        Pooling.load(tmp_path)


def test_a_checkpoint_whose_pooling_is_not_known_is_not_served(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in model.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())  # without 1_Pooling
    with no_thread_left():
        rig = Rig(tmp_path, ship(copy, tmp_path), "desk")
        with pytest.raises(CoreError, match=r"1_Pooling-config.json cannot be read"):
            rig.up(1, *["desk"] * (LAYERS + 2))
        rig.close()
