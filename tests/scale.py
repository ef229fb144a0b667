"""How many times as many random examples as usual: EDGESPLIT_EXAMPLES=50 pytest tests/unit/test_solver.py"""

from __future__ import annotations

import os

SCALE = int(os.environ.get("EDGESPLIT_EXAMPLES", "1"))
