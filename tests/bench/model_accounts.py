"""A few families: what their blocks cost as foretold without a weight, against the same blocks that run."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from families import costs
from families.configs import FEW
from families.subject import Subject
from transformers.utils import logging

KINDS = {"weights": "weights", "cache": "cache", "sent": "boundaries", "flops": "FLOPs"}


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    print(json.dumps([row(family) for family in FEW]))


def row(family: str) -> dict[str, Any]:
    """The worst error of each kind, in percent, and how many figures were compared."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # some families print
        subject = Subject(family, Path(folder))
        subject.open()
        subject.legal = subject.allowed
        rows = [*costs.every_byte(subject), *costs.every_flop(subject)]
    worst = {name: max(100 * each.error for each in rows if each.kind == kind) for kind, name in KINDS.items()}
    return {"family": family, "what for": FEW[family], **{f"{name} %": error for name, error in worst.items()},
            "compared": len(rows)}  # fmt: skip


if __name__ == "__main__":
    main()
