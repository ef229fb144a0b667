"""What the hub and the way to it raise is told in words."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from httpx2 import ProxyError, ReadTimeout

from edgesplit.errors import ModelError
from edgesplit.model.hub import download


@pytest.mark.parametrize(
    "error", [ReadTimeout("it takes too long"), ProxyError("403"), RuntimeError("xet"), OSError(28, "No space left")]
)
def test_a_download_that_breaks_off(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="model a/b at v1 cannot be downloaded: ") as caught:
        download("a/b", "v1", Path)
    assert "check the network and the room on the disk" in caught.value.hint
