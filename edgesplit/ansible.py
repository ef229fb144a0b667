"""An Ansible inventory -> the data that our own inventory would be, and where in the file each piece of it stands.

Read of it: groups and their children, hosts, ranges of hosts, vars with Ansible's precedence, and of the vars how a
host is reached. Keys of our own are vars named edgesplit_KEY. Other vars are for other tools and are passed over.
Must not know: files, YAML, what our keys mean.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

OWN = "edgesplit_"
PARTS = {"hosts", "vars", "children"}  # of a group
Loc = tuple[str | int, ...]

_RANGE = re.compile(r"\[(?:(\d{1,9}):(\d{1,9})|([a-z]):([a-z])|([A-Z]):([A-Z]))(?::(\d{1,9}))?]")
_KEYWORD = re.compile(r"^\s*(\w+)(?:\s*=\s*|\s+)")  # of `-o`: a blank does as well as a =
_MOST = 10_000  # hosts that a range may stand for, and of an inventory: ranges beside each other multiply
_SILENT = set("46ACaknqTtvXxY")  # options of ssh without a value
_VALUED = {"o", "F", "J", "i", "l", "p"}
_CONFIG = {"4": "AddressFamily=inet", "6": "AddressFamily=inet6", "C": "Compression=yes"}
_TARGET = {  # Ansible's var -> our key of `ssh`; the first that is given counts
    "ansible_host": "host",
    "ansible_ssh_host": "host",
    "ansible_port": "port",
    "ansible_ssh_port": "port",
    "ansible_user": "user",
    "ansible_ssh_user": "user",
    "ansible_ssh_private_key_file": "key",
    "ansible_private_key_file": "key",
}
_ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
_CONNECTIONS = {"ssh": "ssh", "smart": "ssh", "paramiko": "ssh", "paramiko_ssh": "ssh", "local": "local"}
_PASSWORDS = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")


class Unread(ValueError):
    """Something of Ansible's that is not read here; `args[0]` says what to do instead."""


@dataclass(frozen=True)
class Var:
    value: Any
    loc: Loc


@dataclass
class Reading:
    """`origins`: place in `data` -> place in the Ansible file. `mistakes`: place in the file, and what is wrong."""

    data: dict[str, Any]
    origins: dict[Loc, Loc] = field(default_factory=dict)
    mistakes: list[tuple[Loc, str]] = field(default_factory=list)

    def lay(self, loc: Loc, value: Any, origin: Loc) -> None:
        """Note where a value, and all that is in it, came from."""
        self.origins[loc] = origin
        for key, inner in _items(value):
            self.lay((*loc, key), inner, (*origin, key))


def is_ansible(data: Mapping[str, Any]) -> bool:
    """By its shape: at the top are groups, not `hosts` or a key of ours."""
    groups = [group for group in data.values() if isinstance(group, dict)]
    return "hosts" not in data and "defaults" not in data and any(PARTS & set(group) for group in groups)


def read(data: Mapping[str, Any]) -> Reading:
    """Every mistake is in the answer, which then is of no other use."""
    reading = Reading({"hosts": {}}, {(): ()})
    groups = _Groups(reading)
    groups.walk(data, (), "")
    for name, (loc, own) in groups.hosts.items():
        spec = _spec(name, loc, {**groups.inherited(name), **own}, reading)
        reading.data["hosts"][name] = spec
    if not groups.hosts and not reading.mistakes:
        reading.mistakes.append(((), "there is no host in it"))
    return reading


# --- groups -----------------------------------------------------------------------------------------------------------


