"""`make bench-model`: what stages take of memory, how true the accounts are, what precisions cost.

Prints tables, writes build/bench/model.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.model_memory import MOST, controller, epochs, made, stages
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "model.json"
FAMILIES = ROOT / "docs" / "models.md"
MACHINES = {"as it is": {}, "held to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}

say = Console(highlight=False)
Row = dict[str, Any]


def main() -> int:
    found = {"memory": memory(), "accounts": accounts(), "precision": precisions()}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=2) + "\n")
    say.print(f"written to {OUTPUT.relative_to(ROOT)}")
    return 0


def memory() -> dict[str, Any]:
    with made() as checkpoint:
        size = checkpoint.size / 1e9
        loaded = stages(checkpoint)
        show(f"A stage of a checkpoint of {size:.2f} GB in bfloat16: resident peaks above an idle runner", loaded)
        missed = [row for row in loaded if max(row["loading / stage"], row["with a forward / stage"]) > MOST]
        say.print(f"{len(loaded) - len(missed)} of {len(loaded)} within {MOST} of the stage's bytes.\n")
        shared = epochs(checkpoint)
        show("Epochs in one runner, one after the other beside the others, sealed", shared)
        cut = controller(checkpoint)
        show("The controller: resident peaks above an idle one, of opening the checkpoint (plan) and of cutting", cut)
    return {"bytes": checkpoint.size, "stages": loaded, "epochs": shared, "controller": cut}


def accounts() -> dict[str, Any]:
    few, every = run("bench.model_accounts"), of_all()
    show("What blocks cost as foretold without a weight, against runs: the worst error of any block", few)
    if every:
        told = "Of all {families} families, by docs/models.md: bytes exact in {bytes}, FLOPs within 2 % in {flops}.\n"
        say.print(told.format(**every))
    return {"families": few, "all": every}


def of_all() -> dict[str, int]:
    """What `make models` found and wrote."""
    text = " ".join(FAMILIES.read_text().split())
    pattern = r"can decode (?P<families>\d+) .*? bytes of (?P<bytes>\d+) .*? arithmetic of (?P<flops>\d+) within"
    found = re.search(pattern, text)
    return {name: int(count) for name, count in found.groupdict().items()} if found else {}


def precisions() -> dict[str, list[Row]]:
    found = {name: run("bench.model_precision", env) for name, env in MACHINES.items()}
    for name, rows in found.items():
        show(f"Precisions, {name}: CPU ms per token and layer, one core", rows)
    return found


def run(module: str, env: Mapping[str, str] | None = None) -> list[Row]:
    """In a process of its own, which reads these settings when it starts."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), **(env or {})}
    done = subprocess.run([sys.executable, "-m", module], stdout=subprocess.PIPE, text=True, env=whole, check=True)
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


def show(title: str, rows: Sequence[Row]) -> None:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    say.print(table)
    say.print()


if __name__ == "__main__":
    sys.exit(main())
