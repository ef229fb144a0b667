"""How many tokens of a text its activations give away at each boundary, measured on the checkpoint itself.

Two attackers, who both know the model's weights and see what crosses a boundary. One takes for each position the token
whose embedding is nearest (by cosine) to the activation. The other first learns a linear map from activations to
embeddings on texts of which it knows both (ridge regression, closed form), then takes the nearest. What they recover
is a lower bound on what a better attacker would: a low share limits exposure, no more.

Must not know: hosts, splits. Holds the weights of one block at a time, or of those that stay together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from edgesplit.errors import InputError
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.stage import Stage
from edgesplit.runner.tokens import NoTokenizer, load_tokenizer
from edgesplit.values import Value

LONGEST = 256  # tokens of a text that are used
MOST = 16384  # tokens in all; an attacker with more learns little more of a linear map
EVERY = 4  # one text of so many is kept from the second attacker, and tried
RIDGE = 1e-3  # of the mean variance of an activation
PIECE = 8192  # rows of the embedding compared at once


class Exposure(Value):
    """What is recovered of the tokens behind block `block`, as a share of them: by the nearest embedding (None where
    nothing that crosses there is of its width), and by a linear map learned before, of all that crosses."""

    block: int
    nearest: float | None
    probe: float

    @property
    def worst(self) -> float:
        return max(self.nearest or 0.0, self.probe)


class Audit(Value):
    """`taught`: tokens the linear map learned from; `tried`: tokens of the other texts, of which the shares are.
    `guess`: the share of these that whoever sees nothing gets right, by always saying the commonest token taught."""

    taught: int
    tried: int
    guess: float
    exposures: tuple[Exposure, ...]


def read_texts(file: Path) -> list[str]:
    """The texts of a file, separated by empty lines, or one per line where there are none. Raises InputError."""
    try:
        whole = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text") from error
    texts = [text.strip() for text in whole.split("\n\n" if "\n\n" in whole.strip() else "\n")]
    return [text for text in texts if text]


def audit(
    folder: Path,
    dtype: str,
    texts: Sequence[str],
    progress: Callable[[int], None] = lambda _: None,
    *,
    glued: Sequence[tuple[int, int]] = (),
    trusted: bool = False,
) -> Audit:
    """An Exposure per boundary, from behind the embedding to behind the last layer; `progress` gets the block done.

    `glued`: runs of blocks without a boundary, first and last. `trusted`: the checkpoint's own code may run.
    Raises InputError where the texts are too few, or cannot be read.
    """
    tokens = _tokens(folder, texts, trusted=trusted)
    if len(tokens) < 2:
        raise InputError("the audit needs at least two texts", "give a file with one text per line")
    every = min(EVERY, len(tokens))
    tried = tokens[every - 1 :: every]
    tokens = [text for number, text in enumerate(tokens) if number % every != every - 1]
    cut = sum(map(len, tokens))
    tokens += tried
    truth = torch.cat(tokens)
    torch.set_num_threads(_threads())
    found = []
    for block, crossing, table in _activations(folder, dtype, tokens, glued, trusted=trusted):
        together = torch.cat(crossing, dim=1)
        probed = _probed(together[:cut], table[truth[:cut]].float(), together[cut:])
        alike = [each[cut:] for each in crossing if each.shape[1] == table.shape[1]]
        found.append(
            Exposure(
                block=block,
                nearest=max((_share(each, table, truth[cut:]) for each in alike), default=None),
                probe=_share(probed, table, truth[cut:]),
            )
        )
        progress(block)
    commonest = int(truth[:cut].mode().values)
    return Audit(
        taught=cut,
        tried=len(truth) - cut,
        guess=float((truth[cut:] == commonest).float().mean()),
        exposures=tuple(found),
    )


def _threads() -> int:
    """As many as cores are idle: threads of torch wait for each other in loops, and where another process has a core,
    two of them take many times as long as one."""
    cores = os.cpu_count() or 1
    return max(1, cores - round(os.getloadavg()[0]))


def _tokens(folder: Path, texts: Iterable[str], *, trusted: bool) -> list[torch.Tensor]:
    try:
        tokenizer = load_tokenizer(folder, trusted=trusted)
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from error
    if isinstance(tokenizer, NoTokenizer):
        raise InputError(f"{folder} has no tokenizer, so no text can be audited")
    found: list[torch.Tensor] = []
    for text in texts:
        if sum(map(len, found)) >= MOST:
            break
        ids = tokenizer(text, truncation=True, max_length=LONGEST).input_ids
        if len(ids) > 1:
            found.append(torch.tensor(ids))
    return found


def _activations(
    folder: Path, dtype: str, tokens: Sequence[torch.Tensor], glued: Sequence[tuple[int, int]], *, trusted: bool
) -> Iterator[tuple[int, list[torch.Tensor], torch.Tensor]]:
    """Each block with a boundary behind it, what crosses there, and the embedding table."""
    arrived: list[Any] = [ids[None] for ids in tokens]
    block = layers = 0
    while block <= layers:
        first = block
        while any(begin <= block < end for begin, end in glued):
            block += 1
        stage = Stage.load(folder, first, block, dtype, trusted=trusted)
        if not first:
            table, layers = stage.model.get_input_embeddings().weight.detach(), stage.range.layers
        arrived = [stage.forward(stage.sequence(), each) for each in arrived]
        yield block, _crossing(arrived), table
        block += 1


def _crossing(texts: Iterable[Hidden]) -> list[torch.Tensor]:
    """The activations, and what some families send along with them (the embeddings, even); each a row per token."""
    values = ([value for value in (*each.tensors, *each.carried) if value is not None] for each in texts)
    return [torch.cat([value.flatten(0, 1).flatten(1).float() for value in kind]) for kind in zip(*values, strict=True)]


def _probed(known: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """What the linear map learned from (known, targets) makes of `seen`; ridge regression in its dual form where there
    are fewer examples than features."""
    mean, scale = known.mean(0), known.std(0).clamp(min=1e-6)
    x, new = (known - mean) / scale, (seen - mean) / scale
    middle = targets.mean(0)
    y = targets - middle
    if x.shape[0] < x.shape[1]:
        gram = x @ x.T
        gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
        return new @ (x.T @ torch.linalg.solve(gram, y)) + middle
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
    return new @ torch.linalg.solve(gram, x.T @ y) + middle


def _share(vectors: torch.Tensor, table: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the vectors, how many are nearest by cosine to the embedding of their own token."""
    wanted = torch.nn.functional.normalize(vectors, dim=1)
    best = torch.full((len(wanted),), -2.0)
    guess = torch.zeros(len(wanted), dtype=torch.long)
    for start in range(0, len(table), PIECE):
        rows = torch.nn.functional.normalize(table[start : start + PIECE].float(), dim=1)
        value, place = (wanted @ rows.T).max(1)
        better = value > best
        best = torch.where(better, value, best)
        guess = torch.where(better, place + start, guess)
    return float((guess == truth).float().mean())
