"""The runner as one file: a zip of edgesplit/runner that Python runs as it is, named by its content.

Must not know: where it goes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_START = "import sys\nfrom runner.__main__ import main\nsys.exit(main())\n"
_CODE = "runner/code"  # where runner/measure.py looks for it
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's own; a fixed time makes equal sources equal archives


@dataclass(frozen=True)
class Archive:
    name: str
    sha256: str
    data: bytes


@cache
def runner_archive() -> Archive:
    folder = Path(__file__).parent.parent / "runner"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _START)
        for source in sorted(folder.glob("*.py")):
            entry = zipfile.ZipInfo(f"runner/{source.name}", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, source.read_bytes())
    data = buffer.getvalue()
    sha = hashlib.sha256(data).hexdigest()
    return Archive(f"runner-{sha[:12]}.pyz", sha, data)


def with_code(archive: Archive, code: Mapping[str, bytes]) -> bytes:
    """The archive with a checkpoint's own code in it, for hosts to measure."""
    buffer = io.BytesIO(archive.data)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as more:
        for name, source in code.items():
            more.writestr(f"{_CODE}/{name}", source)
    return buffer.getvalue()
