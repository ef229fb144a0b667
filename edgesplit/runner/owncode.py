"""A checkpoint's own code, imported where the plan trusts it: from its folder alone, nothing is fetched.

It is imported as a package named by its content, from a folder of this process. So two versions are two packages, and
the checkpoint's folder may go while its classes live.
Must not know: what the classes are for.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any


class CodeError(ValueError):
    """The code is not there, or cannot be run."""


def own_class(folder: Path, file: str, role: str) -> Any:
    """The class that `auto_map` of a JSON file names for a role, the last of several; None where it names none.

    Raises CodeError, and OSError or ValueError for a file that cannot be read.
    """
    path = folder / file
    roles = json.loads(path.read_text("utf-8")).get("auto_map") if path.is_file() else None
    named = roles.get(role) if isinstance(roles, dict) else roles if role == "AutoTokenizer" else None
    several = named if isinstance(named, list) else [named]
    references = [each for each in several if each is not None]
    return _load(folder, str(references[-1])) if references else None


def _load(folder: Path, reference: str) -> Any:
    module, _, name = reference.rpartition(".")
    if not module.isidentifier() or not (folder / f"{module}.py").is_file():
        raise CodeError(f"{reference!r} is no class of a file beside its config")
    try:
        return getattr(importlib.import_module(f"{_package(folder)}.{module}"), name)
    except Exception as error:  # it is a program of the checkpoint and may raise anything
        raise CodeError(f"its own code cannot be run: {type(error).__name__}: {error}") from error


def _package(folder: Path) -> str:
    sources = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    content = hashlib.sha256(repr(sources).encode()).hexdigest()
    package = _shelf() / f"checkpoint_{content[:16]}"
    if not package.exists():
        part = package.with_suffix(".part")
        part.mkdir(exist_ok=True)
        for name, source in {**sources, "__init__.py": b""}.items():
            (part / name).write_bytes(source)
        part.rename(package)
        importlib.invalidate_caches()
    return package.name


@cache
def _shelf() -> Path:
    """On the path of imports, and gone with this process."""
    shelf = Path(tempfile.mkdtemp(prefix="edgesplit-"))
    atexit.register(shutil.rmtree, shelf, ignore_errors=True)
    sys.path.append(str(shelf))
    return shelf
