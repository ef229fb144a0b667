"""THE HOSTS: how an inventory merges, what it refuses, and that its example and reference page are complete.

`keys`, `check_example` and `check_page` serve the plan's tests too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from edgesplit import packages
from edgesplit.document import load
from edgesplit.errors import InputError
from edgesplit.inventory import DataPlane, HostSpec, Inventory, SshTarget, load_inventory
from edgesplit.units import parse_time
from edgesplit.values import Value

ROOT = Path(__file__).parents[2]
REMEDY = "give each its own data.port or data.address"


def keys(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key path of a kind with its default: ("hosts.NAME.ssh.port", None), ("pins[].to", "trusted") ..."""
    if isinstance(kind, type) and issubclass(kind, Value):
        for name, field in kind.model_fields.items():
            yield f"{path}.{name}".removeprefix("."), field.default
            yield from keys(field.annotation, f"{path}.{name}")
    elif get_origin(kind) is dict:
        yield from keys(get_args(kind)[1], f"{path}.NAME")
    elif get_origin(kind) is tuple:
        yield from keys(get_args(kind)[0], f"{path}[]")
    else:
        for part in get_args(kind):
            yield from keys(part, path)


def written(data: Any, path: str = "") -> Iterator[str]:
    """Every key path of a YAML file, in the same form."""
    if isinstance(data, dict):
        for name, value in data.items():
            step = "NAME" if path == ".hosts" else name
            yield f"{path}.{step}".removeprefix(".")
            yield from written(value, f"{path}.{step}")
    elif isinstance(data, list):
        for value in data:
            yield from written(value, f"{path}[]")


def check_example(kind: type[Value], file: str) -> None:
    """It loads, and no key of the kind is missing in it."""
    load(ROOT / file, kind)
    assert {path for path, _ in keys(kind)} - set(written(yaml.safe_load((ROOT / file).read_text()))) == set()


def check_page(kind: type[Value], file: str) -> None:
    """Its table has every key of the kind, no other, and the defaults of the code."""
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|", (ROOT / file).read_text(), re.MULTILINE))
    assert set(rows) - {"defaults"} == {path for path, _ in keys(kind)}
    for path, default in keys(kind):
        if isinstance(default, bool | int | float | str):
            shown = yaml.safe_load(rows[path].strip("`"))
            assert (parse_time(shown) if isinstance(default, float) else shown) == default, path
        else:
            assert not rows[path].startswith("`") or default is None, path


def test_the_example_has_every_key() -> None:
    check_example(Inventory, "inventory/example.yaml")


def test_the_reference_page_has_every_key_and_its_default() -> None:
    check_page(Inventory, "docs/reference/inventory.md")


