"""What runs on a host as one file: a zip that Python runs as it is, named by its content. The runner, edgesplit/runner;
and what installs its packages, edgesplit/installer with this machine's pip.

Must not know: where it goes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_START = "import sys\n{main}\nsys.exit(main())\n"
_RUNNER = (
    'if sys.argv[1:2] == ["control"]:\n    from runner.knock import main\nelse:\n    from runner.__main__ import main'
)
_CODE = "runner/code"  # where runner/measure.py looks for it
_HERE = Path(__file__).parent.parent
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's own; a fixed time makes equal sources equal archives


@dataclass(frozen=True)
class Archive:
    name: str
    sha256: str
    data: bytes


@cache
def runner_archive() -> Archive:
    folder = _HERE / "runner"
    sources = {f"runner/{source.name}": source.read_bytes() for source in sorted(folder.glob("*.py"))}
    return _pack("runner", _RUNNER, sources)


@cache
def installer_archive() -> Archive:
    spec = find_spec("pip")
    assert spec is not None  # noqa: S101 - it is one of our requirements
    assert spec.origin is not None  # noqa: S101
    pip = Path(spec.origin).parent
    files = (file for file in sorted(pip.rglob("*")) if file.is_file() and file.suffix != ".pyc")
    sources = {f"pip/{file.relative_to(pip).as_posix()}": file.read_bytes() for file in files}
    return _pack(
        "installer", "from build import main", {"build.py": (_HERE / "installer" / "build.py").read_bytes(), **sources}
    )


def _pack(name: str, main: str, sources: Mapping[str, bytes]) -> Archive:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _START.format(main=main))
        for path, source in sources.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, source)
    data = buffer.getvalue()
    sha = hashlib.sha256(data).hexdigest()
    return Archive(f"{name}-{sha[:12]}.pyz", sha, data)


def with_code(archive: Archive, code: Mapping[str, bytes]) -> bytes:
    """The archive with a checkpoint's own code in it, for hosts to measure."""
    buffer = io.BytesIO(archive.data)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as more:
        for name, source in code.items():
            more.writestr(f"{_CODE}/{name}", source)
    return buffer.getvalue()
