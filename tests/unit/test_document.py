"""Input files: every mistake said at once and in place, and nothing but InputError whatever the file holds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgesplit.document import MAX_BYTES, load
from edgesplit.errors import InputError
from edgesplit.inventory import HostSpec, Inventory, load_inventory
from edgesplit.plan import ModelPlan, load_plan
from edgesplit.values import Value

ROOT = Path(__file__).parents[2]
NAME_RULE = "expected a name: at most 63 letters, digits, '.', '_' and '-', the first of them a letter or digit"
YAML_TAG = "tag:yaml.org,2002:"
Read = Callable[..., list[str]]


@pytest.fixture
def mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Text of a file called f -> the lines of the error it causes."""
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes, kind: type[Value] = Inventory) -> list[str]:
        Path("f").write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(InputError) as caught:
            load(Path("f"), kind)
        assert caught.value.exit_code == 2
        assert caught.value.hint
        return caught.value.message.splitlines()

    return read


def plan(rest: str) -> str:
    return f"name: a\nmodel: m\nentry: desk\n{rest}"


# --- mistakes in values


def test_every_mistake_is_said_at_once_in_the_order_of_the_file(mistakes: Read) -> None:
    text = """\
hosts:
  pi:
    ssh: {host: pi, port: 0}
    trustd: yes
    cores: 2.5
  jetson:
    ssh: {host: jetson, port: "22"}
    labels: {room: 12, country: no}
    zzz: 1
  bad name:
    connection: shs
    python: 3.11
    data:
"""
    assert mistakes(text) == [
        "f:3:27: hosts.pi.ssh.port: expected 1 or more, found 0",
        "f:4:5: hosts.pi.trustd: unknown key; did you mean 'trusted'?",
        "f:5:12: hosts.pi.cores: expected a whole number, found 2.5",
        "f:7:31: hosts.jetson.ssh.port: expected a whole number, found '22'",
        'f:8:20: hosts.jetson.labels.room: expected text, found 12; quote it: "12"',
        'f:8:33: hosts.jetson.labels.country: expected text, found no; quote it: "no"',
        f"f:9:5: hosts.jetson.zzz: unknown key; the keys here are {', '.join(HostSpec.model_fields)}",
        f"f:10:3: hosts.'bad name': {NAME_RULE}",
        "f:11:17: hosts.'bad name'.connection: expected 'ssh' or 'local', found 'shs'; did you mean 'ssh'?",
        "f:12:13: hosts.'bad name'.python: expected text, found 3.11; quote it: \"3.11\"",
        "f:13:10: hosts.'bad name'.data: expected a mapping (key: value), found nothing",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("api: {port: 70000}", "4:13: api.port: expected 65535 or less, found 70000"),
        ("api: {port: 99999999999999999999}", "4:13: api.port: expected a whole number, found '99999999999999999999'"),
        ("api: {port: 0o22}", "4:13: api.port: expected a whole number, found '0o22'"),
        ("api: {port: yes}", "4:13: api.port: expected a whole number, found yes"),
        ("watch: {slowdown: 1}", "4:19: watch.slowdown: expected a number above 1.0, found 1"),
        ("watch: {min_gain: 1.5}", "4:19: watch.min_gain: expected 1.0 or less, found 1.5"),
        ("watch: {min_gain: .nan}", "4:19: watch.min_gain: expected a number, found '.nan'"),
        ("watch: {min_gain: 1e999}", "4:19: watch.min_gain: expected a number, found '1e999'"),
        ("watch: {patience: [3]}", "4:9: watch.patience: expected a whole number, found a list"),
        (
            "watch: {interval: soon}",
            '4:19: watch.interval: expected a time such as "300ms", with a unit of us, ms, s, min, h; found \'soon\'',
        ),
        ("watch: {interval: 50ms}", "4:19: watch.interval: expected 0.1 or more, found '50ms'"),
        ("dtype: f16", "4:8: dtype: expected 'float32', 'bfloat16' or 'float16', found 'f16'; did you mean 'float16'?"),
        ("dtype: q4", "4:8: dtype: expected 'float32', 'bfloat16' or 'float16', found 'q4'"),
        ("pins: {to: desk}", "4:1: pins: expected a list, found a mapping"),
        ("pins: [{blocks: []}]", "4:9: pins[0].blocks: expected 1 or more entries"),
        ("pins: [{blocks: head}]", "4:17: pins[0].blocks: expected a list, found 'head'"),
        ("pins: [{blocks: [head, 3]}]", '4:24: pins[0].blocks[1]: expected text, found 3; quote it: "3"'),
        ("pins: [{bloks: [head], blocks: [head]}]", "4:9: pins[0].bloks: unknown key; did you mean 'blocks'?"),
        ("pins: [{to: desk}]", "4:8: pins[0].blocks: required, but missing"),
        ("revision: main", f"4:1: revision: unknown key; the keys here are {', '.join(ModelPlan.model_fields)}"),
        ("inventory: 2026", '4:12: inventory: expected text, found 2026; quote it: "2026"'),
        ("entrie: desk", "4:1: entrie: unknown key; did you mean 'entry'?"),
        ("workload: {max_context: 9}", "4:1: workload: prompt_tokens + new_tokens = 256 exceed max_context = 9"),
        ("objective: 3", "4:12: objective: expected a mapping (key: value), found 3"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_plan(mistakes: Read, line: str, said: str) -> None:
    assert mistakes(plan(line), ModelPlan) == [f"f:{said}"]


def test_what_is_missing_is_said_where_it_should_stand(mistakes: Read) -> None:
    assert mistakes("# a plan\nentry: desk\nmodel: {}\n", ModelPlan) == [
        "f:2:1: name: required, but missing",
        "f:3:1: model.source: required, but missing",
    ]


def test_a_long_or_odd_text_is_shown_short_and_escaped(mistakes: Read) -> None:
    said = mistakes('hosts: {a: {ssh: a, connection: "' + 70 * "x" + '"}, "b\\e": {ssh: b}}')
    assert said == [
        f"f:1:33: hosts.a.connection: expected 'ssh' or 'local', found '{57 * 'x'}...'",
        f"f:1:108: hosts.'b\\x1b': {NAME_RULE}",
    ]


def test_numbers_that_yaml_would_bend_are_text(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("hosts: {a: {ssh: a, labels: {night: 22:30, mode: 0755, day: 2026-11-23, id: 1e999, hex: 0x1f}}}")
    labels = load_inventory(file).hosts["a"].labels
    assert labels == {"night": "22:30", "mode": "0755", "day": "2026-11-23", "id": "1e999", "hex": "0x1f"}


def test_numbers_and_truths_people_write(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text(plan("prefill_chunk: 1_000\nwatch: {interval: .5, min_gain: 1e-3, memory: 1, cooldown: 1min}"))
    read = load_plan(file)
    assert (read.prefill_chunk, read.watch.interval, read.watch.min_gain) == (1000, 0.5, 0.001)
    assert (read.watch.memory, read.watch.cooldown) == (1.0, 60.0)
    file.write_text("hosts: {a: {ssh: a, trusted: yes}, b: {ssh: b, trusted: OFF}}")
    assert load_inventory(file).trusted == {"a"}


def test_a_quantity_beyond_every_number_is_an_input_error(mistakes: Read) -> None:
    (said,) = mistakes("hosts: {a: {ssh: a, memory: " + 400 * "9" + "GiB}}")
    assert said.startswith("f:")


# --- defaults


def test_a_mistake_in_defaults_is_said_once_and_there(mistakes: Read) -> None:
    text = """\
defaults:
  memory: lots
  trustd: yes
  ssh: {prt: 22}
  cores: 0
hosts:
  a: {ssh: {host: a}, cores: 1}
  b: {ssh: {host: b}, memory: ~}
  c: {ssh: c, memory: much}
"""
    sizes = 'expected a size such as "4GiB", with a unit of B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB'
    assert mistakes(text) == [
        f"f:2:11: defaults.memory: {sizes}; found 'lots'",
        "f:3:3: defaults.trustd: unknown key; did you mean 'trusted'?",
        "f:4:9: defaults.ssh.prt: unknown key; did you mean 'port'?",
        "f:5:10: defaults.cores: expected 1 or more, found 0",
        f"f:9:23: hosts.c.memory: {sizes}; found 'much'",
    ]


def test_what_every_host_lacks_is_said_at_every_host(mistakes: Read) -> None:
    assert mistakes("defaults: {ssh: {user: me}}\nhosts:\n  a:\n  b: {ssh: {port: 22}}\n") == [
        "f:3:3: hosts.a.ssh.host: required, but missing",
        "f:4:7: hosts.b.ssh.host: required, but missing",
    ]


@pytest.mark.parametrize("defaults", ["3", "[a]", "yes", "text"])
def test_defaults_are_a_mapping(mistakes: Read, defaults: str) -> None:
    found = {"[a]": "a list", "text": "'text'"}.get(defaults, defaults)
    assert mistakes(f"defaults: {defaults}\nhosts: {{a: {{ssh: a}}}}") == [
        f"f:1:1: defaults: expected a mapping (key: value), found {found}"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defaults: {}", "1:1: hosts: required, but missing"),
        ("defaults: {cores: 1}\nhosts: [a]", "2:1: hosts: expected a mapping (key: value), found a list"),
        ("defaults: {cores: 1}\nhosts: {}", "2:1: hosts: expected 1 or more entries"),
        ("default: {cores: 1}\nhosts: {a: {ssh: a}}", "1:1: default: unknown key; did you mean 'defaults'?"),
    ],
)
def test_defaults_do_not_hide_what_is_wrong_with_hosts(mistakes: Read, text: str, said: str) -> None:
    assert mistakes(text) == [f"f:{said}"]


def test_a_plan_has_no_defaults(mistakes: Read) -> None:
    assert mistakes(plan("defaults: {}"), ModelPlan)[0].startswith(
        "f:4:1: defaults: unknown key; the keys here are name"
    )


# --- mistakes in the YAML


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", ["3:1: a: given twice, first on line 1"]),
        ("12: x", ['1:1: 12: expected text as key, found 12; quote it: "12"']),
        ("no: x", ['1:1: no: expected text as key, found no; quote it: "no"']),
        ("~: x", ["1:1: '~': expected text as key, found nothing; quote it: \"~\""]),
        ("? [a]\n: x", ["1:3: expected text as key, found a list"]),
        ("a: &b {}\n<<: *b", ["2:1: '<<': merge keys are not read here; write the keys out"]),
        ('a: "\\ud800"', ["1:4: a: half a surrogate pair is no character; write \\U and eight digits"]),
    ],
)
def test_a_mistake_of_structure_is_said_among_the_others(mistakes: Read, text: str, said: list[str]) -> None:
    class Anything(Value):
        a: Any = None
        b: Any = None

    lines = [line for line in mistakes(text, Anything) if "unknown key" not in line]
    assert lines == [f"f:{line}" for line in said]


def test_a_key_given_twice_does_not_hide_other_mistakes(mistakes: Read) -> None:
    assert mistakes("hosts:\n  a: {ssh: a, cores: 0}\n  12: {ssh: b}\n  a: {}\n") == [
        "f:2:22: hosts.a.cores: expected 1 or more, found 0",
        'f:3:3: hosts.12: expected text as key, found 12; quote it: "12"',
        "f:4:3: hosts.a: given twice, first on line 2",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f: the file is empty"),
        ("# nothing\n---\n", "f: the file is empty"),
        ("- a\n- b\n", "f:1:1: expected a mapping (key: value), found a list"),
        ("\n  just text", "f:2:3: expected a mapping (key: value), found 'just text'"),
        ("a: 1\n---\nb: 2\n", "f:2:1: not YAML: a second document begins here"),
        ("a:\n\tb: 1\n", "f:2:1: not YAML: a tab where only spaces may stand"),
        ("a:\n  - b\n c: d\n", "f:3:2: not YAML: does not line up with what is above"),
        ("a: b: c\n", "f:1:5: not YAML: a ':' that belongs to no key"),
        ("a: *b\n", "f:1:4: not YAML: an alias of nothing"),
        ("a: !!python/name:os.system x", f"f:1:4: tags are not read here; remove '{YAML_TAG}python/name:os.system'"),
        ("a: [b\nc: d\n", "f:2:2: not YAML: expected ',' or ']', but got ':'"),
        ("a: !b x\n", "f:1:4: tags are not read here; remove '!b'"),
        ("a: \x07\n", "f:1:4: the character U+0007 is not allowed in YAML"),
        (b"a: 1\nb: caf\xe9\n", "f:2: not UTF-8 text"),
        ("a: 1".encode("utf-16"), "f:1: not UTF-8 text"),
        ('a: "\\UFFFFFFFF"', "f:1:7: not YAML: an escape or version number out of range"),
        (f"a: {33 * '['}{33 * ']'}", "f:1:35: nested deeper than 32 levels"),
        ("a: &b [*b]\n", "f:1:4: nested deeper than 32 levels"),
        ("#" * (MAX_BYTES + 1), "f: larger than 1000000 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_at_all(mistakes: Read, text: str | bytes, said: str) -> None:
    assert mistakes(text) == [said]


def test_hints_say_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("a:\n\tb: 1\n")
    with pytest.raises(InputError) as caught:
        load(file, Inventory)
    assert caught.value.hint == "indent with spaces"


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(10 * ['*' + a])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a {1: x, 1: x}\n" + "b: &b [" + 20_000 * "*a, " + "]",
        "a: [" + 400_000 * "x," + "]",
        "[" * 900_000,
        "{" * 900_000,
        "- " * 450_000,
        "? " * 450_000,
        "a: '" + 900_000 * "\n",
        "a: " + 900_000 * "9",
        "a: !" + 900_000 * "b",
        "%YAML 1." + 900_000 * "1",
        "".join(f"{' ' * depth}a:\n" for depth in range(1300)),
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.timeout(60)
def test_an_attack_ends_soon(mistakes: Read, text: str) -> None:
    assert mistakes(text)


def test_aliases_are_followed_and_mistakes_in_them_placed_where_they_stand(mistakes: Read) -> None:
    assert mistakes("hosts:\n  a: &a {ssh: {host: a}}\n  b: *a\n") == [
        "f:1:1: hosts a and b share the work folder ~/.edgesplit; give each its own"
    ]
    assert mistakes("hosts:\n  a: &a {ssh: a, cores: 0}\n  b: *a\n") == [
        "f:2:25: hosts.a.cores: expected 1 or more, found 0",
        "f:2:25: hosts.b.cores: expected 1 or more, found 0",
    ]


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"\xef\xbb\xbfhosts:\r\n  a:\r\n    ssh: a\r\n")
    assert list(load_inventory(file).hosts) == ["a"]


def test_a_path_that_is_no_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    for path, said in ((Path("absent"), "No such file or directory"), (Path(), "Is a directory")):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {said}$"):
            load_inventory(path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^f: Permission denied$"):
        load_inventory(Path("f"))


def test_reading_a_file_needs_nothing_heavy() -> None:
    code = "import edgesplit.plan, edgesplit.inventory, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    heavy = {"torch", "transformers", "paramiko", "pulp", "rich", "typer", "starlette", "uvicorn", "numpy"}
    assert not heavy & set(loaded.split())


# --- any file at all


EXAMPLES = [(ROOT / name).read_text() for name in ("inventory/example.yaml", "plans/example.yaml")]
WORDS = sorted(set(re.findall(r"(\w+): ", "".join(EXAMPLES))))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | SCALARS, inner, max_size=4),
    max_leaves=20,
)
ROOTS = st.dictionaries(st.sampled_from(WORDS), TREES, max_size=6)
HOSTS = st.fixed_dictionaries({"hosts": st.dictionaries(st.sampled_from("ab"), ROOTS), "defaults": ROOTS})
SYNTAX = st.text(":-[]{}&*!|>'\"%@`#?, \n\tab01~<=.\\uUx", max_size=60)


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """An example in which a stretch is replaced."""
    text = draw(st.sampled_from(EXAMPLES))
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(SYNTAX | st.sampled_from(WORDS)) + text[start + draw(st.integers(0, 30)) :]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "f"


def reads_or_says_why(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for said in (refusal(file, Inventory), refusal(file, ModelPlan)):
        assert all(line.startswith(f"{file}:") for line in said.splitlines())
        assert "pydantic" not in said


def refusal(file: Path, kind: type[Value]) -> str:
    try:
        load(file, kind)
    except InputError as error:
        return error.message
    return ""


@given(
    st.binary(max_size=60)
    | (st.text(max_size=60) | SYNTAX | spoiled()).map(lambda text: text.encode("utf-8", "replace"))
)
@example(b'a: "\\UFFFFFFFF"')
@settings(max_examples=100, deadline=5000)
def test_any_text_is_read_or_refused(file: Path, content: bytes) -> None:
    reads_or_says_why(file, content)


@given(TREES | ROOTS | HOSTS)
@settings(max_examples=100, deadline=5000)
def test_any_yaml_is_read_or_refused(file: Path, tree: Any) -> None:
    reads_or_says_why(file, yaml.safe_dump(tree).encode("utf-8", "replace"))