class _Groups:
    """Which host is in which group, and what a group says: gathered from all places where either is mentioned."""

    def __init__(self, reading: Reading) -> None:
        self.hosts: dict[str, tuple[Loc, dict[str, Var]]] = {}
        self._reading = reading
        self._vars: dict[str, dict[str, Var]] = {}
        self._members: dict[str, set[str]] = {}
        self._parents: dict[str, set[str]] = {}

    def walk(self, groups: Any, loc: Loc, parent: str) -> None:
        for name, group in self._mapping(groups, loc).items():
            here = (*loc, name)
            self._parents.setdefault(name, set()).update({parent} - {"", name})
            for part, value in self._mapping(group, here).items():
                if part not in PARTS:
                    self._say((*here, part), "a group has `hosts`, `children` and `vars`")
                elif part == "vars":
                    self._note(self._vars.setdefault(name, {}), value, (*here, part))
                elif part == "hosts":
                    self._place(name, value, (*here, part))
                else:
                    self.walk(value, (*here, part), name)

    def _place(self, group: str, hosts: Any, loc: Loc) -> None:
        for pattern, given in self._mapping(hosts, loc).items():
            try:
                names = list(islice(_expand(pattern), _MOST + 1))
            except Unread as error:
                self._say((*loc, pattern), str(error))
                continue
            if len(self.hosts.keys() | names) > _MOST:
                self._say((*loc, pattern), f"more than {_MOST} hosts")
                continue
            for name in names:
                _, own = self.hosts.setdefault(name, ((*loc, pattern), {}))
                self._note(own, given, (*loc, pattern))
                self._members.setdefault(name, set()).add(group)

    def inherited(self, host: str) -> dict[str, Var]:
        """The vars of the groups it is in: those of `all` first, then from parents to children, then by name."""
        around: set[str] = set()
        todo = [*self._members[host], "all"]
        while todo:
            group = todo.pop()
            if group not in around:
                around.add(group)
                todo += self._parents.get(group, ())
        found: dict[str, Var] = {}
        for group in sorted(around, key=lambda group: (self._depth(group), self._rank(group), group)):
            found |= self._vars.get(group, {})
        return found

    def _depth(self, group: str, below: frozenset[str] = frozenset()) -> int:
        if group == "all":
            return 0
        parents = self._parents.get(group, set()) - below
        return 1 + max((self._depth(parent, below | {group}) for parent in parents), default=0)

    def _rank(self, group: str) -> int:
        priority = self._vars.get(group, {}).get("ansible_group_priority")
        return priority.value if priority is not None and isinstance(priority.value, int) else 1

    def _note(self, into: dict[str, Var], given: Any, loc: Loc) -> None:
        into |= {name: Var(value, (*loc, name)) for name, value in self._mapping(given, loc).items()}

    def _mapping(self, value: Any, loc: Loc) -> dict[str, Any]:
        if value is not None and not isinstance(value, dict):
            self._say(loc, "expected a mapping (key: value)")
        return value if isinstance(value, dict) else {}

    def _say(self, loc: Loc, text: str) -> None:
        self._reading.mistakes.append((loc, text))


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, list):
        return list(enumerate(value))
    return list(value.items()) if isinstance(value, dict) else []


def _expand(pattern: str) -> Iterator[str]:
    """pi[01:10:3].lan -> pi01.lan, pi04.lan ... as Ansible counts. Raises Unread."""
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    first, last = (text for text in match.groups()[:6] if text is not None)
    step = int(match[7] or 1)
    if first.isdigit():
        width = len(first) if first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1, step or 1)
        words = (f"{number:0{width}d}" for number in numbers[: _MOST + 1])
    else:
        numbers = range(ord(first), ord(last) + 1, step or 1)
        words = (chr(number) for number in numbers)
    if not step or not numbers or len(numbers) > _MOST:
        raise Unread(f"expected a range of 1 to {_MOST} hosts, as in [01:10]")
    for word in words:
        yield from _expand(f"{pattern[: match.start()]}{word}{pattern[match.end() :]}")


# --- one host ---------------------------------------------------------------------------------------------------------


