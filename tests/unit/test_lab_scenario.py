"""The lab file: what it may say, what it means, and the files a lab is described by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from test_inventory import ROOT, check_example, keys

from edgesplit.errors import InputError
from edgesplit.inventory import Inventory
from edgesplit.lab.layout import CANDIDATES, Layout, choose_network, routes
from edgesplit.lab.scenario import CONTROLLER, LinkSpec, Scenario, link_rate, load_scenario, share

EXAMPLE = ROOT / "plans" / "lab" / "five.yaml"


def scenario(**changes: Any) -> Scenario:
    return Scenario.model_validate_json(json.dumps({"name": "lab", "hosts": {"a": {}, "b": {}, "c": {}}, **changes}))


def layout(**changes: Any) -> Layout:
    return Layout(scenario=scenario(**changes), network="10.77.0.0/24", folder="/labs/lab")


# --- quantities ---


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10Mbit/s", 1.25e6), ("10mbit", 1.25e6), ("10Mbit", 1.25e6), ("512kbit", 64e3), ("1gbit", 1.25e8),
     ("800bit", 100.0), ("unlimited", None), (None, None), (5000, 5000.0)],
)  # fmt: skip
def test_a_rate_is_read_as_people_and_tc_write_it(text: object, rate: float | None) -> None:
    assert link_rate(text) == rate


@pytest.mark.parametrize("text", ["0mbit", "ten", "-1mbit", 0, True, "10"])
def test_a_rate_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        link_rate(text)


@pytest.mark.parametrize(("text", "part"), [("1%", 0.01), ("0.1 %", 0.001), (0, 0.0), (0.5, 0.5), ("100%", 1.0)])
def test_a_share_is_percent_or_a_number(text: object, part: float) -> None:
    assert share(text) == pytest.approx(part)


@pytest.mark.parametrize("text", ["101%", 2, "one", -0.1, True])
def test_a_share_beyond_all_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="share"):
        share(text)


# --- scenarios ---


def test_the_example_has_every_key() -> None:
    check_example(Scenario, "plans/lab/five.yaml")
    assert len(load_scenario(EXAMPLE).hosts) == 5


def test_the_page_has_every_key() -> None:
    page = (ROOT / "docs" / "lab.md").read_text()
    assert {path for path, _ in keys(Scenario)} <= set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))


def test_a_name_from_the_command_line_goes_first() -> None:
    found = load_scenario(EXAMPLE, name="other")
    assert found.name == "other"
    assert list(found.directions()) == list(load_scenario(EXAMPLE).directions())


def test_a_lab_that_is_read_again_has_the_same_links() -> None:
    plan = layout(link={"delay": "2ms"}, links=[{"between": ["a", "b"], "rate": "10mbit"}])
    again = Layout.model_validate_json(plan.to_json())
    assert list(again.scenario.directions()) == list(plan.scenario.directions())
    assert again.places == plan.places


def test_every_pair_has_the_labs_link_and_some_their_own() -> None:
    found = scenario(
        link={"delay": "2ms", "rate": "100Mbit/s"},
        links=[
            {"between": ["a", "b"], "rate": "10mbit"},
            {"between": ["b", "c"], "loss": "1%", "one_way": True},
            {"between": [CONTROLLER, "c"], "delay": "30ms"},
        ],
    )
    links = {(source, target): link for source, target, link in found.directions()}
    usual = LinkSpec(delay=0.002, rate=12.5e6)
    assert links["a", "b"] == links["b", "a"] == LinkSpec(delay=0.002, rate=1.25e6)
    assert links["b", "c"] == LinkSpec(delay=0.002, rate=12.5e6, loss=0.01)
    assert links["c", "b"] == links["a", "c"] == links["c", "a"] == usual
    assert links[CONTROLLER, "c"] == links["c", CONTROLLER] == LinkSpec(delay=0.03)
    assert (CONTROLLER, "a") not in links  # the way to the controller has no limits unless it is named
    assert len(links) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a-b"}, "at most 12 small letters"),
        ({"name": "abcdefghijklm"}, "at most 12"),
        ({"name": "../up"}, "small letters"),
        ({"hosts": {}}, "at least 1"),
        ({"hosts": {f"h{number}": {} for number in range(33)}}, "at most 32"),
        ({"hosts": {CONTROLLER: {}}}, "cannot be called controller"),
        ({"hosts": {"a b": {}}}, "pattern"),
        ({"hosts": {"a": {"cores": 0}}}, "greater than or equal"),
        ({"hosts": {"a": {"memory": "1MiB"}}}, "greater than or equal"),
        ({"network": "8.8.8.0/24"}, "private"),
        ({"network": "10.77.0.0/30"}, "room"),
        ({"links": [{"between": ["a", "x"]}]}, "there is no host x"),
        ({"links": [{"between": ["a", "a"]}]}, "not a twice"),
        ({"links": [{"between": ["a", "b"]}, {"between": ["b", "a"]}]}, "given twice"),
        ({"link": {"rate": "0mbit"}}, "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        scenario(**changes)


def test_a_mistake_in_a_file_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("name: lab\nhosts:\n  a: {core: 1}\n  b: {}\nlinks:\n  - {between: [a, b], rate: 10 mbits}\n")
    with pytest.raises(InputError) as refused:
        load_scenario(file)
    assert "lab.yaml:3:7: hosts.a.core: unknown key; did you mean 'cores'?" in refused.value.message
    assert "lab.yaml:6:" in refused.value.message
    assert "plans/lab/five.yaml" in refused.value.hint


# --- what follows from a scenario ---


def test_names_and_addresses_are_distinct_and_short_enough_for_linux() -> None:
    plan = layout(name="abcdefghijkl")
    places = plan.places.values()
    assert all(len(place.interface) <= 15 for place in places)
    assert [place.address for place in places] == ["10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4"]
    assert len({place.mac for place in places}) == 4
    assert all(int(place.mac[:2], 16) & 0b11 == 0b10 for place in places)  # local, and of one station
    assert plan.hosts["a"].network == "eslab-abcdefghijkl-a"


def test_no_lab_takes_the_names_of_another() -> None:
    """`down ab` looks for what begins with eslab-ab-; no lab can be called ab-c."""
    one, other = layout(name="ab"), layout(name="abc")
    assert not any(str(place.network).startswith(f"{one.group}-") for place in other.hosts.values())


def test_the_inventory_is_one_that_edgesplit_reads() -> None:
    hosts = {"a": {"cores": 2.5, "inventory": {"trusted": True, "memory": "7MiB"}}, "b": {"cores": 0.5}}
    text = yaml.safe_dump(layout(hosts=hosts).inventory("/venv/bin/python"))
    inventory = Inventory.model_validate(yaml.safe_load(text))
    a, b = inventory.hosts["a"], inventory.hosts["b"]
    assert a.ssh is not None
    assert (a.ssh.host, a.ssh.port, a.ssh.known_hosts) == ("10.77.0.2", 22, "/labs/lab/known_hosts")
    assert (a.trusted, a.memory, a.cores) == (True, 7 * 2**20, 2)
    assert (b.trusted, b.memory, b.cores) == (False, None, 1)
    assert a.work != b.work
    assert a.interpreter == "/venv/bin/python"


def test_everybody_knows_everybody_elses_address_beforehand() -> None:
    plan = layout()
    lines = plan.interface_commands(plan.hosts["b"]).splitlines()
    assert "addr add 10.77.0.3/24 dev eth0" in lines
    assert [line.split()[2] for line in lines if line.startswith("neigh")] == ["10.77.0.1", "10.77.0.2", "10.77.0.4"]


def test_an_sshd_asks_for_a_key_and_for_nothing_of_the_machine() -> None:
    lines = layout().sshd_config("c").splitlines()
    assert {"Port 22", "ListenAddress 10.77.0.4", "UsePAM no", "PasswordAuthentication no"} <= set(lines)


# --- which network ---

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
vpn0\t00004D0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


def test_routes_are_read_from_the_kernels_table() -> None:
    assert routes(ROUTES) == ["192.168.1.0/255.255.255.0", "10.77.0.0/255.255.0.0"]


def test_a_network_nobody_has_is_chosen() -> None:
    assert choose_network(None, []) == CANDIDATES[0]
    assert choose_network(None, ["10.77.0.0/24", "10.77.1.128/25"]) == "10.77.2.0/24"
    assert choose_network(None, routes(ROUTES)) is None  # all of 10.77 is behind the VPN
    assert choose_network("10.78.0.0/24", routes(ROUTES)) == "10.78.0.0/24"
    assert choose_network("192.168.1.0/24", routes(ROUTES)) is None
