"""Modules whose matrices are int8 or int4: linear layers, mixtures of experts, and the matrix of embedding and head.

A shard says by its keys which matrices it holds quantised (precision.py). Their modules are exchanged before the rest
is loaded, and filled afterwards.

Must not know: how codes and scales were chosen, what a stage is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .anatomy import Anatomy
from .kernels import Kernel, kernel
from .precision import CODES, Scheme, fits, is_quantised, stored
from .weights import NO_KEYS, Keys, slices

# Small layers that choose among experts: an error there is another expert. By the last part of their path.
_ROUTERS = ("gate", "router")
_EXPERTS = ("gate_up_proj", "up_proj", "down_proj")

Held = tuple[torch.Tensor, torch.Tensor]  # codes and scales, in the form of a kernel


class QuantisedError(ValueError):
    """A shard does not hold a quantised matrix as it must be."""


@dataclass(frozen=True)
class Matrix:
    """A weight of the model that is, or may be, quantised. `shape`: [out, in], of experts [experts, out, in]; `turned`:
    the model holds its last two dimensions the other way around; `end`: it is the head's, or head's and embedding's."""

    path: str
    name: str
    shape: tuple[int, ...]
    turned: bool
    end: bool = False

    @property
    def weight(self) -> str:
        return f"{self.path}.{self.name}"


# --- which ---


def matrices(model: PreTrainedModel, parts: Anatomy) -> list[Matrix]:
    """Those of the layers and the head; a head that is the embedding's matrix counts as the embedding's. The same at
    every precision."""
    ties = {frozenset(pair) for pair in model.all_tied_weights_keys.items()}
    ends = frozenset({f"{parts.head}.weight", f"{parts.embedding}.weight"})
    shared = {name for tie in ties - {ends} for name in tie}
    found: list[Matrix] = []
    for path, module in model.named_modules():
        if path.startswith(f"{parts.layers}.") and not isinstance(module, nn.Embedding):
            made = _of(path, module)
            found += made if all(fits(matrix.shape, "int4") for matrix in made) else []  # experts share a forward
    if parts.head and type(model.get_submodule(parts.head)) is nn.Linear:
        end = parts.embedding if ends in ties else parts.head
        made = _of(end, model.get_submodule(end))
        found += [replace(matrix, end=True) for matrix in made if fits(matrix.shape, "int8")]
    return [matrix for matrix in found if matrix.weight not in shared]


def _of(path: str, module: nn.Module) -> list[Matrix]:
    if _is_experts(module):
        names = [name for name in _EXPERTS if name in module._parameters]
        return [_matrix(path, name, module, turned=bool(module.is_transposed)) for name in names]
    known = type(module) in (nn.Linear, Conv1D) or isinstance(module, nn.Embedding)
    return [_matrix(path, "weight", module, turned=type(module) is Conv1D)] if known and _is_whole(path, module) else []


def _is_experts(module: nn.Module) -> bool:
    """Does it compute by one of transformers' functions for experts, from matrices in three dimensions?"""
    weights = [weight for name in _EXPERTS if (weight := module._parameters.get(name)) is not None]
    return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed") and {w.dim() for w in weights} == {3}


def _is_whole(path: str, module: nn.Module) -> bool:
    """It has its weight, which a layer of another stage has not, and chooses nothing."""
    return module._parameters.get("weight") is not None and path.rpartition(".")[2] not in _ROUTERS


def _matrix(path: str, name: str, module: nn.Module, *, turned: bool) -> Matrix:
    *many, rows, columns = module._parameters[name].shape
    return Matrix(path, name, (*many, columns, rows) if turned else (*many, rows, columns), turned)


# --- modules ---


