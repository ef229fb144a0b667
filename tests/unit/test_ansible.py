"""Inventories made for Ansible are read as they are; what Ansible means by them is checked against Ansible's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgesplit.errors import InputError
from edgesplit.inventory import Inventory, load_inventory

SIZE = 'expected a size such as "4GiB", with a unit of B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB'
UNKNOWN = "is not understood; of ssh's options -o, -F, -J, -i, -l, -p, -4 and -6 are"
BY_KEY = "logins are by key or agent; ssh-copy-id puts your key there, then remove this"
Read = Callable[[str], Inventory]

# From Ansible's own documentation, with what people add to it.
FLEET = """\
---
all:
  vars:
    ansible_user: pi
    ntp_server: ntp.lan
  hosts:
    mail.example.com:
  children:
    edge:
      children:
        boards:
          hosts:
            shelf:
              ansible_host: 192.168.1.11
              ansible_port: 2222
              edgesplit_trusted: true
              edgesplit_memory: 4GiB
              edgesplit_data: {port: 7500}
            attic:
              ansible_host: 192.168.1.12
              ansible_user: attic
          vars:
            ansible_ssh_private_key_file: ~/.ssh/boards
            ansible_python_interpreter: /opt/python/bin/python3
      vars:
        ansible_user: edge
        edgesplit_labels: {room: "12"}
    clouds:
      hosts:
        cloud[01:03].example.com:
        10.0.0.7:
      vars:
        ansible_ssh_common_args: -o ProxyCommand="ssh -W %h:%p jump" -o ServerAliveInterval=15 -J hop -4 -q
        ansible_become: true
        ansible_become_password: "{{ secret }}"
    here:
      hosts:
        desk: {ansible_connection: local, edgesplit_trusted: yes}
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)

    def of(text: str) -> Inventory:
        Path("f").write_text(text)
        return load_inventory(Path("f"))

    return of


def refused(read: Read, text: str) -> list[str]:
    with pytest.raises(InputError) as failure:
        read(text)
    return failure.value.message.splitlines()


def test_groups_hosts_and_vars(read: Read) -> None:
    hosts = read(FLEET).hosts
    assert list(hosts) == [
        "mail.example.com",
        "shelf",
        "attic",
        *(f"cloud0{number}.example.com" for number in (1, 2, 3)),
        "10.0.0.7",
        "desk",
    ]
    targets = {name: host.ssh for name, host in hosts.items() if host.ssh is not None}
    assert (targets["mail.example.com"].host, targets["mail.example.com"].user) == ("mail.example.com", "pi")
    shelf = targets["shelf"]
    assert (shelf.host, shelf.port, shelf.user, shelf.key) == ("192.168.1.11", 2222, "edge", "~/.ssh/boards")
    assert targets["attic"].user == "attic"
    assert targets["cloud02.example.com"].options == (
        "ProxyCommand=ssh -W %h:%p jump",
        "ServerAliveInterval=15",
        "ProxyJump=hop",
        "AddressFamily=inet",
    )
    assert hosts["desk"].ssh is None


def test_keys_of_our_own(read: Read) -> None:
    inventory = read(FLEET)
    shelf = inventory.hosts["shelf"]
    assert inventory.trusted == {"shelf", "desk"}
    assert shelf.memory == 4 * 2**30
    assert (shelf.data_address, shelf.data.port) == ("192.168.1.11", 7500)
    assert shelf.labels == {"room": "12"}
    assert shelf.packages.python == "/opt/python/bin/python3"


