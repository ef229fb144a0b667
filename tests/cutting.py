"""What planning and cutting take, as the kernel counts it: `python -m cutting FOLDER CACHE [SCHEME]`, a process of its
own.

The last line of the answer is a JSON object: the peaks above an idle controller of opening the checkpoint, which is
all of it that planning needs, and of cutting it and reading all shards, as a push does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - code is no part of what planning takes
from loading import forget_peak, resident

import edgesplit.model.structure  # noqa: F401 - as above
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.runner.precision import Scheme


def peaks(folder: Path, cache: Path, scheme: Scheme | None = None) -> dict[str, int]:
    words = [sys.executable, "-m", "cutting", str(folder), str(cache), *([scheme] if scheme else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(folder: Path, cache: Path, scheme: Scheme | None = None) -> None:
    torch.set_num_threads(1)
    idle = resident("VmRSS")
    forget_peak()
    checkpoint = open_checkpoint(folder, "large", "bfloat16", quantization=scheme)
    planned = resident("VmHWM") - idle
    forget_peak()
    for shard in cut(checkpoint, cache).all().values():
        for _ in shard.chunks():
            pass
    print(json.dumps({"planned": planned, "cut": resident("VmHWM") - idle}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])  # type: ignore[arg-type]