@dataclass(frozen=True)
class Form:
    """How a module holds a matrix: codes and scales are two of the module's buffers, in the form of a kernel."""

    matrix: Matrix
    scheme: Scheme
    dtype: torch.dtype  # of what comes in and goes out

    def reserve(self, module: nn.Module) -> None:
        """Give the buffers in place of the weight, still without content."""
        module._parameters.pop(self.matrix.name, None)
        module.register_buffer(self._codes, None, persistent=False)
        module.register_buffer(self._scales, None, persistent=False)

    def held(self, module: nn.Module) -> Held | None:
        codes, scales = module._buffers[self._codes], module._buffers[self._scales]
        return None if codes is None or scales is None else (codes, scales)

    def hold(self, module: nn.Module, held: Held) -> None:
        module._buffers[self._codes], module._buffers[self._scales] = held

    def take(self, codes: torch.Tensor, scales: torch.Tensor) -> Held:
        """From the stored form, on the device where it will be used."""
        return self.kernel(codes.device).take(codes, scales)

    def multiply(self, module: nn.Module, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        held = self.held(module)
        assert held is not None  # noqa: S101 - filled before it runs
        codes, scales = held if expert is None else (held[0][expert], held[1][expert])
        product = self.kernel(codes.device).multiply(x.reshape(-1, x.shape[-1]), codes, scales)
        return product.view(*x.shape[:-1], product.shape[-1])

    def kernel(self, device: torch.device) -> Kernel:
        return kernel(self.scheme, device, self.dtype)

    @property
    def _codes(self) -> str:
        return f"{self.matrix.name}_codes"

    @property
    def _scales(self) -> str:
        return f"{self.matrix.name}_scales"


class QuantisedLinear(nn.Module):
    """In place of nn.Linear, and of the Conv1D of the GPT-2 kind."""

    def __init__(self, form: Form, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = form.matrix.shape
        self.form = form
        self.register_parameter("bias", bias)
        self._is_hf_initialized = True  # there is nothing for transformers to make up
        form.reserve(self)

    @property
    def weight(self) -> torch.Tensor:
        """Restored anew each time: for the few models that look at it. Without content while the model is loaded."""
        held = self.form.held(self)
        if held is None:
            return torch.empty(self.out_features, self.in_features, dtype=self.form.dtype, device="meta")
        return self.form.multiply(self, torch.eye(self.in_features, dtype=self.form.dtype, device=held[0].device)).t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = self.form.multiply(self, x)
        return product if self.bias is None else product + self.bias


class QuantisedEmbedding(nn.Embedding):
    """A token's row, restored. Families scale it in subclasses of nn.Embedding, so this is mixed into theirs."""

    form: Form

    @property
    def weight(self) -> Any:
        return Rows(self.form, self.form.held(self))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        restored: torch.Tensor = self.weight[ids]
        return restored


class Rows:
    """An embedding's weight as far as models look at it: its type and device, and single rows."""

    _is_hf_initialized = True  # transformers makes up the rest of the module, but not this

    def __init__(self, form: Form, held: Held | None) -> None:
        self._held, self.dtype = held, form.dtype
        self.device = held[0].device if held else torch.device("meta")

    def __getitem__(self, index: Any) -> torch.Tensor:
        """By numbers of rows, or these and columns."""
        assert self._held is not None  # noqa: S101 - filled before it runs
        codes, scales = self._held
        row = index[0] if isinstance(index, tuple) else index
        return (codes[index] * scales[row].float()[..., None]).to(self.dtype)


def _run_experts(
    module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, *, forms: Mapping[str, Form]
) -> torch.Tensor:
    """As transformers' functions for experts compute it; only experts that were chosen are read."""
    each = chosen.shape[-1]
    experts = chosen.reshape(-1)
    results = hidden.new_zeros(experts.shape[0], hidden.shape[-1])
    for expert in experts.unique().tolist():
        rows = (experts == expert).nonzero()[:, 0]
        results[rows] = _run_expert(module, expert, hidden[rows // each], forms).to(hidden.dtype)
    weighted = results * weights.reshape(-1, 1)
    return weighted.view(-1, each, hidden.shape[-1]).sum(1).to(hidden.dtype)


def _run_expert(module: Any, expert: int, x: torch.Tensor, forms: Mapping[str, Form]) -> torch.Tensor:
    first = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _biased(module, first, expert, forms[first].multiply(module, x, expert))
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    result = _biased(module, "down_proj", expert, forms["down_proj"].multiply(module, inner, expert))
    return module.post_expert_norm(result) if module.has_post_expert_norm else result


def _biased(module: Any, name: str, expert: int, product: torch.Tensor) -> torch.Tensor:
    return product + getattr(module, f"{name}_bias")[expert] if module.has_bias else product


# --- exchanging and filling ---


@dataclass
class Quantised:
    """The quantised matrices of one model: `schemes` by weight, `slices` of shards by key (none: made up).

    Afterwards the modules that hold them, by weight; a matrix of embedding and head has two.
    """

    schemes: Mapping[str, Scheme]
    dtype: torch.dtype
    slices: Mapping[str, Any] | None = None
    _holders: dict[str, list[tuple[nn.Module, Form]]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, dtype: torch.dtype, keys: Keys = NO_KEYS) -> Quantised:
        """What a folder's shards hold. Raises OSError, ValueError or SafetensorError."""
        slices = _slices(folder, keys)
        codes = {key.removesuffix(CODES): found for key, found in slices.items() if key.endswith(CODES)}
        schemes: dict[str, Scheme] = {
            weight: "int8" if found.get_dtype() == "I8" else "int4" for weight, found in codes.items()
        }
        return cls(schemes, dtype, slices)

    def exchange(self, model: PreTrainedModel) -> None:
        """Before the rest is loaded: put modules that will hold the matrices in the place of those with the weights,
        where these are in this model. Raises QuantisedError."""
        forms: dict[str, dict[str, Form]] = {}
        for weight, scheme in self.schemes.items():
            path, _, name = weight.rpartition(".")
            for twin in (path, *_tied(model, weight)):
                module = _submodule(model, twin)
                if module is None or module._parameters.get(name) is None:
                    continue  # of another stage
                found = [each for each in _of(twin, module) if each.name == name and fits(each.shape, scheme)]
                if not found:
                    raise QuantisedError(f"{weight} is no matrix that may be quantised")
                form = Form(found[0], scheme, self.dtype)
                forms.setdefault(twin, {})[name] = form
                self._holders.setdefault(weight, []).append((_exchanged(model, module, form, forms[twin]), form))
            ties = model.all_tied_weights_keys.items()
            model.all_tied_weights_keys = {to: source for to, source in ties if weight not in (to, source)}
        for path in forms:
            left = [name for name in _EXPERTS if model.get_submodule(path)._parameters.get(name) is not None]
            if left:
                raise QuantisedError(f"{path}.{left[0]} is not quantised, but another of its matrices is")

    def fill(self, model: PreTrainedModel, device: torch.device | str) -> None:
        """Afterwards; what another stage lent is there already. Raises QuantisedError."""
        for weight, holders in self._holders.items():
            lent = next((held for module, form in holders if (held := form.held(module)) is not None), None)
            held = self._made(weight, holders[0][1], torch.device(device)) if lent is None else lent
            for module, form in holders:
                form.hold(module, held)
        if next(model.parameters(), None) is None:  # a model is asked for the type and device of its parameters
            anchor = nn.Parameter(torch.empty(0, dtype=self.dtype, device=device), requires_grad=False)
            model.register_parameter("anchor", anchor)

    def _made(self, weight: str, form: Form, device: torch.device) -> Held:
        parts = _made_up(form) if self.slices is None else _checked(weight, form, self.slices)
        return _read(form, parts, device)


def _tied(model: PreTrainedModel, weight: str) -> list[str]:
    """Where else the model uses this weight."""
    pairs = [pair for pair in model.all_tied_weights_keys.items() if weight in pair]
    return [name.rpartition(".")[0] for pair in pairs for name in pair if name != weight]


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _exchanged(model: nn.Module, module: nn.Module, form: Form, forms: dict[str, Form]) -> nn.Module:
    if isinstance(module, nn.Embedding):
        kind = type(module)
        bases = (QuantisedEmbedding,) if kind is nn.Embedding else (kind, QuantisedEmbedding)
        form.reserve(module)
        module.__class__ = type(kind.__name__, bases, {"form": form})
        return module
    if _is_experts(module):
        form.reserve(module)
        module._is_hf_initialized = True
        module.forward = partial(_run_experts, module, forms=forms)
        return module
    made = QuantisedLinear(form, module._parameters.get("bias"))
    model.set_submodule(form.matrix.path, made)
    return made


# --- contents ---


def _slices(folder: Path, keys: Keys) -> dict[str, Any]:
    """int8 codes are mapped, for the kernels take them as they are; others are read past the page mapping, so that
    their old form is gone as soon as the new one is there."""
    return {
        key: mapped if mapped.get_dtype() == "I8" else read
        for key, mapped, read in slices(folder, keys)
        if is_quantised(key)
    }


def _checked(weight: str, form: Form, slices: Mapping[str, Any]) -> tuple[Any, Any]:
    parts = []
    for end, (kind, shape) in stored(form.matrix.shape, form.scheme).items():
        key = f"{weight}{end}"
        if key not in slices:
            raise QuantisedError(f"there is no {key}")
        found = slices[key]
        if (found.get_dtype(), tuple(found.get_shape())) != (kind, shape):
            raise QuantisedError(f"{key} is {found.get_dtype()} {[*found.get_shape()]}, not {kind} {[*shape]}")
        parts.append(found)
    return parts[0], parts[1]


def _made_up(form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    (kind, shape), (_, scales) = stored(form.matrix.shape, form.scheme).values()
    codes = torch.randint(1, 127, shape, dtype=torch.int8 if kind == "I8" else torch.uint8)
    return codes, torch.full(scales, 1e-4, dtype=torch.bfloat16)


def _read(form: Form, parts: tuple[Any, Any], device: torch.device) -> Held:
    """`parts`: slices or tensors. Of several experts one at a time, where the kernel has a form of its own."""
    codes, scales = parts
    if len(form.matrix.shape) == 2 or form.scheme == "int8":
        return form.take(codes[:].to(device), scales[:].to(device))
    held: Held | None = None
    for expert in range(form.matrix.shape[0]):
        taken = form.take(codes[expert].to(device), scales[expert].to(device))
        held = held or (_room(taken[0], form), _room(taken[1], form))
        held[0][expert], held[1][expert] = taken
    assert held is not None  # noqa: S101 - there are experts
    return held


def _room(one: torch.Tensor, form: Form) -> torch.Tensor:
    return one.new_empty(form.matrix.shape[0], *one.shape)
