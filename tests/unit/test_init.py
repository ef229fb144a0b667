"""`edgesplit init`: what it writes loads, and says what the hosts' own files said."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgesplit.cli.app import app
from edgesplit.draft import Found, apart, deployment_name, inventory
from edgesplit.inventory import DATA_PORT, SshTarget, load_inventory
from edgesplit.plan import load_plan

CONFIG = """\
Host shelf
  HostName 192.168.1.11
  User pi
Host attic.lan
Host github.com
  User git
Host shelf-again
  HostName 192.168.1.11
Host shelf-next
  HostName 192.168.1.11
  Port 2202
Host *
  IdentityFile ~/.ssh/boards
"""
HOSTS = """\
all:
  vars: {ansible_user: pi}
  hosts:
    shelf: {ansible_host: 192.168.1.11, ansible_port: 2222, edgesplit_trusted: true, edgesplit_data: {port: 7500}}
    "on": {ansible_ssh_common_args: -J gate, ansible_python_interpreter: /opt/py/bin/python, edgesplit_memory: 4GiB,
           edgesplit_labels: {"12": floor, "a: b": c}}
    here: {ansible_connection: local}
"""


def init(*words: object) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, words)])


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "config"
    file.write_text(CONFIG)
    monkeypatch.setattr("edgesplit.hosts.ssh_config.USER_FILE", str(file))
    monkeypatch.setattr("shutil.which", lambda _: None)  # `ssh -G` would read the user's own file
    return file


@pytest.mark.usefixtures("config")
def test_from_the_configuration_of_ssh(tmp_path: Path) -> None:
    done = init(tmp_path / "new", "--model", "org/Some-Model")
    assert done.exit_code == 0, done.output
    hosts = load_inventory(tmp_path / "new" / "inventory.yaml").hosts
    assert list(hosts) == ["desk", "shelf", "attic.lan", "shelf-next"]
    assert hosts["shelf-next"].data.port == DATA_PORT + 1  # another machine behind the same address
    assert hosts["shelf"].ssh == SshTarget(host="shelf")
    assert hosts["shelf"].data_address == "192.168.1.11"
    assert hosts["desk"].trusted
    plan = load_plan(tmp_path / "new" / "plan.yaml")
    assert (plan.name, plan.model.source, plan.entry) == ("some-model", "org/Some-Model", "desk")
    assert tmp_path / "new" / str(plan.inventory) == tmp_path / "new" / "inventory.yaml"
    assert f"next: edgesplit check {tmp_path}/new/plan.yaml" in done.stderr


def test_from_an_ansible_inventory(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(HOSTS)
    assert init(tmp_path / "new", "--ansible", file).exit_code == 0
    written, given = load_inventory(tmp_path / "new" / "inventory.yaml").hosts, load_inventory(file).hosts
    assert list(written) == ["desk", "shelf", "on"]
    assert {name: written[name] for name in ("shelf", "on")} == {name: given[name] for name in ("shelf", "on")}


def test_what_is_not_read_of_ansible_is_told_with_the_way_to_one_file(tmp_path: Path) -> None:
    ini, file = tmp_path / "hosts", tmp_path / "hosts.yaml"
    ini.write_text("[boards]\nshelf ansible_host=192.168.1.11\n")
    refused = init(tmp_path / "new", "--ansible", ini)
    assert refused.exit_code == 2
    assert f"ansible-inventory -i {ini} --list --yaml" in refused.stderr
    file.write_text(HOSTS)
    (tmp_path / "host_vars").mkdir()
    assert f"{tmp_path}/host_vars was not read" in init(tmp_path / "new", "--ansible", file).stderr


@pytest.mark.usefixtures("config")
def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("mine")
    done = init(tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path}/plan.yaml exists already" in done.stderr.replace("\n", "")
    assert (tmp_path / "plan.yaml").read_text() == "mine"
    assert not (tmp_path / "inventory.yaml").exists()


def test_no_hosts_at_all(config: Path, tmp_path: Path) -> None:
    config.unlink()
    done = init(tmp_path)
    assert done.exit_code == 0
    assert list(load_inventory(tmp_path / "inventory.yaml").hosts) == ["desk"]
    assert "no other host was found" in done.stderr


def test_one_source_only(tmp_path: Path) -> None:
    assert init(tmp_path, "--from-ssh-config", "--ansible", tmp_path / "x").exit_code == 2


def test_machines_that_share_an_address_get_ports_of_their_own(tmp_path: Path) -> None:
    ways = (("a", 1), ("b", 2), ("a b!", 1))
    boxes = [Found(name, SshTarget(host="127.0.0.1", port=port), way=(str(port),)) for name, port in ways]
    kept = apart(boxes)
    assert [host.more.get("data") for host in kept] == [None, {"address": "127.0.0.1", "port": DATA_PORT + 1}]
    (tmp_path / "f").write_text(inventory([*kept, Found("desk", SshTarget(host="null"))], "made up", "10.0.0.1"))
    hosts = load_inventory(tmp_path / "f").hosts
    assert list(hosts) == ["desk", "a", "b", "desk-2"]
    assert hosts["desk-2"].ssh == SshTarget(host="null")


def test_the_name_of_a_deployment() -> None:
    assert deployment_name("Qwen/Qwen2.5-0.5B-Instruct") == "qwen2.5-0.5b-instruct"
    assert deployment_name("/models/Größe 1/") == "gr-e-1"
    assert deployment_name("/") == "model"