@pytest.mark.parametrize(
    ("groups", "user"),
    [
        ("all: {vars: {ansible_user: all}, hosts: {pi: }}", "all"),
        ("all: {vars: {ansible_user: all}}\nb: {hosts: {pi: }, vars: {ansible_user: b}}", "b"),
        ("b: {hosts: {pi: }, vars: {ansible_user: b}}\na: {hosts: {pi: }, vars: {ansible_user: a}}", "b"),
        ("b: {hosts: {pi: }, vars: {ansible_user: b}}\na: {hosts: {pi: }, vars: {ansible_user: a, RANK: 9}}", "a"),
        ("z: {children: {a: {hosts: {pi: }, vars: {ansible_user: child}}}, vars: {ansible_user: parent}}", "child"),
        ("z: {vars: {ansible_user: z}, children: {a: }}\na: {hosts: {pi: }}", "z"),
        ("a: {hosts: {pi: {ansible_user: own}}, vars: {ansible_user: a}}\nb: {hosts: {pi: }}", "own"),
        ("a: {hosts: {pi: {ansible_user: one}}}\nb: {hosts: {pi: {ansible_user: two}}}", "two"),
        ("a: {children: {b: }, hosts: {pi: }}\nb: {children: {a: }, vars: {ansible_user: round}}", "round"),
    ],
)
def test_the_nearest_var_counts(read: Read, groups: str, user: str) -> None:
    target = read(groups.replace("RANK", "ansible_group_priority")).hosts["pi"].ssh
    assert target is not None
    assert target.user == user


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("pi[1:3]", ["pi1", "pi2", "pi3"]),
        ("pi[08:10]", ["pi08", "pi09", "pi10"]),
        ("pi[0:10:5]", ["pi0", "pi5", "pi10"]),
        ("pi-[a:c].lan", ["pi-a.lan", "pi-b.lan", "pi-c.lan"]),
        ("r[1:2]s[1:2]", ["r1s1", "r1s2", "r2s1", "r2s2"]),
    ],
)
def test_ranges_of_hosts(read: Read, pattern: str, names: list[str]) -> None:
    assert list(read(f'all: {{hosts: {{"{pattern}": }}}}').hosts) == names


def test_every_mistake_is_told_where_it_stands_in_the_file(read: Read) -> None:
    text = """\
all:
  hosts:
    a:
      ansible_port: 70000
      edgesplit_trustd: true
      edgesplit_memory: 4 apples
    b: {ansible_connection: winrm}
    c: {ansible_host: "{{ address }}"}
    d: {ansible_ssh_common_args: "-W x"}
    e: {ansible_password: secret}
    f[3:1]: {}
    g: {edgesplit_data: {port: none}}
    h[1:9999][1:9999]: {}
  childs: {}
"""
    assert refused(read, text) == [
        "f:4:21: all.hosts.a.ansible_port: expected 65535 or less, found 70000",
        "f:5:7: all.hosts.a.edgesplit_trustd: unknown key; did you mean 'trusted'?",
        f"f:6:25: all.hosts.a.edgesplit_memory: {SIZE}; found '4 apples'",
        "f:7:9: all.hosts.b.ansible_connection: expected ssh or local, found 'winrm'",
        "f:8:9: all.hosts.c.ansible_host: templates are not filled in here; write the value out",
        f"f:9:9: all.hosts.d.ansible_ssh_common_args: '-W' {UNKNOWN}",
        f"f:10:9: all.hosts.e.ansible_password: {BY_KEY}",
        "f:11:5: all.hosts.'f[3:1]': expected a range of 1 to 10000 hosts, as in [01:10]",
        "f:12:32: all.hosts.g.edgesplit_data.port: expected a whole number, found 'none'",
        "f:13:5: all.hosts.'h[1:9999][1:9999]': more than 10000 hosts",
        "f:14:3: all.childs: a group has `hosts`, `children` and `vars`",
    ]


@pytest.mark.parametrize("text", ["all: {hosts: [a, b]}", "all: {children: {x: 3}, hosts: {pi: }}"])
def test_what_is_no_mapping(read: Read, text: str) -> None:
    assert "expected a mapping" in "".join(refused(read, text))


def test_no_hosts_at_all(read: Read) -> None:
    assert refused(read, "all: {children: {}}") == ["f:1:1: there is no host in it"]


def test_an_inventory_of_ours_is_not_taken_for_one_of_ansible(read: Read) -> None:
    assert list(read("hosts: {all: {ssh: all}}").hosts) == ["all"]
    assert "unknown key" in refused(read, "host: {pi: {ssh: pi}}\nhosts: {a: {ssh: a}}")[0]
