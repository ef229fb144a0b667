"""Rings of true runners in one process, over TLS: the whole model's tokens, whatever happens to the ring."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOCALHOST
from links import changing, eventually, manifest, no_thread_left
from models import make_checkpoint
from rings import Answer, Cargo, Rig, ship
from transformers import AutoModelForCausalLM, Mamba2Config

from edgesplit.runner import core as core_module
from edgesplit.runner import entry
from edgesplit.runner import worker as worker_module
from edgesplit.runner.api import Api, Front
from edgesplit.runner.catchup import CLOSE
from edgesplit.runner.core import CoreError
from edgesplit.runner.entry import Entry, Overloaded, Request
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.link import LinkError
from edgesplit.runner.manifest import StagePlace
from edgesplit.runner.ring import Ring
from edgesplit.runner.sampling import Sampler, Sampling
from edgesplit.runner.scheduler import Turn, Work
from edgesplit.runner.stage import Stage
from edgesplit.runner.store import StoreError
from edgesplit.runner.wire import Kind, Message, Row
from edgesplit.runner.worker import Worker

TWO = ("desk", "desk", "shelf", "shelf", "desk", "desk")
OTHER = ("desk", "shelf", "shelf", "shelf", "shelf", "desk")
PROMPT = [40, 7, 99, 140, 23, 200, 81, 17, 64, 5]
COUNT = 16
SEEDED = Sampling(temperature=1.0, top_k=50, seed=11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ring") / "model", "llama")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    """The unsplit model's greedy answer."""
    whole, ids = AutoModelForCausalLM.from_pretrained(model).eval(), torch.tensor([PROMPT])
    mask = torch.ones_like(ids)
    answer = whole.generate(ids, attention_mask=mask, max_new_tokens=COUNT, do_sample=False, eos_token_id=None)
    return answer[0, len(PROMPT) :].tolist()


@pytest.fixture(scope="module")
def cargo(model: Path) -> Cargo:
    return ship(model, model.parent)


class NoApi:
    """In place of the HTTP server, which test_api.py is about."""

    def __init__(self, front: Front, *_: object) -> None:
        self.front, self.place = front, (front.service.address, front.service.port)
        self.open = self.close = lambda: None


@pytest.fixture(scope="module")
def load() -> Callable[..., Stage]:
    """Stage.load, once per range: all folders here hold the same checkpoint."""
    true, loaded = Stage.load, {}

    def once(folder: Path, *part: Any, **more: Any) -> Stage:
        if part not in loaded:
            loaded[part] = true(folder, *part, **more)
        return loaded[part]

    return once