def test_the_only_pattern_is_that_of_a_name() -> None:
    """The loader's words for a text that does not match its pattern speak of names."""
    patterns = re.findall(r'"(\^[^"]*)"', json.dumps(Inventory.model_json_schema()))
    assert set(patterns) == {"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def of(text: str) -> Inventory:
        Path("f").write_text(text)
        return load_inventory(Path("f"))

    return of


def test_a_host_needs_nothing_but_its_alias(read: Any) -> None:
    assert read("hosts: {pi: {ssh: pi}}") == Inventory(
        hosts={
            "pi": HostSpec(
                connection="ssh",
                ssh=SshTarget(host="pi", user=None, port=None, key=None, known_hosts=None),
                trusted=False,
                memory=None,
                cores=None,
                data=DataPlane(address=None, port=7431),
                python=None,
                work="~/.edgesplit",
                labels={},
            )
        }
    )


def test_defaults_are_laid_under_every_host_mapping_by_mapping(read: Any) -> None:
    hosts = read("""\
defaults:
  memory: 4GiB
  trusted: yes
  ssh: {user: me, port: 2222}
  data: {address: 10.0.0.1}
  labels: {room: attic, shelf: top}
hosts:
  a: {ssh: {host: a}}
  b: {ssh: {host: b, port: 22}, memory: 1GiB, trusted: no, data: {port: 7432}, labels: {room: cellar}}
  c: {ssh: c, memory: ~, data: {port: 7433}}
""").hosts
    assert list(hosts) == ["a", "b", "c"]
    assert [host.memory for host in hosts.values()] == [4 * 2**30, 2**30, 4 * 2**30]
    assert [host.trusted for host in hosts.values()] == [True, False, True]
    assert [host.data.address for host in hosts.values()] == ["10.0.0.1"] * 3
    assert hosts["a"].ssh == SshTarget(host="a", user="me", port=2222)
    assert hosts["b"].ssh == SshTarget(host="b", user="me", port=22)
    assert hosts["c"].ssh == SshTarget(host="c")  # an alias is taken whole
    assert hosts["b"].labels == {"room": "cellar", "shelf": "top"}


@pytest.mark.parametrize("defaults", ["", "defaults:\n", "defaults: {}\n"])
def test_empty_defaults_change_nothing(read: Any, defaults: str) -> None:
    assert read(defaults + "hosts: {a: {ssh: a}}").hosts == {"a": HostSpec(ssh=SshTarget(host="a"))}


def test_a_host_may_be_all_defaults(read: Any) -> None:
    assert read("defaults: {connection: local}\nhosts:\n  here:\n").hosts == {"here": HostSpec(connection="local")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "hosts: {a: {trusted: yes}}",
            "f:1:9: hosts.a: an ssh host needs `ssh`: an alias of ~/.ssh/config, or host, user, port and key",
        ),
        ("hosts: {a: {connection: local, ssh: a}}", "f:1:9: hosts.a: a local host has no `ssh`"),
        (
            "hosts: {a: {connection: local}, b: {connection: local, work: /b}}",
            f"f:1:1: hosts a and b share the data-plane address 127.0.0.1:7431; {REMEDY}",
        ),
        (
            "hosts: {a: {connection: local}, b: {connection: local, data: {port: 7432}}}",
            "f:1:1: hosts a and b share the work folder ~/.edgesplit; give each its own",
        ),
        (
            "hosts: {a: {ssh: pi, work: /w/}, b: {ssh: pi, work: /w, data: {port: 7432}}}",
            "f:1:1: hosts a and b share the work folder /w; give each its own",
        ),
        (
            "hosts: {a: {ssh: a, work: split}}",
            (
                "f:1:27: hosts.a.work: expected a path that begins with / or ~/, the same wherever a login starts; "
                "found 'split'"
            ),
        ),
        (
            "hosts: {a: {ssh: a, data: {address: x}}, b: {ssh: x}}",
            f"f:1:1: hosts a and b share the data-plane address x:7431; {REMEDY}",
        ),
    ],
)
def test_hosts_that_make_no_sense(read: Any, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert caught.value.message == said


def test_where_the_runners_meet(read: Any) -> None:
    hosts = read("""\
hosts:
  a: {ssh: pi}
  b: {ssh: {host: 10.0.0.2}, data: {address: 192.168.1.2}}
  c: {connection: local}
  d: {connection: local, data: {address: 192.168.1.3}, work: /d}
""").hosts
    assert [host.data_address for host in hosts.values()] == ["pi", "192.168.1.2", "127.0.0.1", "192.168.1.3"]


def test_the_same_folder_on_different_machines_is_no_clash(read: Any) -> None:
    hosts = read("hosts: {a: {ssh: a, work: /w}, b: {ssh: b, work: /w}, c: {connection: local, work: /w}}").hosts
    assert {host.work for host in hosts.values()} == {"/w"}


def test_which_python_runs_the_runner(read: Any) -> None:
    hosts = read("hosts: {a: {ssh: a}, b: {connection: local}, c: {ssh: c, python: ~/v/bin/python}}").hosts
    made = f"~/.edgesplit/.python/{packages.key([])}"
    assert [host.environment for host in hosts.values()] == [made, None, None]
    assert [host.interpreter for host in hosts.values()] == [f"{made}/bin/python", sys.executable, "~/v/bin/python"]


def test_packages_from_elsewhere_are_another_environment(read: Any) -> None:
    given = ["", "index: https://a.example/", "extra_index: https://a.example/", "wheels: ~/w", "python: python3.12"]
    hosts = read(
        f"hosts: {{{', '.join(f'h{n}: {{ssh: h{n}, packages: {{{one}}}}}' for n, one in enumerate(given))}}}"
    ).hosts
    assert len({host.environment for host in hosts.values()}) == len(given)


@pytest.mark.parametrize(
    "address", ["here", "https://a.example/ --trusted-host b", "https://a.example/\\n-r /etc/passwd"]
)
def test_an_index_is_an_address_and_nothing_else(read: Any, address: str) -> None:
    with pytest.raises(InputError, match="expected an address such as https://"):
        read(f'hosts: {{a: {{ssh: a, packages: {{index: "{address}"}}}}}}')


def test_the_local_inventory_is_three_runners_on_this_machine() -> None:
    inventory = load_inventory(ROOT / "inventory/local.yaml")
    assert inventory.trusted == {"desk"}
    assert {
        name: (host.connection, host.cores, host.data.port, host.work) for name, host in inventory.hosts.items()
    } == {
        "desk": ("local", 1, 7431, "~/.edgesplit/local/desk"),
        "shelf": ("local", 1, 7433, "~/.edgesplit/local/shelf"),
        "attic": ("local", 1, 7435, "~/.edgesplit/local/attic"),
    }
    assert all(host.memory is not None for host in inventory.hosts.values())
