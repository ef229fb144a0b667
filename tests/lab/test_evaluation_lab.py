"""What an evaluation does on a lab: events at their times, looks from outside, clients in the entry's network; and a
lab that goes with the process that brought it up, though that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from labs import LabFactory, lab, left_of, make_scenario, need_lab, on, start_words

from edgesplit.evaluation.acts import Acts
from edgesplit.evaluation.clients import Task
from edgesplit.evaluation.demand import Ask
from edgesplit.evaluation.looks import Looks
from edgesplit.evaluation.record import Answer
from edgesplit.evaluation.scenario import Happening

__all__ = ["lab"]  # the fixture
pytestmark = [pytest.mark.fleet, pytest.mark.ssh]

API = """
import http.server, json
class Api(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["prompt"] == [9]:
            return self.send_error(429)
        self.send_response(200); self.end_headers()
        for number in range(asked["max_tokens"]):
            last = number == asked["max_tokens"] - 1
            choice = {"finish_reason": "length" if last else None, "token_ids": [5] * asked["max_tokens"]}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
        self.wfile.write(b"data: [DONE]\\n\\n")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Api).serve_forever()
"""


def test_events_looks_and_clients(lab: LabFactory) -> None:
    fleet = lab(hosts={"a": {"memory": "256MiB", "inventory": {"trusted": True}}, "b": {"memory": "128MiB"}})
    folder = Path(fleet.layout.host_folder("b"), "work", "p", "stages", "1-0")
    folder.mkdir(parents=True)
    (folder / f"{'0' * 64}.sealed").write_text("")
    Path(fleet.layout.host_folder("a"), "work", "p").mkdir(parents=True)
    signed = {"payload": json.dumps({"manifest": {"shards": ["1" * 64, "0" * 64]}})}
    Path(fleet.layout.host_folder("a"), "work", "p", "manifest.json").write_text(json.dumps(signed))
    with subprocess.Popen(start_words(fleet, "a", f"exec {sys.executable} -c '{API}'")) as api:
        on(fleet, "a", "until echo > /dev/tcp/127.0.0.1/8099; do sleep 0.1; done 2>/dev/null")
        start = time.monotonic() + 1.0
        task = Task(
            network=str(fleet.layout.hosts["a"].network), address="127.0.0.1", port=8099, start=start, seconds=2.0,
            patience=5.0, prompts=((7, 8), (9,)),
            asks=(Ask(at=0.1, prompt=0, wanted=3), Ask(at=0.2, prompt=1, wanted=3)),
        )  # fmt: skip
        words = [sys.executable, "-m", "edgesplit.evaluation.clients"]
        events = (Happening(at=0.2, do=("host b cores 0.5", "link a b delay 7ms")), Happening(at=0.6, do="kill b"))
        acts, over = Acts(fleet, events, start, lambda: None), threading.Event()
        looks = Looks(fleet, "p", "a", start)
        looks.look()
        looks.look()
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
            acts.run(over)
            told, _ = clients.communicate(task.model_dump_json() + "\n", timeout=30)
        api.kill()
    assert clients.returncode == 0
    answers = (Answer.model_validate_json(line) for line in told.splitlines())  # as they ended
    good, refused = sorted(answers, key=lambda answer: answer.prompt)
    assert (good.whole, good.tokens, len(good.times)) == (True, (5, 5, 5), 3)
    assert refused.outcome == "refused with 429"
    assert [change.text for change in acts.changes] == ["host b cores 0.5", "link a b delay 7ms", "kill b"]
    assert acts.changes[-1].at == pytest.approx(0.6, abs=0.3)
    assert acts.trouble == []
    found = fleet.status()
    assert (found.hosts["b"].state, found.hosts["b"].cores) == ("off", 0.5)
    assert {lane.delay for lane in found.links if {lane.source, lane.target} == {"a", "b"}} == {0.007}
    assert looks.looks[0].loaded["b"] == (1,)
    looks.look()
    assert "b" not in looks.looks[-1].loaded  # it is off


def test_a_lab_goes_with_the_evaluation_that_is_killed(tmp_path: Path) -> None:
    need_lab()
    name = f"t{os.getpid()}gone"
    file = tmp_path / "lab.json"
    file.write_text(make_scenario(name, hosts=["a"]).model_dump_json(exclude_unset=True))
    code = (
        "import sys, time; from edgesplit.evaluation.processes import warden; from edgesplit.lab.lab import Lab;"
        "from edgesplit.lab.scenario import Scenario\n"
        f"with warden({name!r}):\n    Lab.up(Scenario.model_validate_json(open({str(file)!r}).read()))\n"
        "    print('up', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left_of(name) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_of(name) == []