def _spec(name: str, loc: Loc, given: Mapping[str, Var], reading: Reading) -> dict[str, Any]:
    """What our inventory would say of the host."""
    here: Loc = ("hosts", name)
    reading.lay(here, None, loc)
    spec: dict[str, Any] = {}

    def put(key: str, var: Var) -> None:
        spec[key] = var.value
        reading.lay((*here, key), var.value, var.loc)

    for var_name, var in given.items():
        if var_name.startswith(OWN):
            put(var_name.removeprefix(OWN), var)
    steps: tuple[Callable[[], None], ...] = (
        lambda: _interpreter(here, given, spec, reading),
        lambda: _connection(name, here, given, spec, reading),
        lambda: _passwords(given),
    )
    for step in steps:
        try:
            step()
        except _At as error:
            reading.mistakes.append((error.loc, str(error)))
            spec |= {"connection": "ssh", "ssh": {"host": name}}  # this one mistake is enough
    return spec


class _At(Unread):
    def __init__(self, var: Var, text: str) -> None:
        super().__init__(text)
        self.loc = var.loc


def _text(var: Var) -> Any:
    """Raises _At for what only Ansible can fill in."""
    if isinstance(var.value, str) and ("{{" in var.value or "{%" in var.value):
        raise _At(var, "templates are not filled in here; write the value out")
    return var.value


def _interpreter(here: Loc, given: Mapping[str, Var], spec: dict[str, Any], reading: Reading) -> None:
    """Ansible's has no packages of ours, as a rule: it is what an environment is made from."""
    var = given.get("ansible_python_interpreter")
    if var is not None and "packages" not in spec and not str(_text(var)).startswith("auto"):
        spec["packages"] = {"python": var.value}
        for loc in ((*here, "packages"), (*here, "packages", "python")):
            reading.lay(loc, None, var.loc)


def _passwords(given: Mapping[str, Var]) -> None:
    for name in _PASSWORDS:
        if name in given:
            raise _At(given[name], "logins are by key or agent; ssh-copy-id puts your key there, then remove this")


def _connection(name: str, here: Loc, given: Mapping[str, Var], spec: dict[str, Any], reading: Reading) -> None:
    var = given.get("ansible_connection", Var("ssh", reading.origins[here]))
    kind = _CONNECTIONS.get(str(_text(var)))
    if kind is None:
        raise _At(var, f"expected ssh or local, found {var.value!r}")
    spec.setdefault("connection", kind)
    if kind == "local" or "ssh" in spec:
        return
    target: dict[str, Any] = {"host": name}
    reading.lay((*here, "ssh"), None, reading.origins[here])
    for word, key in reversed(_TARGET.items()):
        if word in given:
            value = _text(given[word])
            target[key] = int(value) if key == "port" and str(value).isdigit() else value
            reading.lay((*here, "ssh", key), None, given[word].loc)
    for word in _ARGUMENTS:
        if word in given:
            _arguments(given[word], target)
            reading.lay((*here, "ssh", "options"), None, given[word].loc)
    spec["ssh"] = target


def _arguments(var: Var, target: dict[str, Any]) -> None:
    """Options of the ssh command, as far as they say where and how. Raises _At."""
    try:
        words = iter(shlex.split(str(_text(var) or "")))
    except ValueError:
        raise _At(var, "a quote does not end") from None
    for word in words:
        letter, value = word[1:2], word[2:]
        if word[:1] != "-" or letter not in _SILENT | _VALUED:
            raise _At(var, f"{word!r} is not understood; of ssh's options -o, -F, -J, -i, -l, -p, -4 and -6 are")
        if letter in _VALUED:
            _option(letter, value or next(words, ""), target)
            continue
        options = [_CONFIG[one] for one in word[1:] if one in _CONFIG]
        target["options"] = [*target.get("options", []), *options]


def _option(letter: str, value: str, target: dict[str, Any]) -> None:
    named = {"F": "config", "i": "key", "l": "user"}
    if letter in named:
        target[named[letter]] = value
    elif letter == "p":
        target["port"] = int(value) if value.isdigit() else value
    else:
        option = f"ProxyJump={value}" if letter == "J" else _KEYWORD.sub(r"\1=", value, count=1)
        target["options"] = [*target.get("options", []), option]
