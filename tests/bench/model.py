"""`make bench-model`: what precisions take, with this processor's units and without. Writes build/bench/model.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "model.json"
MACHINES = {"as it is": {}, "held to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}

say = Console(highlight=False)


def main() -> int:
    found = {name: precisions(env) for name, env in MACHINES.items()}
    for name, rows in found.items():
        table = Table(*rows[0], box=None, pad_edge=False, title=f"CPU ms per token and layer, one core, {name}")
        for row in rows:
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
        say.print(table)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=2) + "\n")
    say.print(f"\nwritten to {OUTPUT.relative_to(ROOT)}")
    return 0


def precisions(env: dict[str, str]) -> list[dict[str, Any]]:
    """In a process of its own, which reads these settings when it starts."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), **env}
    command = [sys.executable, "-m", "bench.model_precision"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=whole, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


if __name__ == "__main__":
    sys.exit(main())
