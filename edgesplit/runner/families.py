"""What a few families need to be told; all others are cut by structure alone.

Must not know: anything but names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`carried`: embeddings, by the last part of their path, that later layers read again, so that their output
    travels on beside the hidden state. `keeps`: attributes in which modules keep a sequence's state outside its cache.
    `joins`: may sequences of different lengths run as the rows of one batch? `whole`: must a prompt come in one piece?
    """

    carried: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    joins: bool = True
    whole: bool = False


_PLAIN = Family()
_TABLE = {
    "zamba": Family(carried=("embed_tokens",)),
    "zamba2": Family(carried=("embed_tokens",)),
    "gemma3n_text": Family(carried=("embed_tokens", "embed_tokens_per_layer")),
    "gemma4_text": Family(carried=("embed_tokens", "embed_tokens_per_layer")),
    "recurrent_gemma": Family(keeps=("recurrent_states", "conv1d_state")),
    "minimax": Family(joins=False),  # ignores the padding of its batch
}


def family(model_type: str) -> Family:
    return _TABLE.get(model_type, _PLAIN)
