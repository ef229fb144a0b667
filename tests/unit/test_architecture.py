"""The house rules that a test can hold: who is pure, who may import whom, what ships, how long anything may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from edgesplit.broadcast.archive import runner_archive

ROOT = Path(__file__).parents[2] / "edgesplit"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if "__pycache__" not in path.parts
}

# No clock, no socket, no file, no process, no chance: their tests are tables.
PURE = {
    *(
        "errors",
        "units",
        "values",
        "ansible",
        "split",
        "fleet",
        "model.blocks",
        "profiling.probes",
        "profiling.capacity",
        "profiling.news",
    ),
    *(
        "orchestrator.decide",
        "orchestrator.moving",
        "orchestrator.verdict",
        "orchestrator.admission",
        "orchestrator.likely",
        "orchestrator.event",
        "broadcast.transition",
        "broadcast.forecast",
        "broadcast.signing",
        "hosts.commands",
        "hosts.systemd",
        "hosts.known_hosts",
    ),
    *(
        "runner.wire",
        "runner.state",
        "runner.scheduler",
        "runner.manifest",
        "runner.text",
        "runner.families",
        "runner.typical",
    ),
    *("evaluation.record", "evaluation.metrics", "evaluation.charts"),
    *(name for name in MODULES if name.startswith("revision.") and not name.endswith("__init__")),
}
IMPURE = {
    *("asyncio", "concurrent", "datetime", "io", "multiprocessing", "os", "pathlib", "platform", "queue", "random"),
    *("secrets", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading"),
    *("time", "urllib", "uuid"),
    *("numpy", "paramiko", "rich", "safetensors", "starlette", "torch", "transformers", "typer", "uvicorn", "yaml"),
}
ARRAYS = {
    f"revision.{name}": {"numpy"} for name in ("relays", "fluid", "terms", "walks", "climb", "labels")
}  # arithmetic of matrices, and nothing else of it
VALUES = {"inventory", "plan"}  # they can read their file too, but pure modules take them as values

# Which folders a folder may import; "" are the modules beside the folders.
MAY_IMPORT = {
    "cli": {
        "",
        "orchestrator",
        "profiling",
        "revision",
        "broadcast",
        "hosts",
        "model",
        "lab",
        "evaluation",
        "simulation",
    },
    "orchestrator": {"", "profiling", "revision", "broadcast", "hosts", "model"},
    "profiling": {"", "broadcast", "hosts", "model"},
    "revision": {"", "model"},
    "broadcast": {"", "hosts", "model", "runner"},
    "hosts": {""},
    "lab": {""},
    "evaluation": {"", "revision", "model", "lab"},
    "simulation": {"", "orchestrator", "profiling", "revision", "model"},
    "model": {"", "runner"},
    "runner": set[str](),
    "installer": set[str](),
    "": set[str](),
}
BESIDE = [
    "errors",
    "units",
    "values",
    "document",
    "ansible",
    "packages",
    "inventory",
    "draft",
    "plan",
    "fleet",
    "split",
]  # each imports earlier ones
RUNNER_VALUES = {  # what the controller may import of the runner
    *("apikeys", "manifest", "wire", "state", "families", "generation", "owncode", "sampling", "sealing", "tokens"),
    *("anatomy", "hollow", "hidden", "stage", "cache", "precision", "quantised", "kernels", "arithmetic", "scheduler"),
}
RUNNER_PACKAGES = {"cryptography", "prometheus_client", "safetensors", "starlette", "torch", "transformers", "uvicorn"}
OPTIONAL = {"PIL"}  # the entry of a model that takes images, and then only
SHIPPED = 144 * 2**10  # bytes of the runner archive: an eighth of a second at 10 Mbit/s, before anything else crosses

MAX_LINES = 400
MAX_FUNCTION = 60
WITHOUT_DOCSTRING_RULE = {"__main__"}  # two lines
HEAVY = ["torch", "transformers", "paramiko", "pydantic", "pulp", "highspy", "uvicorn", "yaml"]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def folder(module: str) -> str:
    return module.rpartition(".")[0]


@cache
def imports(module: str, *, typing_too: bool = True) -> frozenset[str]:
    """Everything a module imports, anywhere in it: ours as in MODULES, others by their first name."""
    found: set[str] = set()
    for node in _nodes(tree(module), typing_too):
        if isinstance(node, ast.Import):
            found.update(_known(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                assert node.level == 1, f"{module} imports from above its folder"
                base = ".".join(part for part in ("edgesplit", folder(module), base) if part)
            found.update(_known(f"{base}.{alias.name}") for alias in node.names)
    return frozenset(found)


def _nodes(node: ast.AST, typing_too: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not typing_too:
            continue
        yield child
        yield from _nodes(child, typing_too)


def _known(name: str) -> str:
    """The module of ours a dotted name means, or the package of another."""
    if name.partition(".")[0] != "edgesplit":
        return name.partition(".")[0]
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in MODULES:
                return candidate
    return "__init__"


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES}


# --- purity ---


def test_the_lists_name_modules_that_exist() -> None:
    assert set(MODULES) >= PURE | VALUES | set(BESIDE)
    assert {folder(module) for module in MODULES} == set(MAY_IMPORT)
    assert {module for module in MODULES if not folder(module)} == {*BESIDE, "__init__", "__main__"}


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_nothing_that_acts(module: str) -> None:
    assert (imports(module) & IMPURE) - ARRAYS.get(module, set()) == set()
    strangers = ours(module) - PURE - VALUES
    assert {name for name in strangers if not name.endswith("__init__")} == set()


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_open_and_print_nothing(module: str) -> None:
    called = {
        node.func.id
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {"open", "print", "input", "exec", "eval", "__import__"} == set()


# --- direction ---


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__main__"}))
def test_imports_point_one_way(module: str) -> None:
    here = folder(module)
    for other in ours(module) - {"__init__"}:
        there = folder(other)
        if there == here == "":
            assert BESIDE.index(other) < BESIDE.index(module), f"{module} imports {other}"
        elif there != here:
            assert there in MAY_IMPORT[here], f"{module} imports {other}"
        if there == "runner" != here:
            assert other.removeprefix("runner.") in RUNNER_VALUES, f"{module} imports {other}"


def test_no_module_imports_itself_in_the_end() -> None:
    """Imports for type checkers do not count: they are never carried out."""
    graph = {module: imports(module, typing_too=False) & set(MODULES) for module in MODULES}
    while leaves := {module for module, needs in graph.items() if not needs & set(graph)}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert sorted(graph) == []


# --- what ships ---


@pytest.mark.parametrize("module", sorted(name for name in MODULES if folder(name) == "runner"))
def test_the_runner_needs_nothing_but_itself_and_its_packages(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1 or (node.module or "").partition(".")[0] != "edgesplit"
    foreign = imports(module) - set(MODULES) - set(sys.stdlib_module_names)
    assert foreign <= RUNNER_PACKAGES | OPTIONAL


def test_the_packages_a_host_is_asked_for_and_given_are_those_the_runner_imports() -> None:
    from edgesplit import packages
    from edgesplit.runner.measure import PACKAGES

    assert set(PACKAGES) == set(packages.imports()) == RUNNER_PACKAGES
    assert {package.name for package in packages.wanted()} >= set(packages.NEEDED)


def test_what_installs_packages_needs_none() -> None:
    assert imports("installer.build") <= set(sys.stdlib_module_names)


def test_the_archive_is_small_and_always_the_same() -> None:
    archive = runner_archive()
    assert len(archive.data) <= SHIPPED
    again = runner_archive.__wrapped__()
    assert again == archive
    assert archive.name == f"runner-{archive.sha256[:12]}.pyz"


def test_the_archive_runs_alone(tmp_path: Path) -> None:
    file = tmp_path / runner_archive().name
    file.write_bytes(runner_archive().data)
    assert set(zipfile.ZipFile(file).namelist()) == {
        "__main__.py",
        *(f"runner/{p.name}" for p in (ROOT / "runner").glob("*.py")),
    }
    words = [sys.executable, "-I", file, "stream", '{"interval": 0.1}']
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as reading:
        assert reading.stdout is not None
        found = [json.loads(reading.stdout.readline()) for _ in range(3)]
        reading.stdout.close()
        assert reading.wait(timeout=60) == 0  # nobody reads
    assert found[0]["cores"] > 0
    assert found[0]["at"] < found[1]["at"] < found[2]["at"]


# --- words and sizes ---


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.rpartition(".")[2] != "__init__"))
def test_every_module_says_what_it_must_not_know(module: str) -> None:
    docstring = ast.get_docstring(tree(module)) or ""
    if folder(module) == "cli":  # said once for all verbs
        docstring += ast.get_docstring(tree("cli.__init__")) or ""
    assert module in WITHOUT_DOCSTRING_RULE or "Must not know" in docstring


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_long(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_FUNCTION, node.name


# --- the command line starts fast ---


def test_the_command_line_imports_nothing_heavy() -> None:
    words = f"import sys, edgesplit.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_help_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgesplit", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    for verb in ("profile", "plan", "deploy", "status", "generate", "watch", "down", "unlock"):
        assert verb in done.stdout
