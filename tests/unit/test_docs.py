"""The documents say what the code says: states, modules, verbs, exit codes, links."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from edgesplit import errors
from edgesplit.cli.app import app
from edgesplit.runner.state import TABLE, Event, State

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAPER = (ROOT / "docs" / "paper.md").read_text()
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
# What a pure module has no business with: clocks, chance, sockets, processes, threads, terminals, tensors.
IMPURE = {"asyncio", "datetime", "paramiko", "random", "secrets", "socket", "ssl", "subprocess", "tempfile",
          "threading", "time", "torch", "transformers", "typer", "uvicorn"}  # fmt: skip


def section(text: str, name: str) -> str:
    """What stands between <!-- name --> and <!-- /name -->."""
    _, _, rest = text.partition(f"<!-- {name} -->\n")
    inside, end, _ = rest.partition(f"<!-- /{name} -->")
    assert end, f"no section {name}"
    return inside


# --- states -----------------------------------------------------------------------------------------------------------


def picture(table: dict[tuple[State, Event], State]) -> list[str]:
    """Events with one origin in a row, one after another; events with several origins a line each."""
    origins: dict[tuple[Event, State], list[State]] = {}
    for (state, event), target in table.items():
        origins.setdefault((event, target), []).append(state)
    single = {states[0]: (event, target) for (event, target), states in origins.items() if len(states) == 1}
    assert len(single) == sum(len(states) == 1 for states in origins.values()), "two ways on: draw it otherwise"
    (state,) = set(single) - {target for _, target in single.values()}
    row = state.value
    while state in single:
        event, state = single.pop(state)
        row += f" --{event.value}--> {state.value}"
    assert not single, "not one row: draw it otherwise"
    several = [(event, target, states) for (event, target), states in origins.items() if len(states) > 1]
    return [row] + [f"{' | '.join(s.value for s in states)} --{e.value}--> {t.value}" for e, t, states in several]


def states(table: dict[tuple[State, Event], State]) -> str:
    """The section of docs/architecture.md."""
    head = ["state", *(event.value for event in Event)]
    rows = [
        [state.value, *(table[state, event].value if (state, event) in table else "-" for event in Event)]
        for state in State
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
    return "\n".join(["```", *picture(table), "```", "", *lines, ""])


def test_the_life_of_an_epoch_is_drawn_from_its_table() -> None:
    assert section(ARCHITECTURE, "states") == states(TABLE)


# --- modules ----------------------------------------------------------------------------------------------------------


def folder_map() -> Iterator[tuple[str, bool]]:
    """Every module of the map, as a path, and whether it is marked as pure."""
    parents: list[str] = []
    for line in section(ARCHITECTURE, "map").splitlines()[1:-1]:
        words = line.split()
        parents = parents[: (len(line) - len(line.lstrip())) // 2]
        if words[0].endswith("/"):
            parents.append(words[0])
        else:
            yield "".join(parents) + words[0], words[1] == "o"


def modules() -> list[str]:
    found = ROOT.glob("edgesplit/**/*.py")
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py")


def test_every_module_is_on_the_map_and_no_other() -> None:
    assert sorted(path for path, _ in folder_map()) == modules()


@pytest.mark.parametrize("module", [path for path, pure in folder_map() if pure])
def test_what_is_marked_as_pure_imports_nothing_impure(module: str) -> None:
    nodes = list(ast.walk(ast.parse((ROOT / module).read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not IMPURE & {name.split(".")[0] for name in names}


def test_the_paper_has_every_row_once() -> None:
    assert re.findall(r"^\| (R\d+) ", PAPER, re.MULTILINE) == [f"R{number}" for number in range(1, 23)]


def test_the_paper_names_modules_and_tests_that_exist() -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?\.py)`", PAPER))
    tests = {name for name in named if name.startswith("test_")}
    assert {name for name in named - tests if not (ROOT / "edgesplit" / name).is_file()} == set()
    assert {name for name in tests if not list((ROOT / "tests").rglob(name))} == set()


# --- the command line -------------------------------------------------------------------------------------------------


def commands_shown() -> Iterator[tuple[str, list[str]]]:
    """Every `edgesplit VERB WORDS` in code of the README."""
    for code in re.findall(r"```.*?```|`[^`\n]+`|^ {4,}edgesplit .*$", README, re.DOTALL | re.MULTILINE):
        for verb, words in re.findall(r"\bedgesplit ([a-z]+)\b([^`\n]*)", code):
            yield verb, words.split()


def verbs() -> dict[str, typer.core.TyperCommand]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group.commands  # type: ignore[return-value]


def test_the_readme_shows_every_verb_and_no_other() -> None:
    assert {verb for verb, _ in commands_shown()} == set(verbs())


def test_options_shown_with_a_verb_are_its_own() -> None:
    for verb, words in commands_shown():
        known = {name for parameter in verbs()[verb].params for name in parameter.opts}
        assert {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)} <= known, (verb, words)


def test_the_readme_has_every_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and "exit_code" in vars(kind)]
    codes = {(kind.exit_code, kind.__name__) for kind in kinds}
    rows = re.findall(r"^\| (\d+) \| (`[^|]+) \|", README, re.MULTILINE)
    assert {(int(code), name) for code, names in rows for name in re.findall(r"`(\w+)`", names)} == codes


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_cost_model_has_the_constants_of_the_code() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)\.([A-Z_]+)` \| ([\d.e-]+) \|", (ROOT / "docs" / "cost-model.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 6
    for module, name, value in rows:
        assert getattr(importlib.import_module(f"edgesplit.{module}"), name) == float(value), name
