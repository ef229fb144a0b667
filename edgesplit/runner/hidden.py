"""What goes into a stage and what comes out of it: prompts, and the values that cross a boundary.

Must not know: models, caches, how the values travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .told import Told


@dataclass(frozen=True)
class Prompt:
    """Token ids with what belongs to them, such as the pixels of images; an encoder of images takes no ids."""

    ids: torch.Tensor | None
    inputs: Mapping[str, torch.Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions; of images alone nobody knows yet how many positions they become, so they count as one."""
        if self.ids is None:
            return next(iter(self.inputs.values())).shape[0], 1
        return self.ids.shape[0], self.ids.shape[1]


@dataclass(frozen=True)
class Hidden:
    """What crosses a boundary: what the last layer returned. `tuple_` when that was a tuple; absent entries are None.

    Of a tuple, the first tensor travels, and others that also hold a value per position (attention weights do not).
    `carried`: the embeddings that later layers read again, in the order of the family's table. `told`: what the layers
    are told besides; where rows ran one by one, by the row's number, a slash and the name.
    """

    tensors: tuple[torch.Tensor | None, ...]
    tuple_: bool = False
    carried: tuple[torch.Tensor, ...] = ()
    told: Told = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, carried: Iterable[torch.Tensor] = (), told: Told | None = None) -> Hidden:
        if isinstance(value, torch.Tensor):
            return cls((value,), False, tuple(carried), told or {})
        kept = [
            item if isinstance(item, torch.Tensor) and item.shape[:2] == value[0].shape[:2] else None for item in value
        ]
        return cls(tuple(kept), True, tuple(carried), told or {})

    def value(self) -> Any:
        return self.tensors if self.tuple_ else self.tensors[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions."""
        first = next(tensor for tensor in (*self.carried, *self.tensors) if tensor is not None)
        return first.shape[0], first.shape[1]

    def to(self, device: torch.device | str) -> Hidden:
        moved = (None if tensor is None else tensor.to(device) for tensor in self.tensors)
        told = {name: None if tensor is None else tensor.to(device) for name, tensor in self.told.items()}
        return Hidden(tuple(moved), self.tuple_, tuple(tensor.to(device) for tensor in self.carried), told)

    def reaching(self, count: int) -> Hidden:
        """With zeros for the first of so many positions where layers left them out, as nothing behind reads them."""
        tensors = (None if tensor is None else _lengthened(tensor, count) for tensor in self.tensors)
        return replace(self, tensors=tuple(tensors))

    def rows(self, numbers: Many[int]) -> Hidden:
        """Some of the rows. What layers are told belongs to single rows here, or to none of them."""
        chosen = list(numbers)
        tensors = tuple(None if tensor is None else tensor[chosen] for tensor in self.tensors)
        told = {
            f"{place}/{name.removeprefix(f'{number}/')}": tensor
            for place, number in enumerate(chosen)
            for name, tensor in self.told.items()
            if name.startswith(f"{number}/")
        }
        return Hidden(tensors, self.tuple_, tuple(tensor[chosen] for tensor in self.carried), told)

    def row(self, number: int, start: int) -> Hidden:
        """One row, from a position on."""
        cut = (None if tensor is None else tensor[number : number + 1, start:] for tensor in self.tensors)
        carried = tuple(tensor[number : number + 1, start:] for tensor in self.carried)
        mine = f"{number}/"
        told = {name.removeprefix(mine): tensor for name, tensor in self.told.items() if name.startswith(mine)}
        return Hidden(tuple(cut), self.tuple_, carried, told)


def stack(rows: Many[torch.Tensor]) -> torch.Tensor:
    """Rows of different numbers of positions one below the other, shorter ones padded in front."""
    width = max(row.shape[1] for row in rows)
    return torch.cat([_lengthened(row, width) for row in rows])


def _lengthened(tensor: torch.Tensor, count: int) -> torch.Tensor:
    rows, missing = tensor.shape[0], count - tensor.shape[1]
    return tensor if missing <= 0 else torch.cat([tensor.new_zeros(rows, missing, *tensor.shape[2:]), tensor], 1)
