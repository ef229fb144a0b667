"""Chats with images: what is read of a request and what is refused, and a ring whose answers are the whole model's."""

from __future__ import annotations

import io
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOCALHOST
from links import eventually, no_thread_left
from PIL import Image
from rings import Rig, ship
from transformers import AutoProcessor, LlavaProcessor, MllamaConfig
from visions import IMAGE, SPEAKING, Case, data_url, message, png, save_speaking, unsplit_answer

from edgesplit.runner import images as images_module
from edgesplit.runner.anatomy import read_config
from edgesplit.runner.front import Front
from edgesplit.runner.images import MAX_IMAGES, ImageError, Images
from edgesplit.runner.manifest import Service
from edgesplit.runner.ring import Ring
from edgesplit.runner.stage import Stage
from edgesplit.runner.wishes import BadRequest

TWO = ("desk", "desk", "shelf", "shelf", "desk")
OTHER = ("desk", "shelf", "shelf", "desk", "desk")
COUNT = 10
PICTURE = png(30, 20)
CHAT = [message("look ", PICTURE, " what is it?")]


@pytest.fixture(scope="module", params=SPEAKING)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return save_speaking(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return save_speaking("llava", tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def reader(llava: Case) -> Images:
    return Images.load(llava.folder, read_config(str(llava.folder)))


# --- reading ---


def test_a_chat_is_read_as_transformers_itself_reads_it(llava: Case, reader: Images) -> None:
    picture = Image.open(io.BytesIO(PICTURE)).convert("RGB")
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what?"}]}]
    theirs = AutoProcessor.from_pretrained(llava.folder).apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids, inputs = reader.read([message(PICTURE, "what?")], None)
    assert ids == theirs["input_ids"][0].tolist()
    assert set(inputs) == {"pixel_values"}
    assert torch.equal(inputs["pixel_values"], theirs["pixel_values"])


def test_words_alone_bring_no_inputs(reader: Images) -> None:
    plain = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    ids, inputs = reader.read(plain, None)
    assert (inputs, IMAGE in ids) == ({}, False)
    assert reader.read([{"role": "system", "content": "be kind"}, message("h", "i")], None)[0] == ids


def test_every_format_and_every_kind_of_picture_is_read(reader: Images) -> None:
    for mode, kind in [("RGB", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"), ("1", "PNG")]:
        file = io.BytesIO()
        Image.new(mode, (20, 30)).save(file, kind)
        inputs = reader.read([message(file.getvalue())], None)[1]
        assert inputs["pixel_values"].shape == (1, 3, 16, 16)


def test_several_images_keep_their_order(reader: Images) -> None:
    one, two = png(16, 16, seed=1), png(16, 16, seed=2)
    alone = [reader.read([message(file)], None)[1]["pixel_values"] for file in (one, two)]
    both = reader.read([message("a ", one, " b "), message(two)], None)[1]["pixel_values"]
    assert torch.equal(both, torch.cat(alone))


def test_a_photo_lies_as_its_camera_says(reader: Images) -> None:
    picture, turned = Image.open(io.BytesIO(PICTURE)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    picture.save(turned, "PNG", exif=exif)
    upright = io.BytesIO()
    picture.rotate(-90, expand=True).save(upright, "PNG")
    first, second = (reader.read([message(file.getvalue())], None)[1]["pixel_values"] for file in (turned, upright))
    assert torch.equal(first, second)


def bomb() -> bytes:
    """A small file that says it is an image of 100 000 x 100 000 pixels."""
    data = bytearray(png(1, 1))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def part(url: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


BAD: dict[str, tuple[Any, str]] = {
    "an address": (part("https://example.com/cat.png"), "nothing is fetched"),
    "a file": (part("file:///etc/passwd"), "nothing is fetched"),
    "a path": (part("/etc/passwd"), "nothing is fetched"),
    "no string": (part(7), "nothing is fetched"),
    "no base64": (part("data:image/png,hello"), "must be base64"),
    "damaged base64": (part("data:image/png;base64,%%%"), "not base64"),
    "no image": (part(data_url(b"hello")), "cannot be read"),
    "half an image": (part(data_url(PICTURE[: len(PICTURE) // 2])), "cannot be read"),
    "an image in an odd format": (part(data_url(b"%PDF-1.4")), "cannot be read"),
    "a bomb": (part(data_url(bomb())), "pixels|cannot be read"),
    "too many": (message(*[png(1, 1)] * (MAX_IMAGES + 1)), f"more than {MAX_IMAGES} images"),
    "a sound": ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "a part of a message"),
    "a server's own image": (
        {"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]},
        "a part of a message",
    ),
    "no parts": ({"role": "user", "content": 7}, "a string or a list"),
    "words for parts": ({"role": "user", "content": ["hi"]}, "a string or a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused_in_words(reader: Images, name: str) -> None:
    said, words = BAD[name]
    with pytest.raises(ImageError, match=words):
        reader.read([said], None)


def test_all_images_of_a_request_share_one_limit(reader: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_PIXELS", 1000)
    reader.read([message(png(30, 30))], None)
    with pytest.raises(ImageError, match="more than 1000 pixels"):
        reader.read([message(png(30, 20), png(30, 20))], None)


def test_words_that_pretend_to_be_an_image_are_refused(reader: Images) -> None:
    with pytest.raises(ImageError, match="refuses these messages"):
        reader.read([message("<image>", PICTURE)], None)
    with pytest.raises(ImageError, match="refuses these messages"):
        reader.read([message("<image>")], None)


def test_a_checkpoint_without_a_processor_says_so(llava: Case, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llava.folder / "config.json").read_bytes())
    with pytest.raises(ImageError, match="LlavaProcessor cannot be used here"):
        Images.load(tmp_path, read_config(str(tmp_path)))


def test_models_that_want_more_than_a_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="mllama wants cross_attention_mask with every token"):
        Images.load(tmp_path, MllamaConfig(architectures=["MllamaForConditionalGeneration"]))


def test_where_images_cannot_be_read_no_chat_is(llava: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any, **__: Any) -> Any:
        raise ImportError("LlavaProcessor requires the PIL library")

    monkeypatch.setattr(LlavaProcessor, "from_pretrained", without)
    front = Front.load(Service(LOCALHOST, 1, "tiny", 1, 256, 8, 1), llava.folder)
    with pytest.raises(BadRequest, match="LlavaProcessor cannot be used here: LlavaProcessor requires the PIL library"):
        front.chat([{"role": "user", "content": "hi"}], None)
    assert front.checked(front.encoded("hi"))


# --- in the ring ---


def ask(rig: Rig, chat: list[Any], path: str = "/v1/chat/completions", **more: Any) -> tuple[int, dict[str, Any]]:
    body = {
        "messages": chat,
        "max_tokens": COUNT,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }
    return rig.post(path, body)


def tokens(answer: tuple[int, dict[str, Any]]) -> list[int]:
    assert answer[0] == 200, answer
    return list(answer[1]["choices"][0]["token_ids"])


@pytest.fixture
def rig(case: Case, tmp_path: Path) -> Iterator[Rig]:
    with no_thread_left():
        made = Rig(tmp_path, ship(case.folder, tmp_path), "desk", "shelf")
        made.up(1, *TWO, concurrency=3)
        yield made
        made.close()


def test_a_ring_answers_with_an_image_as_the_whole_model_does(rig: Rig, case: Case) -> None:
    assert tokens(ask(rig, CHAT)) == unsplit_answer(case, CHAT, COUNT)
    words = [{"role": "user", "content": "hi there, how are you?"}]
    assert tokens(ask(rig, words)) == unsplit_answer(case, words, COUNT)
    other = [message("look ", png(24, 30, seed=3), " what is it?"), message("and ", PICTURE, "?")]
    assert tokens(ask(rig, other)) == unsplit_answer(case, other, COUNT)
    eventually(lambda: not any(rig.sequences(1)))


def test_requests_with_images_go_on_in_the_next_epoch(rig: Rig, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In mid-answer the blocks move; the image is not asked for again."""
    true: Callable[..., Any] = Stage.forward

    def slowly(self: Stage, *arguments: Any, **more: Any) -> Any:
        time.sleep(0.01)
        return true(self, *arguments, **more)

    monkeypatch.setattr(Stage, "forward", slowly)
    count, answers = 40, list[Any]()
    thread = threading.Thread(target=lambda: answers.append(ask(rig, CHAT, max_tokens=count)))
    thread.start()
    eventually(lambda: rig.entry.tokens >= 5)
    rig.up(2, *OTHER, concurrency=3)
    assert not answers  # it was in mid-answer
    thread.join(60)
    assert tokens(answers[0]) == unsplit_answer(case, CHAT, count)


def test_images_that_do_not_fit_their_text_harm_nobody_else(
    rig: Rig, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = rig.cores["desk"]._api
    assert api is not None
    true = Images.read

    def odd(self: Images, *arguments: Any) -> Any:
        ids, inputs = true(self, *arguments)
        return [*ids, IMAGE], {name: torch.nn.functional.pad(value, (0, 1)) if "type" in name else value
                               for name, value in inputs.items()}  # fmt: skip

    monkeypatch.setattr(Images, "read", odd)
    status, answer = ask(rig, CHAT)
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "do not fit" in answer["error"]["message"]
    monkeypatch.undo()
    assert rig.state("desk", 1) == "serving"
    assert tokens(ask(rig, CHAT)) == unsplit_answer(case, CHAT, COUNT)


def test_bad_images_are_bad_requests(rig: Rig) -> None:
    for said, _ in BAD.values():
        status, answer = ask(rig, [said])
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), said
    status, answer = ask(rig, CHAT, path="/v1/embeddings")
    assert (status, answer["error"]["param"]) == (400, "model")
    status, answer = ask(rig, CHAT * MAX_IMAGES)
    assert (status, answer["error"]["param"]) == (400, "prompt")  # too long for the plan


def test_no_pixel_leaves_the_entry(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[set[str]] = []
    true = Ring._send

    def watch(self: Ring, work: Any, hidden: Any, *rest: Any) -> None:
        sent.append(set(hidden.told))
        true(self, work, hidden, *rest)

    monkeypatch.setattr(Ring, "_send", watch)
    tokens(ask(rig, CHAT))
    assert sent
    assert not any("pixel" in name or "ids" in name.replace("position_ids", "") for names in sent for name in names)


def test_the_tower_travels_to_the_first_stage_alone(rig: Rig) -> None:
    first, middle = rig.cores["desk"]._rings[1].stages[0], rig.cores["shelf"]._rings[1].stages[1]
    front = first._wire.parts.front
    held = [{name for name, _ in stage.model.named_parameters() if name.startswith(front)} for stage in (first, middle)]
    assert held[0]
    assert not held[1]