@pytest.fixture
def rig(tmp_path: Path, cargo: Cargo, load: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(core_module, "Api", NoApi)
    monkeypatch.setattr(Stage, "load", load)
    with no_thread_left():
        made = Rig(tmp_path, cargo, "desk", "shelf")
        yield made
        made.close()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> int:
    """The port of the true HTTP server."""
    monkeypatch.setattr(core_module, "Api", Api)
    return rig.api


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards take 3 ms, so that something can happen in mid-answer."""
    true = Stage.forward

    def forward(self: Stage, *arguments: Any, **more: Any) -> Any:
        time.sleep(0.003)
        return true(self, *arguments, **more)

    monkeypatch.setattr(Stage, "forward", forward)


def under_way(answer: Answer, count: int = 5) -> None:
    eventually(lambda: len(answer.tokens) >= count)
    assert answer.end is None


def pull_the_plug(rig: Rig, epoch: int) -> None:
    """The shelf's ring breaks; the desk hears of it."""
    rig.cores["shelf"]._rings[epoch].fault("shelf", "the plug was pulled")
    eventually(lambda: rig.state("desk", epoch) == "broken" == rig.state("shelf", epoch))


# --- exactness ---


@pytest.mark.parametrize("placement", [TWO, OTHER, ("desk",) * 6, ("desk", "shelf", "desk", "shelf", "desk", "desk")])
def test_a_ring_gives_the_whole_models_tokens(rig: Rig, expected: list[int], placement: tuple[str, ...]) -> None:
    rig.up(1, *placement)
    answers = [rig.submit(PROMPT, COUNT) for _ in range(3)]  # one more than the concurrency
    assert [answer.whole() for answer in answers] == [expected] * 3
    assert answers[0].end == "length"
    eventually(lambda: not any(rig.sequences(1)))


@pytest.mark.usefixtures("slow")
def test_sequences_of_all_lengths_share_their_steps(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers as it does alone, whoever joins, ends or is cancelled beside it."""
    rig.up(1, *TWO, concurrency=6)
    prompts = [PROMPT[: 3 + 2 * number] for number in range(4)]
    alone = [rig.submit(prompt, COUNT + number).whole() for number, prompt in enumerate(prompts)]
    sizes: list[int] = []
    true = Stage.forward

    def forward(self: Stage, group: Any, *arguments: Any, **more: Any) -> Any:
        sizes.append(len(group))
        return true(self, group, *arguments, **more)

    monkeypatch.setattr(Stage, "forward", forward)
    gone = [rig.submit(PROMPT, 200) for _ in range(2)]
    answers = [rig.submit(prompt, COUNT + number) for number, prompt in enumerate(prompts)]
    under_way(answers[-1], 3)
    for answer in gone:
        rig.in_worker(lambda answer=answer: rig.entry.cancel(answer.number))
    assert [answer.whole() for answer in answers] == alone
    assert max(sizes) == 3  # six sequences, two hosts
    eventually(lambda: not any(rig.sequences(1)))
    turn = rig.entry.report()["turn"]
    parts = sum(sum(stage.values()) for stage in turn["stages"]) + turn["wire_s"]
    assert len(turn["stages"]) == 3
    assert 0 < turn["hop"]["median_s"] <= turn["hop"]["p99_s"] < 1
    assert 0.5 < parts / turn["whole_s"] < 2  # medians of parts need not add up to the median of their sum


def test_each_alone_where_the_plan_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()
    true = Stage.forward
    monkeypatch.setattr(
        Stage, "forward", lambda self, group, *rest, **more: sizes.add(len(group)) or true(self, group, *rest, **more)
    )
    rig.up(1, *TWO, concurrency=6, decode_batch=1)
    for answer in [rig.submit(PROMPT, COUNT) for _ in range(6)]:
        answer.whole()
    assert sizes == {1}


@pytest.mark.usefixtures("slow")
def test_an_answer_goes_on_after_a_fault_with_the_next_epoch(rig: Rig, expected: list[int]) -> None:
    rig.up(1, *TWO)
    answer = rig.submit(PROMPT, COUNT)
    under_way(answer)
    pull_the_plug(rig, 1)
    assert "the plug was pulled" in rig.cores["desk"].status()["epochs"]["1"]["reason"]
    came = len(answer.tokens)
    assert came < COUNT
    rig.up(2, *OTHER)
    assert answer.whole() == expected
    assert list(rig.cores["desk"].status()["epochs"]) == ["2"]


@pytest.mark.usefixtures("slow")
def test_an_answer_goes_on_through_a_planned_change(rig: Rig, expected: list[int]) -> None:
    rig.up(1, *TWO)
    answer = rig.submit(PROMPT, COUNT)
    under_way(answer)
    rig.up(2, *OTHER)
    assert answer.whole() == expected


@pytest.mark.usefixtures("slow")
def test_before_a_planned_change_the_next_ring_has_read_what_there_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the change costs an answer a few tokens in one piece, not the whole of it again."""
    alone = rig_alone(rig, long := PROMPT * 4)
    read: list[tuple[int, str, int]] = []
    true = Ring.read

    def spied(self: Ring, sequence: int, tokens: list[int], begin: int = 0, size: int | None = None) -> None:
        read.append((self.epoch, self.state.value, len(tokens) - begin))
        true(self, sequence, tokens, begin, size)

    answers = [rig.submit(long, 60) for _ in range(2)]
    under_way(answers[-1])
    monkeypatch.setattr(Ring, "read", spied)
    rig.up(2, *OTHER)
    assert not any(answer.end for answer in answers)  # they went on meanwhile
    assert [answer.whole() for answer in answers] == [alone] * 2
    before = [count for epoch, state, count in read if (epoch, state) == (2, "linked") and count > 2]
    after = [count for epoch, state, count in read if (epoch, state) == (2, "serving")]
    assert min(before[:2]) >= len(long) + 4
    assert len(after) == 2
    assert max(after) <= 2 * CLOSE


def rig_alone(rig: Rig, prompt: list[int]) -> list[int]:
    rig.up(1, *TWO)
    return rig.submit(prompt, 60).whole()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("when", ["cancelled", "broken", "late"])
def test_a_planned_change_while_things_happen(rig: Rig, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    alone = rig_alone(rig, PROMPT)
    answers = [rig.submit(PROMPT, 60) for _ in range(2)]
    under_way(answers[-1])
    true = Entry.prepare

    def prepare(self: Entry, ring: Ring) -> Any:
        done = true(self, ring)
        if when == "cancelled":
            self.cancel(answers[0].number)
        elif when == "broken":
            ring.fault("shelf", "the plug was pulled")
        return done

    monkeypatch.setattr(Entry, "prepare", prepare)
    if when == "late":
        monkeypatch.setattr(core_module, "CATCH_UP", 0.001)
    if when == "broken":
        with pytest.raises(CoreError, match="the plug was pulled"):
            rig.up(2, *OTHER)
        for core in rig.cores.values():
            core.retire(2)
    else:
        rig.up(2, *OTHER)
    assert answers[1].whole() == alone
    eventually(lambda: not any(rig.sequences(1 if when == "broken" else 2)))


@pytest.mark.usefixtures("slow")
def test_a_seeded_answer_is_the_same_with_and_without_a_replay(rig: Rig) -> None:
    rig.up(1, *TWO)
    undisturbed = rig.submit(PROMPT, COUNT, SEEDED).whole()
    answer = rig.submit(PROMPT, COUNT, SEEDED)
    under_way(answer)
    pull_the_plug(rig, 1)
    rig.up(2, *TWO)
    assert answer.whole() == undisturbed
    assert len(set(undisturbed)) > 5


@pytest.mark.usefixtures("slow")
def test_a_bit_changed_on_the_way_breaks_the_ring_and_no_answer(rig: Rig, expected: list[int]) -> None:
    with changing(rig.ports["shelf"]) as (port, change):
        rig.up(1, *TWO, astray={"shelf": port})
        answer = rig.submit(PROMPT, COUNT)
        under_way(answer)
        change.set()
        eventually(lambda: rig.state("shelf", 1) == rig.state("desk", 1) == "broken")
    told = rig.cores["shelf"].status()["epochs"]["1"]["reason"].lower()
    assert told.startswith("desk: ")
    assert "record mac" in told.replace("_", " ")
    rig.up(2, *TWO)
    assert answer.whole() == expected


def test_requests_wait_while_the_ring_is_broken(rig: Rig, expected: list[int]) -> None:
    rig.up(1, *TWO)
    pull_the_plug(rig, 1)
    answers = [rig.submit(PROMPT, COUNT) for _ in range(3)]
    report = rig.entry.report()
    assert (report["serving"], report["running"], report["waiting"]) == (False, 0, 3)
    rig.up(2, *TWO)
    assert [answer.whole() for answer in answers] == [expected] * 3


# --- requests that end early, or never begin ---


@pytest.mark.usefixtures("slow")
def test_a_cancelled_request_leaves_no_cache_anywhere(rig: Rig) -> None:
    rig.up(1, *TWO)
    answer = rig.submit(PROMPT, 200)
    under_way(answer)
    assert rig.sequences(1) == [1, 1]
    rig.in_worker(lambda: rig.entry.cancel(answer.number))
    eventually(lambda: rig.sequences(1) == [0, 0])
    assert rig.entry.report()["running"] == 0


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("chunks", [0, 5])
def test_a_prompt_cancelled_half_way_round_does_not_break_the_ring(rig: Rig, expected: list[int], chunks: int) -> None:
    """The desk holds the first and the last stage: pieces are on their way to the last when the first forgets."""
    rig.up(1, *TWO)
    answer = rig.submit(PROMPT * 8, 10)
    eventually(lambda: rig.cores["desk"].status()["epochs"]["1"]["stages"]["2"]["prefill_total_s"] >= chunks * 0.003)
    rig.in_worker(lambda: rig.entry.cancel(answer.number))
    assert rig.submit(PROMPT, COUNT).whole() == expected
    eventually(lambda: rig.sequences(1) == [0, 0])
    assert rig.state("desk", 1) == rig.state("shelf", 1) == "serving"
    assert answer.tokens == []


def test_one_too_many_is_told_to_come_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "WAITING", 3)
    rig.prepare(rig.cores["desk"], rig.manifest(1, *TWO))
    answers = [rig.submit(PROMPT, 5) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests are waiting already"):
        rig.submit(PROMPT, 5)
    rig.in_worker(lambda: rig.entry.cancel(answers[0].number))
    rig.submit(PROMPT, 5)


def test_an_answer_ends_at_a_stop_token_which_is_not_given_out(rig: Rig, expected: list[int]) -> None:
    rig.up(1, *TWO)
    answer = Answer()
    place = next(place for place in range(3, COUNT) if expected[place] not in expected[:place])
    request = Request(tuple(PROMPT), COUNT, Sampling(), frozenset({expected[place]}), answer.emit)
    rig.in_worker(lambda: rig.entry.submit(request))
    assert answer.whole() == expected[:place]
    assert answer.end == "stop"


def test_logits_that_are_no_numbers_end_one_request_only(
    rig: Rig, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.up(1, *TWO)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "pick", lambda *_: torch.multinomial(torch.tensor([float("nan")]), 1))
        answer = rig.submit(PROMPT, 5)
        assert answer.whole() == []
        assert answer.end == "error"
    assert rig.submit(PROMPT, COUNT).whole() == expected


# --- commands ---


def test_a_forward_that_raises_breaks_the_ring_everywhere_and_says_why(
    rig: Rig, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.up(1, *TWO)
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no more")))
        answer = rig.submit(PROMPT, COUNT)
        eventually(lambda: rig.state("shelf", 1) == "broken")
    assert "stage 0 failed: MemoryError('no more')" in rig.cores["shelf"].status()["epochs"]["1"]["reason"]
    rig.up(2, *TWO)
    assert answer.whole() == expected


def test_a_failed_prepare_leaves_nothing_behind(rig: Rig, api: int) -> None:
    desk, wanted = rig.cores["desk"], rig.manifest(1, *TWO)
    broken = dataclasses.replace(wanted, shards=(*wanted.shards[:-1], "0" * 64))
    with pytest.raises(StoreError, match="shard 000000000000 is not on this host"):
        rig.prepare(desk, broken)
    assert desk.status()["epochs"] == {}
    assert list((desk.store.folder / "stages").iterdir()) == []
    socket.create_server((LOCALHOST, api)).close()  # is free
    rig.up(1, *TWO)


def test_a_failed_prepare_beside_a_serving_epoch_leaves_that_alone(rig: Rig, api: int, expected: list[int]) -> None:
    rig.up(1, *TWO)
    wanted = rig.manifest(2, *OTHER)
    with pytest.raises(StoreError):
        rig.prepare(rig.cores["desk"], dataclasses.replace(wanted, files={**wanted.files, "more.json": "0" * 64}))
    assert rig.submit(PROMPT, COUNT).whole() == expected
    with socket.create_connection((LOCALHOST, api), timeout=5):
        pass


def test_an_api_port_that_is_taken_is_told(rig: Rig, api: int) -> None:
    words = f"API port {api} cannot be used"
    with socket.create_server((LOCALHOST, api)), pytest.raises(CoreError, match=words):
        rig.prepare(rig.cores["desk"], rig.manifest(1, *TWO))
    rig.prepare(rig.cores["desk"], rig.manifest(1, *TWO))


def test_a_data_port_that_is_taken_is_told(rig: Rig) -> None:
    port = rig.ports["shelf"]
    with socket.create_server(("", port)), pytest.raises(CoreError, match=f"data port {port} cannot be used"):
        rig.prepare(rig.cores["shelf"], rig.manifest(1, *TWO))


def test_commands_out_of_order_are_told_and_change_nothing(rig: Rig) -> None:
    desk, wanted = rig.cores["desk"], rig.manifest(1, *TWO)
    for command in (lambda: desk.link(1, 1.0), lambda: desk.trial(1, 1.0), lambda: desk.commit(1, "")):
        with pytest.raises(CoreError, match="epoch 1 was not prepared here"):
            command()
    assert desk.retire(1) == {}
    rig.prepare(desk, wanted)
    with pytest.raises(CoreError, match="epoch 1 is here already"):
        rig.prepare(desk, wanted)
    with pytest.raises(CoreError, match="shelf has no part in epoch 2"):
        rig.prepare(rig.cores["shelf"], rig.manifest(2, *["desk"] * 6))
    with pytest.raises(CoreError, match="epoch 1 is ready"):
        desk.trial(1, 5.0)
    with pytest.raises(CoreError, match="epoch 1 cannot serve, it is ready"):
        desk.commit(1, "")
    assert desk.store.read("manifest.json") == ""
    with pytest.raises(LinkError):
        desk.link(1, 0.0)
    rig.prepare(rig.cores["shelf"], wanted)
    desk.link(1, 5.0)
    with pytest.raises(CoreError, match="that is linked cannot link"):
        desk.link(1, 5.0)


def test_a_trial_of_a_broken_ring_fails_at_once_and_says_why(rig: Rig) -> None:
    for core in rig.cores.values():
        rig.prepare(core, rig.manifest(1, *TWO))
    for core in rig.cores.values():
        core.link(1, 5.0)
    pull_the_plug(rig, 1)
    start = time.monotonic()
    with pytest.raises(CoreError, match="epoch 1 is broken shelf: the plug was pulled"):
        rig.cores["desk"].trial(1, 30.0)
    assert time.monotonic() - start < 5


def test_a_trial_without_an_answer_gives_up(rig: Rig) -> None:
    for core in rig.cores.values():
        rig.prepare(core, rig.manifest(1, *TWO))
    rig.cores["desk"].link(1, 5.0)  # the shelf has not linked: it sends nothing back
    with pytest.raises(CoreError, match=r"the ring of epoch 1 gave no token within 0.1 s"):
        rig.cores["desk"].trial(1, 0.1)


def test_an_epoch_takes_over_the_stages_it_shares_with_the_one_before(rig: Rig, expected: list[int]) -> None:
    rig.up(1, *TWO)
    before = rig.cores["shelf"]._rings[1].stages[1]
    rig.up(2, *TWO)
    assert rig.cores["shelf"]._rings[2].stages[1] is before
    assert rig.submit(PROMPT, COUNT).whole() == expected


def test_committing_exchanges_what_the_api_offers(rig: Rig) -> None:
    rig.up(1, *TWO)
    api = rig.cores["desk"]._api
    assert api is not None
    rig.prepare(rig.cores["desk"], rig.manifest(2, *OTHER, max_context=64))
    assert api.front.service.max_context == 256
    rig.cores["desk"].retire(2)
    rig.up(3, *OTHER, max_context=64)
    assert rig.cores["desk"]._api is api
    assert api.front.service.max_context == 64


def test_who_may_call(rig: Rig) -> None:
    desk = rig.cores["desk"]
    rig.prepare(desk, rig.manifest(1, *TWO))

    def admit(epoch: int, source: str, fingerprint: str) -> object:
        return desk._admit(Message(Kind.HELLO, epoch, text={"source": source}), fingerprint)

    shelf = rig.peer("shelf", 1).fingerprint
    assert isinstance(admit(1, "shelf", shelf), Ring)
    assert admit(2, "shelf", shelf) == "epoch 2 is not prepared on desk"
    assert admit(1, "attic", shelf) == "attic is not a ring neighbour of desk in epoch 1"
    assert admit(1, "shelf", rig.peer("desk", 1).fingerprint) == "the certificate is not shelf's"


def test_status_does_not_wait_for_the_forward_under_way(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.up(1, *TWO)
    gate = threading.Event()
    monkeypatch.setattr(Stage, "forward", lambda *_, **__: gate.wait(10))
    rig.submit(PROMPT, 5)
    start = time.monotonic()
    status = rig.cores["desk"].status()
    assert time.monotonic() - start < 1
    assert status["serving"] == 1
    assert status["entry"]["running"] == 1
    gate.set()


def test_a_forward_that_never_ends_is_told_by_the_runner_itself(
    rig: Rig, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other threads live, so its neighbours would never miss it."""
    rig.up(1, *TWO)
    gate, true = threading.Event(), Stage.forward
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "STALL", 0.2)
        patch.setattr(Stage, "forward", lambda self, *rest, **more: gate.wait(20) and true(self, *rest, **more))
        answer = rig.submit(PROMPT, COUNT)
        eventually(lambda: rig.state("shelf", 1) == "broken")
        assert "desk: a forward has taken 1 s so far" in rig.cores["shelf"].status()["epochs"]["1"]["reason"]
        gate.set()
    eventually(lambda: rig.state("desk", 1) == "broken")
    rig.up(2, *TWO)
    assert answer.whole() == expected


def test_closing_does_not_wait_for_a_forward_that_hangs(
    tmp_path: Path, cargo: Cargo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_module, "FAREWELL", 0.1)
    gate = threading.Event()
    with no_thread_left():
        rig = Rig(tmp_path, cargo, "desk")
        rig.up(1, *["desk"] * 6)
        with monkeypatch.context() as patch:
            patch.setattr(Stage, "forward", lambda *_, **__: gate.wait(10))
            rig.submit(PROMPT, 5)
            start = time.monotonic()
            rig.close()
            assert time.monotonic() - start < 3
            gate.set()


# --- parts ---


def test_a_stopped_worker_answers_no_call() -> None:
    worker = Worker(lambda _: None)
    first = worker.call(lambda: 1)
    worker.stop()
    for future in (first, worker.call(lambda: 2)):
        with pytest.raises(CancelledError):
            future.result(0)


def test_a_call_that_was_given_up_is_not_made() -> None:
    worker, made = Worker(lambda _: None), []
    worker.call(lambda: made.append(1)).cancel()
    worker.start()
    worker.call(lambda: made.append(2)).result(5)
    worker.stop()
    worker.join(5)
    assert made == [2]


def test_prompts_travel_whole_where_a_family_forgets_between_chunks() -> None:
    config = Mamba2Config(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_heads=2, head_dim=8, n_groups=1)
    wanted = manifest()
    ring = Ring(wanted, "shelf", {1: Stage.random(config, 1, 1, "float32")}, Worker(lambda _: None))
    assert ring.chunk == wanted.service.max_context == 256
    assert ring.limit == 64 * wanted.limit
    assert Ring(wanted, "shelf", {}, Worker(lambda _: None)).chunk == 4


def test_work_of_another_epoch_and_for_another_place_is_no_work() -> None:
    done: list[Work[object]] = []
    worker = Worker(done.append)
    ring = Ring(manifest(stages=(StagePlace("desk", 0, 5),)), "desk", {}, worker)
    ring.receive("shelf", Message(Kind.WORK, 9, rows=(Row(1, 0),)))
    assert worker.queued == 0
    ring.run(
        Work(1, 0, (Turn(1, 0, 0),), prefill=True, sample=False, payload=Hidden(()))
    )  # not linked yet: nothing happens
    assert ring.report()["sequences"] == 0


def test_a_dropped_sequence_keeps_its_work_in_the_other_stages_of_the_host() -> None:
    """Until the drop has gone round: work that is still on its way would find a cache at the wrong position."""
    worker = Worker(lambda _: None)
    ring = Ring(manifest(), "desk", {}, worker)
    for stage in (0, 3):
        worker.add(Work(1, stage, (Turn(7, 0, 0),), prefill=True, sample=False, payload=None))
    ring.drop(0, 7)
    assert worker.queued == 1
    ring.drop(3, 7)
    assert worker.queued == 0


def test_beats_are_remembered() -> None:
    ring = Ring(manifest(), "desk", {}, Worker(lambda _: None))
    ring.receive("shelf", Message(Kind.BEAT, 1, text={"done": 3, "queued": 1}))
    heard = ring.report()["heard"]["shelf"]
    assert (heard["done"], heard["queued"]) == (3, 1)
    assert 0 <= heard["ago_s"] < 5
