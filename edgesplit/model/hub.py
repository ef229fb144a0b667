"""A checkpoint from the Hugging Face hub: downloaded, or out of the local cache; small files first.

Must not know: what the files are good for. The hub's exceptions are translated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgesplit.errors import ModelError
from edgesplit.model.headers import INDEX
from edgesplit.model.sidefiles import CODE, SIDE_FILES

_WEIGHTS = "*.safetensors"
# A second copy of the weights, which some owners add; of the folders, 1_Pooling is small.
_OTHER = ["[!1]*/*", "consolidated*"]
_COMMIT = 40  # characters of a commit's name
_FOLDER = "give the path of a downloaded folder as `model`"


def download(source: str, revision: str | None, check: Callable[[Path], object]) -> Path:
    """The snapshot's folder. `check` sees the small files before the weights are fetched, and may raise.

    Raises ModelError.
    """
    with _translated(source, revision):
        folder = _fetch(source, revision, [*SIDE_FILES, CODE, INDEX, "README.md"])
    check(folder)
    with _translated(source, revision):  # of the same commit, should a branch have moved meanwhile
        return _fetch(source, commit(folder) or revision, [_WEIGHTS, *SIDE_FILES, CODE, INDEX])


def commit(folder: Path) -> str | None:
    """The commit that a folder is a snapshot of; None where it is no snapshot of the hub's."""
    name = folder.name
    whole = len(name) == _COMMIT and set(name) <= set("0123456789abcdef")
    return name if whole and folder.parent.name == "snapshots" else None


def _fetch(source: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, allow_patterns=[*patterns], ignore_patterns=_OTHER))


@contextmanager
def _translated(source: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of the httpx that it uses
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{source} at {revision}" if revision else source
    try:
        yield
    except GatedRepoError as error:
        hint = "accept its licence on the hub's page, then log in with `hf auth login`"
        raise ModelError(f"model {source} is gated", hint) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {source} has no revision {revision}", "check `model.revision` in the plan") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "check the name in the plan; for a private model, log in with `hf auth login`"
        raise ModelError(f"there is no model {source} on the hub, and no such folder", hint) from error
    except LocalEntryNotFoundError as error:
        hint = f"check the network, or {_FOLDER}"
        raise ModelError(f"model {at} is not in the local cache and the hub is out of reach", hint) from error
    except (HTTPError, OSError, RuntimeError) as error:  # a way that broke off; the last is what xet raises
        hint = f"check the network and the room on the disk, or {_FOLDER}"
        raise ModelError(f"model {at} cannot be downloaded: {_first(error)}", hint) from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
