"""The whole job with the real command line, over real sshds with key login and a known host key; and the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from conftest import Sshd, SshdFarm, SshKeys, free_port
from models import make_checkpoint
from openai import AuthenticationError, OpenAI
from profiles import NAMES

from edgesplit.broadcast.authority import Secrets, shard_key
from edgesplit.broadcast.remote import api_key
from edgesplit.hosts.fanout import connect
from edgesplit.inventory import load_inventory

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
EDGESPLIT = str(Path(sys.executable).parent / "edgesplit")


def write_files(folder: Path, servers: dict[str, Sshd]) -> Path:
    """A plan and an inventory as a user would write them; no host may hold the model alone."""
    make_checkpoint(folder / "model", "qwen2", 6)
    hosts = {
        name: {
            "ssh": {
                "host": server.host,
                "port": server.port,
                "user": server.user,
                "key": str(server.key),
                "known_hosts": str(server.known_hosts),
            },
            "trusted": name == "desk",
            "data": {"address": "127.0.0.1", "port": free_port()},
            "work": str(folder / "work" / name),
        }
        for name, server in servers.items()
    }
    defaults = {"python": sys.executable, "cores": 1, "memory": "330KiB"}
    (folder / "hosts.yaml").write_text(yaml.safe_dump({"defaults": defaults, "hosts": hosts}))
    plan = {
        "name": "job",
        "inventory": "hosts.yaml",
        "model": "model",
        "entry": "desk",
        "api": {"port": free_port()},
        "workload": {"prompt_tokens": 16, "new_tokens": 16, "max_context": 128, "concurrency": 2},
        "prefill_chunk": 8,
        "pins": [{"blocks": ["layers.0"], "to": "trusted"}],
        "watch": {"min_gain": 1.0, "standby": 0},  # whatever else this machine does, nothing moves
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


SAID: list[str] = []  # all that the verbs have printed, but new keys


def edgesplit(*words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [EDGESPLIT, *map(str, words)], capture_output=True, text=True, timeout=240, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == status, done.stdout + done.stderr
    SAID.append(done.stderr if words[:2] == ("keys", "add") else done.stdout + done.stderr)
    return done


@contextmanager
def overlooked() -> Iterator[set[bytes]]:
    """The words of all processes of this machine, as any user sees them in a list of processes."""
    seen, over = set[bytes](), threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(file.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.ssh
def test_profile_plan_deploy_generate_status_down_over_ssh(tmp_path: Path, sshd: SshdFarm) -> None:
    with overlooked() as processes:
        the_whole_job(tmp_path, write_files(tmp_path, {name: sshd() for name in NAMES}), processes)


def the_whole_job(tmp_path: Path, plan: Path, processes: set[bytes]) -> None:
    assert sorted(json.loads(edgesplit("check", plan, "--json").stdout)) == sorted(NAMES)
    profile = json.loads(edgesplit("profile", plan, "--json").stdout)
    assert sorted(profile["hosts"]) == sorted(NAMES)
    assert {target for row in profile["links"].values() for target in row} == set(NAMES)

    solution = json.loads(edgesplit("plan", plan, "--json").stdout)
    stages = solution["split"]["stages"]
    assert solution["status"] == "Optimal"
    assert stages[0]["host"] == stages[-1]["host"] == "desk"
    assert stages[0]["last"] >= 1  # layers.0 is pinned to the only trusted host
    assert len({stage["host"] for stage in stages}) > 1

    try:
        deployed = json.loads(edgesplit("deploy", plan, "--yes", "--json").stdout)
        assert deployed["changed"]
        checked = json.loads(edgesplit("generate", plan, "Hello there", "-n", "12", "--check", "--json").stdout)
        assert checked["equal_to_unsplit"]
        status = json.loads(edgesplit("status", plan, "--json").stdout)
        assert status["serving"]
        assert all(stage["state"] == "serving" for stage in status["stages"])
        keys = ask_with_keys(plan)
        assert json.loads(edgesplit("rotate", plan, "--yes", "--json").stdout)["epoch"] == 2
        assert "no split to go back to" in edgesplit("rollback", plan, "--yes", status=7).stderr
        one_watches(plan, tmp_path / "elsewhere")
        again = edgesplit("deploy", plan, "--yes", "--json")
        assert not json.loads(again.stdout)["changed"]
        assert "nothing to do" in again.stderr
        held = {host: held_blocks(tmp_path / "work" / host / "job") for host in NAMES}
        no_secret_shows(tmp_path / "work", keys, processes)
        assert all(len(shards) < 9 for host, shards in held.items() if host != "desk")  # 8 blocks and the common one
    finally:
        edgesplit("down", plan, "--yes")
    assert not (tmp_path / "work" / "desk").exists()
    assert "does not serve" in edgesplit("status", plan, status=8).stderr


def no_secret_shows(work: Path, keys: list[str], processes: set[bytes]) -> None:
    """Not in what verbs print, lists of processes, nor any file but the one of mode 600 that keeps two of them."""
    kept = Secrets.model_validate_json((work / "desk" / "job" / "keys" / "controller.json").read_text())
    shards = [path.stem for host in NAMES for path in (work / host / "job" / "shards").glob("*.sealed")]
    secrets = [*keys, kept.shard_key, kept.command_key.splitlines()[1], "PRIVATE KEY"]
    secrets += [shard_key(kept, sha).hex() for sha in shards]
    files = [file for file in work.rglob("*") if file.is_file() and file.name != "controller.json"]
    texts = {str(file): file.read_bytes() for file in files}
    texts |= {"the output of verbs": "\n".join(SAID).encode(), "a list of processes": b"\n".join(processes)}
    assert b"serve" in texts["a list of processes"]
    assert b'"epoch"' in texts["the output of verbs"]
    assert [(name, secret[:6]) for name, text in texts.items() for secret in secrets if secret.encode() in text] == []


def ask_with_keys(plan: Path) -> list[str]:
    """From the first key on clients need one; edgesplit itself comes by SSH, and nobody types any."""
    port = yaml.safe_load(plan.read_text())["api"]["port"]
    key = edgesplit("keys", "add", plan, "phone").stdout.strip()
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key) as client:
        assert client.completions.create(model="job", prompt="Hello", max_tokens=3).usage
    assert refused(port, "es-wrong")
    assert json.loads(edgesplit("generate", plan, "Hello", "-n", "3", "--json").stdout)["text"]
    assert [known["name"] for known in json.loads(edgesplit("keys", "list", plan, "--json").stdout)["keys"]] == [
        "phone"
    ]
    edgesplit("keys", "revoke", plan, "phone")
    assert refused(port, key)
    inventory = load_inventory(plan.parent / "hosts.yaml")
    with connect(inventory, ["desk"]) as hosts:
        own = api_key(hosts["desk"], inventory.hosts["desk"], str(plan.parent / "work" / "desk" / "job"))
    return [key, own]


def one_watches(plan: Path, elsewhere: Path) -> None:
    """A second watcher is refused; where the first was killed, one without any cache goes on; Ctrl-C harms nothing."""
    elsewhere.mkdir()
    for name in ("plan.yaml", "hosts.yaml", "model"):
        (elsewhere / name).symlink_to(plan.parent / name)
    with watching(plan) as first:
        assert "job is watched by" in edgesplit("watch", plan, "--once", status=6).stderr
        first.kill()
    time.sleep(3)  # its channel to the entry ends within an interval
    with watching(elsewhere / "plan.yaml") as second:
        second.send_signal(signal.SIGINT)
        assert second.wait(30) == 0
    events = [json.loads(line) for line in edgesplit("history", plan, "--json").stdout.splitlines()]
    assert all(event["epoch"] == 2 for event in events)


@contextmanager
def watching(plan: Path) -> Iterator[subprocess.Popen[str]]:
    """A watcher that has heard of the hosts."""
    with subprocess.Popen([EDGESPLIT, "watch", plan, "--json"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "it did not begin"
            assert json.loads(line)["event"] == "reading"
            yield process
        finally:
            process.kill()


def refused(port: int, key: str) -> bool:
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key) as client:
        try:
            client.models.list()
        except AuthenticationError as error:
            return "not known here" in str(error)
    return False


def held_blocks(folder: Path) -> set[str]:
    return {shard.name for shard in (folder / "shards").glob("*")}


@pytest.mark.ssh
def test_a_host_that_shows_another_key_is_never_talked_to(tmp_path: Path, sshd: SshdFarm, ssh_keys: SshKeys) -> None:
    servers = {name: sshd() for name in NAMES}
    plan = write_files(tmp_path, servers)
    edgesplit("profile", plan)
    edgesplit("plan", plan)
    other = ssh_keys.pair("other").with_suffix(".pub").read_text().split()[1]
    shelf = servers["shelf"]
    mine = shelf.host_key.with_suffix(".pub").read_text().split()[1]
    shelf.known_hosts.write_text(shelf.known_hosts.read_text().replace(mine, other))
    refused = edgesplit("deploy", plan, "--yes", status=4)
    assert "shelf: the host key has CHANGED" in refused.stderr
    assert not (tmp_path / "work").exists()


def test_the_demo_tells_its_whole_story_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "plans" / "demo" / "demo.py")],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "equal to the undisturbed run: yes" in done.stdout
    assert done.stdout.count("equal those of the unsplit model") + done.stderr.count("equal those of the unsplit") == 3
    assert not list(tmp_path.rglob("runner.pid"))
    assert not list(tmp_path.rglob("*.safetensors"))
