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
    `cache`: which function of sealed.py makes the family's own kind of cache. `returns`: a layer takes its state as its
    argument `state` and returns the new one as its second result. `ids`: the config's list of layers, counted from 1,
    that read token ids, which do not leave the entry. `every`: the config's number of layers after each of which what
    was computed so far is kept, for all later layers to read, so that it travels on too.
    `folded`: hidden states come several at once, in front of the rows; they cross boundaries behind the positions.
    """

    carried: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ("rope_deltas",)  # how far positions run ahead of tokens behind an image
    joins: bool | None = None  # None: where positions are given, or of no account
    whole: bool = False
    cache: str = ""
    returns: bool = False
    ids: str = ""
    every: str = ""
    folded: bool = False


_PLAIN = Family()
_TABLE = {
    "zamba": Family(carried=("embed_tokens",)),
    "zamba2": Family(carried=("embed_tokens",)),
    "gemma3n_text": Family(carried=("embed_tokens", "embed_tokens_per_layer"), folded=True),
    "gemma4_text": Family(carried=("embed_tokens", "embed_tokens_per_layer")),
    "recurrent_gemma": Family(keeps=("recurrent_states", "conv1d_state")),
    "minimax": Family(joins=False, cache="minimax"),  # it ignores the padding of its batch
    "rwkv": Family(cache="rwkv", returns=True),
    "xlstm": Family(cache="xlstm", returns=True),
    "moshi": Family(whole=True),  # a prompt sees all of itself, its cache keeps a window: in pieces it sees less
    "bloom": Family(joins=True),  # these three read positions off the mask
    "mpt": Family(joins=True),
    "opt": Family(joins=True),
    "git": Family(joins=False),  # it takes any mask for one of an image with text behind it
    "inkling2_text": Family(carried=("embed_tokens",), every="n_layers_per_attn_res_block"),
    "qwen4_exp_text": Family(ids="ple_layer_ids"),
    "paligemma": Family(joins=False, whole=True),  # positions count from 1; all of a prompt sees all of it
}


def family(*kinds: str) -> Family:
    """Of the first of these kinds of model that is known: of the whole model, then of its language model."""
    return next((_TABLE[kind] for kind in kinds if kind in _TABLE), _PLAIN)
