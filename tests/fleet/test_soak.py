"""Clients that come and go at random while epochs change: no wrong token, no request left behind, no memory lost.

A minute in CI; EDGESPLIT_SOAK=1200 makes it twenty (`make soak`).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from deployments import Deployment, deployment, unsplit
from links import eventually

from edgesplit.broadcast.remote import status
from edgesplit.plan import Workload

SECONDS = float(os.environ.get("EDGESPLIT_SOAK", "60"))
CHANGE = 30.0 if SECONDS > 300 else 8.0  # seconds between two changes of epoch
CLIENTS = 8
COUNT = 48
CLEAR = 1e-3  # between the best and the second best logit: rounding in a batch must not decide
PLACEMENTS = (
    ("desk", "desk", "shelf", "shelf", "attic", "desk"),
    ("desk", "shelf", "shelf", "attic", "attic", "desk"),
    ("desk", "attic", "desk", "shelf", "shelf", "desk"),
    ("desk", "attic", "attic", "shelf", "shelf", "desk"),
)
MEMORY = 1.1  # times what a runner held once it had met every placement

Answers = dict[tuple[int, ...], list[int]]


def answers(model: Path) -> Answers:
    """What the unsplit model says to prompts whose answers are clear."""
    found: Answers = {}
    dice = random.Random(5)  # noqa: S311 - not for secrets
    while len(found) < 12:
        prompt = [dice.randrange(2, 258) for _ in range(dice.choice([3, 9, 20, 41]))]
        tokens, logits = unsplit(model, prompt, COUNT)
        best = logits[len(prompt) - 1 : -1].topk(2).values
        if float((best[:, 0] - best[:, 1]).min()) > CLEAR:
            found[tuple(prompt)] = tokens
    return found


class Client(threading.Thread):
    def __init__(self, ring: Deployment, known: Answers, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._ring, self._known, self._stop_it = ring, known, stop
        self._dice = random.Random(seed)  # noqa: S311
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self._stop_it.is_set():
            prompt = self._dice.choice(list(self._known))
            count = self._dice.randrange(1, COUNT + 1)
            act = self._dice.choice(["stream", "whole", "leave"])
            try:
                tokens = self._ask(prompt, count, act)
            except Exception as error:  # noqa: BLE001 - it is told below, with what was asked
                self.wrong.append(f"{act} {len(prompt)} {count}: {error!r}")
                continue
            if tokens != self._known[prompt][: len(tokens)] or (act != "leave" and len(tokens) != count):
                self.wrong.append(f"{act} {len(prompt)} {count}: {tokens}")
            self.did[act] += 1

    def _ask(self, prompt: tuple[int, ...], count: int, act: str) -> list[int]:
        if act == "whole":
            return list(self._ring.complete(list(prompt), count)["token_ids"])
        leave, tokens = self._dice.randrange(COUNT), []
        for seen, choice in enumerate(self._ring.stream(list(prompt), count)):
            if act == "leave" and seen == leave:
                return []
            tokens = choice.get("token_ids", [])
        return list(tokens)


def memory(ring: Deployment) -> dict[str, int]:
    return {host: int(report["rss"]) for host, report in reports(ring).items()}


def reports(ring: Deployment) -> dict[str, dict[str, object]]:
    cargo = ring.cargo
    return {
        name: status(host, cargo.inventory.hosts[name], cargo.folder(name), cargo.archive.name)
        for name, host in ring.hosts.items()
    }


@pytest.mark.fleet
@pytest.mark.timeout(int(SECONDS) + 240)
def test_clients_come_and_go_while_epochs_change(tmp_path: Path) -> None:
    workload = Workload(prompt_tokens=16, new_tokens=16, max_context=256, concurrency=CLIENTS)
    with deployment(tmp_path, workload=workload) as ring:
        known, stop = answers(Path(ring.plan.model.source)), threading.Event()
        ring.push(*PLACEMENTS[0])
        clients = [Client(ring, known, seed, stop) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        for placement in PLACEMENTS[1:]:
            ring.push(*placement)
        warm, end, turn = memory(ring), time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            ring.push(*PLACEMENTS[turn % len(PLACEMENTS)])
            turn += 1
            time.sleep(max(0.0, min(CHANGE, end - time.monotonic())))
        ring.push(*PLACEMENTS[0])
        stop.set()
        for client in clients:
            client.join(60)
        assert not any(client.is_alive() for client in clients)
        assert [wrong for client in clients for wrong in client.wrong] == []
        assert all(client.did.keys() == {"stream", "whole", "leave"} for client in clients)
        eventually(
            lambda: (
                not any(epoch["sequences"] for report in reports(ring).values() for epoch in report["epochs"].values())
            )
        )
        grown = {host: held / warm[host] for host, held in memory(ring).items()}
        assert max(grown.values()) < MEMORY, grown
