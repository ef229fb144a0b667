"""The caches of sequences on one stage: alone, or several as the rows of one batch; rolled back, taken out, put in.

A layer that is not ours has a cache entry too, which holds nothing and counts tokens, as masks and positions ask it.
Must not know: weights, sockets, requests, epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from .entries import (
    JOINED,
    CacheError,
    Exported,
    Row,
    can_crop,
    copied,
    counting,
    fill,
    read,
    settle,
    stays_croppable,
    write,
)

Layers = dict[int, dict[str, Any]]
Keepers = Mapping[str, tuple[nn.Module, str]]  # a module and the name of its attribute


@dataclass(eq=False)
class Sequence:
    """One request on one stage. `tokens`: how many positions it has seen. `rows`: the batch that holds its cache."""

    tokens: int = 0
    rows: Rows | None = None
    marked: Mark | None = None


@dataclass(eq=False)
class Rows:
    """Sequences in the rows of one cache, in front of the shorter ones padding, up to `length` positions each.

    `kept`: what the model's modules keep for these rows outside the cache.
    """

    cache: Any
    members: list[Sequence]
    length: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def padding(self) -> list[int]:
        """Per row, in positions."""
        return [self.length - member.tokens for member in self.members]


@dataclass(frozen=True)
class Mark:
    """A place to roll back to: `tokens`, and a copy of what cannot be cut back."""

    tokens: int
    layers: Layers
    kept: dict[str, Any]


class Caches:
    """Of one stage. `own`: the indices of its layers' entries. `keepers`: where modules keep state outside the cache,
    by its name."""

    def __init__(
        self, config: PreTrainedConfig, own: range, device: Any, keepers: Keepers = MappingProxyType({}), *, joins: bool
    ) -> None:
        self._config, self._own, self._device, self._keepers = config, own, device, keepers
        fresh = getattr(self._fresh(0), "layers", [])
        self.joins = joins and not keepers and all(type(fresh[index]) in JOINED for index in own)
        # Does any layer, ours or not, attend to what was before? Without, padding that is through leaves no trace.
        self.attends = any(isinstance(entry, CacheLayerMixin) for entry in fresh)
        self._idle = {path: copy.deepcopy(getattr(*keeper)) for path, keeper in keepers.items()}

    def _fresh(self, tokens: int) -> Any:
        cache = DynamicCache(config=self._config)
        for index, entry in enumerate(cache.layers):
            if index not in self._own:
                counting(entry).advance(tokens)
        return cache

    def _rows(self, members: list[Sequence], length: int = 0) -> Rows:
        return Rows(self._fresh(length), members, length, copy.deepcopy(self._idle))

    # --- running ---

    def together(self, group: Many[Sequence]) -> bool:
        """Can these run in one forward? Not where a family's cache cannot be joined, nor old ones with new ones."""
        if len(group) == 1 or self._is_batch(group):
            return True
        fresh = [not sequence.tokens for sequence in group]
        return self.joins and (all(fresh) or not any(fresh))

    @staticmethod
    def _is_batch(group: Many[Sequence]) -> bool:
        rows = group[0].rows
        return rows is not None and rows.members == list(group)

    def gather(self, group: Many[Sequence]) -> Rows:
        """The batch of exactly these sequences, in this order; made when it is not there yet. Making it copies their
        caches, so the same group in every step is free."""
        rows = group[0].rows
        if rows is not None and self._is_batch(group):
            return rows
        if not any(sequence.tokens for sequence in group):
            for sequence in group:
                self.drop(sequence)
            rows = self._rows(list(group))
            for sequence in group:
                sequence.rows = rows
            return rows
        left = {id(sequence.rows): sequence.rows for sequence in group if sequence.rows is not None}
        rests = [[member for member in rows.members if member not in group] for rows in left.values()]
        return self._regroup([list(group), *filter(None, rests)])[0]

    def drop(self, sequence: Sequence) -> None:
        """Forget its cache; the rows it was among close up."""
        rest = [member for member in sequence.rows.members if member is not sequence] if sequence.rows else []
        if rest:
            self._regroup([rest])
        sequence.rows = None

    def _regroup(self, groups: list[list[Sequence]]) -> list[Rows]:
        made = [self._compose(group) for group in groups]
        for rows in made:
            for member in rows.members:
                member.rows = rows
        return made

    def _compose(self, members: list[Sequence]) -> Rows:
        length = max(member.tokens for member in members)
        made = self._rows(members, length)
        for index in self._own:
            fill(made.cache.layers[index], [_row(member, index) for member in members], length)
        return made

    def advance(self, rows: Rows, positions: int, padding: Many[int] | None) -> None:
        """A forward of so many positions is through."""
        rows.length += positions
        for row, member in enumerate(rows.members):
            member.tokens += positions - (padding[row] if padding else 0)
        for index, entry in enumerate(rows.cache.layers):
            if index not in self._own:
                entry.advance(positions)

    def enter(self, rows: Rows) -> None:
        """Give the model's modules what they keep for these rows."""
        for path, keeper in self._keepers.items():
            setattr(*keeper, rows.kept[path])

    def leave(self, rows: Rows) -> None:
        rows.kept = {path: getattr(*keeper) for path, keeper in self._keepers.items()}

    # --- rolling back ---

    def mark(self, sequence: Sequence) -> None:
        """Remember this place, so that `crop` finds back to it whatever the family."""
        rows = self.gather([sequence])
        solid = [index for index in self._own if not stays_croppable(rows.cache.layers[index])]
        layers = {index: copied(rows.cache.layers[index]) for index in solid}
        sequence.marked = Mark(sequence.tokens, layers, copy.deepcopy(rows.kept))

    def crop(self, sequence: Sequence, count: int) -> None:
        """Take the last `count` tokens back. Raises CacheError where only a mark would do and there is none there."""
        rows, mark = self.gather([sequence]), sequence.marked
        if not 0 <= count <= sequence.tokens:
            raise CacheError(f"{count} of {sequence.tokens} tokens cannot be taken back")
        solid = [index for index in self._own if not can_crop(rows.cache.layers[index])]
        if (solid or self._keepers) and (mark is None or mark.tokens != sequence.tokens - count):
            raise CacheError("this model's state cannot be cut back; mark the place before")
        for index, entry in enumerate(rows.cache.layers):
            if index not in self._own:
                entry.advance(-count)
            elif mark is not None and index in mark.layers and mark.tokens == sequence.tokens - count:
                vars(entry).update(copy.deepcopy(mark.layers[index]))
            elif count:
                entry.crop(-count)
        if mark is not None and self._keepers:
            rows.kept = copy.deepcopy(mark.kept)
        sequence.tokens -= count
        rows.length -= count

    # --- moving ---

    def export(self, sequence: Sequence) -> Exported:
        """A copy of its cache on the CPU; the sequence goes on."""
        rows = self.gather([sequence])
        exported = Exported(sequence.tokens, {}, {})
        for index in self._own:
            for name, value in vars(rows.cache.layers[index]).items():
                write(exported, f"{index}/{name}", value)
        for path, value in rows.kept.items():
            write(exported, f"kept/{path}", value)
        return exported

    def adopt(self, exported: Exported) -> Sequence:
        """The sequence again, from what stages exported that held at least our layers. Raises CacheError."""
        sequence = Sequence(exported.tokens)
        rows = self._rows([sequence], exported.tokens)
        found = {int(name.partition("/")[0]) for name in exported.plain if name[0].isdigit()}
        if exported.tokens and (absent := set(self._own) - found):
            raise CacheError(f"the exported cache lacks layer {min(absent)}")
        for index in self._own:
            entry = rows.cache.layers[index]
            for name in [*vars(entry)]:
                read(exported, f"{index}/{name}", entry, name, self._device)
            settle(entry)
        for path, (module, attribute) in self._keepers.items():
            read(exported, f"kept/{path}", module, attribute, self._device)
        self.leave(rows)
        sequence.rows = rows
        return sequence


def _row(member: Sequence, index: int) -> Row:
    rows = member.rows
    assert rows is not None  # noqa: S101 - it has tokens, so it has a cache
    return Row(rows.cache.layers[index], rows.members.index(member), member.tokens)
