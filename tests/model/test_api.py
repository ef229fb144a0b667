"""The HTTP API of a runner that holds the whole model: what OpenAI's clients send, and every way to be told off."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOCALHOST
from links import eventually, no_thread_left
from models import make_checkpoint, tokenizer
from openai import BadRequestError, NotFoundError, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from rings import Rig, ship
from transformers import AutoModelForCausalLM

from edgesplit.runner import api as api_module
from edgesplit.runner import entry
from edgesplit.runner.metrics import Meter
from edgesplit.runner.sampling import Sampler
from edgesplit.runner.stage import Stage
from edgesplit.runner.wire import Lap

PROMPT = [40, 7, 99, 140, 23]
COUNT = 12
TEXT = tokenizer()


class Client:
    def __init__(self, rig: Rig) -> None:
        self.rig, self._port = rig, rig.api

    @contextlib.contextmanager
    def ask(self, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(LOCALHOST, self._port, timeout=20)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, data)
            with connection.getresponse() as response:
                yield response

    def json(self, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        with self.ask(path, body) as response:
            return response.status, json.loads(response.read())

    def complete(self, **more: Any) -> dict[str, Any]:
        body = {"prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, **more}
        status, answer = self.json("/v1/completions", body)
        assert status == 200, answer
        return answer

    def stream(self, path: str = "/v1/completions", **more: Any) -> list[dict[str, Any]]:
        body = {"prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, "stream": True, **more}
        with self.ask(path, body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.read().decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def error(self, path: str = "/v1/completions", status: int = 400, **body: Any) -> dict[str, Any]:
        got, answer = self.json(path, body)
        assert got == status, answer
        return answer["error"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("api") / "model", "llama", 4)


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with no_thread_left():
        rig = Rig(tmp_path_factory.mktemp("rig"), ship(model, model.parent), "desk")
        rig.up(1, *["desk"] * 6)
        yield Client(rig)
        rig.close()


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    whole, ids = AutoModelForCausalLM.from_pretrained(model).eval(), torch.tensor([PROMPT])
    answer = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, eos_token_id=None
    )
    return answer[0, len(PROMPT) :].tolist()


# --- answers ---


def test_a_completion_is_the_models_own(client: Client, expected: list[int]) -> None:
    answer = client.complete(return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == expected
    assert choice["prompt_token_ids"] == PROMPT
    assert choice["text"] == TEXT.decode(expected, skip_special_tokens=True)
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert answer["usage"] == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": COUNT,
        "total_tokens": len(PROMPT) + COUNT,
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert answer["id"].startswith("cmpl-")


def test_a_prompt_may_be_text(client: Client) -> None:
    ids = TEXT("hello")["input_ids"]
    by_text, by_ids, in_list = (client.complete(prompt=prompt) for prompt in ("hello", ids, ["hello"]))
    assert by_text["choices"] == by_ids["choices"] == in_list["choices"]


def test_a_stream_brings_the_same_piece_by_piece(client: Client, expected: list[int]) -> None:
    chunks = client.stream(return_token_ids=True, stream_options={"include_usage": True})
    assert chunks[-1]["usage"]["completion_tokens"] == COUNT
    assert chunks[-1]["choices"] == []
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(choice["text"] for choice in choices) == client.complete()["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["token_ids"] == expected
    assert len(choices) > COUNT // 2
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_chat(client: Client) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
    status, answer = client.json("/v1/chat/completions", body)
    assert status == 200
    content = answer["choices"][0]["message"]["content"]
    assert answer["object"] == "chat.completion"
    assert content == client.complete(prompt="user: hi\nassistant:")["choices"][0]["text"]
    chunks = client.stream("/v1/chat/completions", messages=messages, prompt=None)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == content


def test_a_stop_string_ends_the_text_and_frees_the_caches(client: Client) -> None:
    text = client.complete()["choices"][0]["text"]
    stop = next(character for character in text[2:] if text.index(character) >= 2)
    choice = client.complete(stop=[stop])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    eventually(lambda: not any(client.rig.sequences(1)))


def test_the_models_end_token_ends_it(client: Client, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    front = client.rig.cores["desk"]._api.front  # type: ignore[union-attr]
    ending = type(front)(front.service, front.tokenizer, front.base, frozenset({expected[3]}), front.vocabulary)
    monkeypatch.setattr(client.rig.cores["desk"]._api, "front", ending)
    choice = client.complete(ignore_eos=False, return_token_ids=True)["choices"][0]
    assert (choice["token_ids"], choice["finish_reason"]) == (expected[: expected.index(expected[3])], "stop")


def test_logprobs_of_the_tokens_given(client: Client) -> None:
    told = client.complete(logprobs=1)["choices"][0]["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == COUNT
    assert all(value < 0 for value in told["token_logprobs"])
    streamed = [chunk["choices"][0]["logprobs"] for chunk in client.stream(logprobs=1, return_token_ids=True)]
    assert [value for part in streamed for value in part["token_logprobs"]] == told["token_logprobs"]
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "logprobs": True, "ignore_eos": True}
    content = client.json("/v1/chat/completions", body)[1]["choices"][0]["logprobs"]["content"]
    assert [set(item) for item in content] == [{"token", "logprob", "bytes", "top_logprobs"}] * 2


def test_logprobs_of_the_tokens_that_nearly_were(client: Client) -> None:
    told = client.complete(logprobs=3)["choices"][0]["logprobs"]
    for chosen, value, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[chosen] == value == max(top.values())  # greedy
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "logprobs": True, "top_logprobs": 3}
    content = client.json("/v1/chat/completions", body)[1]["choices"][0]["logprobs"]["content"]
    assert all(len(item["top_logprobs"]) == 3 for item in content)


def test_several_prompts_and_several_choices(client: Client, expected: list[int]) -> None:
    prompts = [PROMPT, PROMPT[:3]]
    one = [client.complete(prompt=prompt, return_token_ids=True) for prompt in prompts]
    both = client.complete(prompt=prompts, n=2, return_token_ids=True)
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    wanted = [answer["choices"][0]["token_ids"] for answer in one]
    assert [choice["token_ids"] for choice in both["choices"]] == [wanted[0], wanted[0], wanted[1], wanted[1]]
    assert wanted[0] == expected
    assert both["usage"] == {"prompt_tokens": 8, "completion_tokens": 4 * COUNT, "total_tokens": 8 + 4 * COUNT}
    pieces: dict[int, str] = {}
    for chunk in client.stream(prompt=prompts, n=2):
        (choice,) = chunk["choices"]
        pieces[choice["index"]] = pieces.get(choice["index"], "") + choice["text"]
    assert [pieces[choice["index"]] for choice in both["choices"]] == [choice["text"] for choice in both["choices"]]


def test_choices_with_a_seed_differ_and_repeat(client: Client) -> None:
    first, again = (
        [choice["text"] for choice in client.complete(temperature=1.5, seed=1, n=3)["choices"]] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 3
    assert first[0] == client.complete(temperature=1.5, seed=1)["choices"][0]["text"]


def test_penalties_and_bias_change_the_answer(client: Client) -> None:
    def tokens(**more: Any) -> list[int]:
        return list(client.complete(return_token_ids=True, max_tokens=40, **more)["choices"][0]["token_ids"])

    plain = tokens()
    assert tokens(logit_bias={"77": 100}) == [77] * 40
    assert 77 not in tokens(logit_bias={str(token): -100 for token in set(plain)} | {"77": -100})
    assert len(set(tokens(frequency_penalty=2, presence_penalty=2))) > len(set(plain))


def test_the_official_client(client: Client) -> None:
    api = OpenAI(base_url=f"http://{LOCALHOST}:{client.rig.api}/v1", api_key="none", max_retries=0)
    with contextlib.closing(api):
        assert [model.id for model in api.models.list()] == ["tiny"]
        messages: Any = [{"role": "user", "content": "hi"}]
        whole = api.chat.completions.create(model="tiny", messages=messages, max_tokens=COUNT, temperature=0, n=2)
        stream = api.chat.completions.create(
            model="tiny", messages=messages, max_tokens=COUNT, temperature=0, stream=True,
            stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
        )  # fmt: skip
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert [choice.message.content for choice in whole.choices] == [text, text]
        assert chunks[-1].usage is not None
        assert api.completions.create(model="tiny", prompt="x", max_tokens=3, echo=False).choices[0].text is not None
        with pytest.raises(BadRequestError, match="top_p"):
            api.completions.create(model="tiny", prompt="x", top_p=7)
        with pytest.raises(NotFoundError):
            api.files.list()


def test_metrics(client: Client) -> None:
    def read() -> dict[str, float]:
        with client.ask("/metrics") as response:
            assert response.headers["content-type"].startswith("text/plain")
            return {
                f"{sample.name}{sorted(sample.labels.values())}": sample.value
                for family in text_string_to_metric_families(response.read().decode())
                for sample in family.samples
            }

    before = read()
    client.complete()
    client.error(prompt="x", temperature=9)
    gained = {name: value - before.get(name, 0) for name, value in read().items()}
    assert gained["edgesplit_requests_total['answered']"] == gained["edgesplit_requests_total['refused']"] == 1
    assert gained["edgesplit_tokens_total['answer']"] == COUNT
    assert gained["edgesplit_time_to_first_token_seconds_count[]"] == 1
    assert gained["edgesplit_time_per_token_seconds_count[]"] == COUNT - 1
    assert gained["edgesplit_stage_seconds_count['0', 'computed']"] == COUNT - 1
    assert gained["edgesplit_hop_seconds_count[]"] == 0  # a ring of one host
    assert before["edgesplit_serving[]"] == before["edgesplit_epoch[]"] == 1


def test_what_hops_take_beyond_computing_is_counted_by_size() -> None:
    meter = Meter(dict)
    meter.turned(0.1008, (Lap(100, 10, 50_000, 10), Lap(100, 10, 50_000, 10), Lap(50, 10, 0, 10)))
    told = meter.text().decode()
    assert 'edgesplit_hop_seconds_bucket{le="0.0003"} 0.0' in told
    assert 'edgesplit_hop_seconds_bucket{le="0.0005"} 1.0' in told


def test_a_seed_repeats(client: Client) -> None:
    texts = [client.complete(temperature=1.5, seed=seed)["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_models_and_health(client: Client) -> None:
    status, models = client.json("/v1/models")
    assert (status, [item["id"] for item in models["data"]]) == (200, ["tiny"])
    status, health = client.json("/healthz")
    assert (status, health["status"], health["serving"], health["running"]) == (200, "ok", True, 0)


# --- being told off ---


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 65}, "n"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "x" * 256}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "temperature": 3}, "temperature"),
        ({"prompt": "x", "presence_penalty": 3}, "presence_penalty"),
        ({"prompt": "x", "model": "other"}, "model"),
    ],
)
def test_a_wrong_completion_names_its_parameter(client: Client, body: dict[str, Any], param: str) -> None:
    error = client.error(**body)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize("messages", [None, [], "hi", [1], [{"role": "user"}], [{"content": "x"}]])
def test_a_wrong_chat_names_its_messages(client: Client, messages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    monkeypatch.setattr(client.rig.cores["desk"]._api.front.tokenizer, "chat_template", strict)  # type: ignore[union-attr]
    assert client.error("/v1/chat/completions", messages=messages)["param"] == "messages"


def test_without_a_template_there_is_no_chat(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.rig.cores["desk"]._api.front.tokenizer, "chat_template", None)  # type: ignore[union-attr]
    error = client.error("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
    assert "use /v1/completions" in error["message"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": "\\udcff"}', "surrogate"),
    ],
)
def test_a_body_must_be_a_json_object(client: Client, data: bytes, words: str) -> None:
    status, answer = client.json("/v1/completions", data)
    assert status == 400
    assert words in answer["error"]["message"]


def test_a_body_has_a_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_BODY", 1000)
    assert "more than 1000 bytes" in client.error(prompt="x" * 2000)["message"]


def test_a_full_queue_is_429_with_retry_after(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "WAITING", -2)  # there is room for two at once
    with client.ask("/v1/completions", {"prompt": "x"}) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "1"
        assert json.loads(response.read())["error"]["type"] == "rate_limit_error"


def test_no_token_for_long_is_a_504(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(api_module, "PATIENCE", 0.1)
        patch.setattr(api_module, "HEALTHY", 0.1)
        true = Stage.forward
        patch.setattr(Stage, "forward", lambda *words, **more: (gate.wait(10), true(*words, **more))[1])
        error = client.error(status=504, prompt="x")
        assert "no token for 0.1 s" in error["message"]
        status, health = client.json("/healthz")
        assert (status, health["status"]) == (503, "stuck")
        gate.set()
    eventually(lambda: not any(client.rig.sequences(1)))


def test_a_deadline_is_a_504_and_in_a_stream_an_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    api, true = client.rig.cores["desk"]._api, Stage.forward
    assert api is not None
    service = dataclasses.replace(api.front.service, deadline=1)
    with monkeypatch.context() as patch:
        patch.setattr(api, "front", dataclasses.replace(api.front, service=service))
        patch.setattr(Stage, "forward", lambda *words, **more: (time.sleep(0.05), true(*words, **more))[1])
        assert (
            "not done within 1 s" in client.error(status=504, prompt=PROMPT, max_tokens=200, ignore_eos=True)["message"]
        )
        body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
        with client.ask("/v1/completions", body) as response:
            last = response.read().decode().split("\n\n")[-2]
        assert "not done within 1 s" in json.loads(last.removeprefix("data: "))["error"]["message"]
    eventually(lambda: not any(client.rig.sequences(1)))


def test_logits_that_are_no_numbers_are_a_500(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def pick(*_: Any) -> int:
        return int(torch.multinomial(torch.tensor([float("nan")]), 1))

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "pick", pick)
        error = client.error(status=500, prompt=[5])
    assert error["type"] == "server_error"
    assert client.complete()


def test_a_client_that_goes_frees_the_caches(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Stage.forward
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "forward", lambda *words, **more: (time.sleep(0.02), true(*words, **more))[1])
        body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
        with client.ask("/v1/completions", body) as response:
            assert response.readline().startswith(b"data: ")
            assert client.rig.sequences(1) == [1]
        eventually(lambda: not any(client.rig.sequences(1)))
    assert client.rig.entry.report()["running"] == 0
