"""A stage: blocks [first, last] of any Hugging Face model, exactly as the whole model would run them.

The stage is the model's own class under its own full config, hollowed out (hollow.py). So positions, masks, rotary
tables and scalings stay the model's business, and no family needs code; families.py declares what a few must be told.

Must not know: sockets, requests, epochs, which other stages exist.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Iterable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from .anatomy import Kind, cache_argument, read_config
from .arithmetic import quicken
from .cache import Caches, Rows, Sequence
from .families import family
from .hidden import Hidden, Prompt, stack
from .hollow import Leave, Lent, Wire, hollowed
from .memory import sparing
from .precision import Scheme, is_quantised, scheme
from .quantised import Quantised, QuantisedError, matrices
from .sealed import SealedCaches
from .weights import NO_KEYS, Keys, lazy_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StageError(RuntimeError):
    """The stage could not be loaded from its shards."""


class Stage:
    """Blocks first..last, ready to run; one forward at a time. `caches` holds what its sequences have seen."""

    def __init__(self, model: PreTrainedModel, wire: Wire) -> None:
        self._manner = quicken(model)
        self.model, self.range = model, wire.part
        self._wire = wire
        self.device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        known = family(model.config.model_type, model.config.get_text_config(decoder=True).model_type)
        self._home = self.device if self.device.type == "meta" else torch.device("cpu")  # where its answers go
        # May a prompt come in pieces? Most recurrent families begin with a blank state at each (mamba, jamba, bamba).
        self.chunks = self.kind != "encoder" and not (known.whole or getattr(type(model), "_is_stateful", False))
        self.caches = _caches(model, wire, self.device)
        self._folded = known.folded
        self._takes = frozenset(inspect.signature(type(model).forward).parameters)
        self._cache = cache_argument(type(model))

    @property
    def kind(self) -> Kind:
        return self._wire.parts.kind

    @property
    def carried(self) -> int:
        """How much arrives beside the hidden state."""
        return len(self._wire.carries)

    @classmethod
    @sparing()
    def load(  # noqa: PLR0913 - what the others say, and whether the folder's code may run
        cls,
        folder: Path,
        first: int,
        last: int,
        dtype: str,
        device: str = "cpu",
        donors: Iterable[Stage] = (),
        *,
        trusted: bool = False,
        keys: Keys = NO_KEYS,
    ) -> Stage:
        """Read the blocks from a folder in the Hugging Face layout that holds at least their weights.

        `donors`: stages of the same checkpoint and dtype in this process; blocks that one of them holds are shared.
        `trusted`: the folder's own code may run. `keys`: of its sealed files.
        Raises StageError when weights are missing or of the wrong shape, AnatomyError when the model is no chain.
        """
        config, wire = read_config(str(folder), trust_remote_code=trusted), Wire()
        lent = Lent([(donor.model, donor._wire) for donor in donors])

        def prepare(model: PreTrainedModel) -> None:
            quantised.exchange(model)
            lent.withhold(model, wire)
            tensors.update({heir: tensors[owner] for heir, owner in wire.heirs.items() if owner in tensors})

        kind = hollowed(config, (first, last), DTYPES[dtype], wire, prepare)
        try:
            quantised = Quantised.of(folder, DTYPES[dtype], keys)
            every = lazy_tensors(folder, DTYPES[dtype], keys)
            tensors = {key: tensor for key, tensor in every.items() if not is_quantised(key)}
            with _quiet():
                model, info = kind.from_pretrained(
                    None,
                    config=config,
                    state_dict=tensors,
                    dtype=DTYPES[dtype],
                    ignore_mismatched_sizes=True,  # they are told below, by name
                    output_loading_info=True,
                )
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise StageError(f"blocks {first}..{last} cannot be loaded: {error}") from error
        if missing := sorted(info["missing_keys"]):
            raise StageError(f"blocks {first}..{last} lack {len(missing)} weights, first {missing[0]}")
        if other := sorted(info["mismatched_keys"]):
            name, found, wanted = other[0]
            raise StageError(f"{len(other)} weights have another shape, first {name}: {[*found]}, not {[*wanted]}")
        model.to(device)
        lent.give(model)
        try:
            quantised.fill(model, device)
        except QuantisedError as error:
            raise StageError(f"blocks {first}..{last} cannot be loaded: {error}") from error
        return cls(model.eval(), wire)

    @classmethod
    @sparing()
    def random(
        cls,
        config: PreTrainedConfig,
        first: int,
        last: int,
        dtype: str,
        device: str = "cpu",
        *,
        quantization: Scheme | None = None,
    ) -> Stage:
        """The same stage with made-up weights, for measuring; memory is given out as behind a `load`."""
        wire, quantised = Wire(), Quantised({}, DTYPES[dtype])

        def prepare(model: PreTrainedModel) -> None:
            if quantization is not None:
                found = matrices(model, wire.parts)
                quantised.schemes = {matrix.weight: scheme(quantization, end=matrix.end) for matrix in found}
            quantised.exchange(model)

        with torch.device("meta"):
            kind = hollowed(config, (first, last), DTYPES[dtype], wire, prepare)
            model = kind._from_config(config, dtype=DTYPES[dtype])
        model.to_empty(device=device)
        for module in model.modules():  # what is looked up by whole numbers is there; those of a checkpoint may divide
            for name, table in module._buffers.items():
                if table is not None and not table.is_floating_point():
                    table.fill_(name not in module._non_persistent_buffers_set)
        quantised.fill(model, device)
        with torch.no_grad():
            for weight in model.parameters():
                weight.uniform_(-0.02, 0.02) if weight.is_floating_point() else weight.zero_()
        _renew_buffers(model, wire, device)
        return cls(model.eval(), wire)

    def sequence(self) -> Sequence:
        """An empty cache for one request."""
        return Sequence()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward(
        self,
        sequences: Sequence | Many[Sequence],
        arrived: torch.Tensor | Prompt | Hidden,
        padding: Many[int] | None = None,
        *,
        all_logits: bool = False,
        wanted: bool = True,
    ) -> Any:
        """Run `T` new positions of one sequence, or of each of `B` sequences at once, one per row.

        `arrived`: token ids of shape [B, T], or a Prompt, where the stage embeds, else the Hidden of the boundary
        before it. `padding`: how many positions in front of each row are none; only where all the sequences are new.
        `wanted`: is it the end of what is asked? Else it is a piece of a prompt of which more will come, and the head
        is left out where it is a module of its own: None comes of the last stage then.
        Returns Hidden, or logits of shape [B, 1, vocabulary] (the last position; all T with `all_logits`), or an
        encoder's last hidden state of shape [B, T, width], on the CPU.
        """
        group = [sequences] if isinstance(sequences, Sequence) else list(sequences)
        if self.kind != "encoder" and not self.caches.together(group):
            return self._one_by_one(group, arrived, padding, all_logits=all_logits, wanted=wanted)
        rows = self.caches.gather(group)
        count = arrived.shape[1]
        self.caches.enter(rows)
        self._wire.silent = not wanted
        self._manner.piece = not wanted or (rows.length > 0 and count > 1)
        try:
            inputs = {**self._arrive(arrived), **self._positions(rows, count, padding)}
            result: Any = self._run(inputs, rows, all_logits).to(self._home)
        except Leave as leave:
            result = None if leave.value is None else self._left(leave.value).reaching(count).to(self._home)
        finally:
            self._wire.clear()
        self.caches.leave(rows)
        self.caches.advance(rows, count, padding)
        return result

    def _left(self, value: Any) -> Hidden:
        """What the last of our layers returned."""
        return Hidden.of(value.movedim(0, 2) if self._folded else value, self._wire.carried.values(), self._wire.told)

    def _run(self, inputs: dict[str, Any], rows: Rows, all_logits: bool) -> torch.Tensor:
        if self.kind == "encoder":
            inputs |= {"use_cache": False} if "use_cache" in self._takes else {}
            return self.model(**inputs, return_dict=True).last_hidden_state
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 0 if all_logits else 1
        logits = self.model(**inputs, **{self._cache: rows.cache}, use_cache=True, return_dict=True).logits
        return logits if all_logits else logits[:, -1:]

    def _arrive(self, arrived: torch.Tensor | Prompt | Hidden) -> dict[str, Any]:
        if isinstance(arrived, Prompt):
            self._wire.given = True
            ids = {} if arrived.ids is None else {"input_ids": arrived.ids.to(self.device)}
            return {**ids, **{name: self._as_ours(tensor) for name, tensor in arrived.inputs.items()}}
        if not isinstance(arrived, Hidden):
            return {"input_ids": arrived.to(self.device)}
        here = arrived.to(self.device)
        self._wire.arrived, self._wire.told = here.value(), here.told
        if self._folded:
            self._wire.arrived = self._wire.arrived.movedim(2, 0).contiguous()
        self._wire.carried = dict(zip(self._wire.carries, here.carried, strict=True))
        if self.model.main_input_name == "pixel_values":
            return {"pixel_values": self._black(here.shape[0])}
        return {"input_ids": torch.zeros(*here.shape, dtype=torch.long, device=self.device)}

    def blank(self) -> Prompt | None:
        """A black image to try an encoder of images with; None where tokens do."""
        sees = self.model.main_input_name == "pixel_values"
        return Prompt(None, {"pixel_values": self._black(1)}) if sees else None

    def _black(self, count: int) -> torch.Tensor:
        """Images of the size the model expects; of what is in them, an encoder's later stages see nothing."""
        config = self.model.config
        size = getattr(config, "image_size", 1)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return torch.zeros(count, getattr(config, "num_channels", 3), height, width, device=self.device)

    def _as_ours(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)

    def _positions(self, rows: Rows, count: int, padding: Many[int] | None) -> dict[str, Any]:
        """Positions, and where rows are padded a mask, as `transformers.generate` would give them.

        Where a model makes its positions of more than the number of tokens, an encoder's or an image's, it makes them.
        """
        pads = padding if padding is not None and not rows.length else rows.padding
        slots = torch.arange(rows.length + count, device=self.device)
        place = slots - torch.tensor(pads, device=self.device)[:, None]
        inputs = {}
        if any(pads) and (self.caches.attends or not rows.length):
            inputs["attention_mask"] = (place >= 0).long()
        if "position_ids" in self._takes and (any(pads) or self.kind == "text"):
            inputs["position_ids"] = place.clamp(min=0)[:, -count:]
        return inputs

    def _one_by_one(
        self,
        group: list[Sequence],
        arrived: torch.Tensor | Prompt | Hidden,
        padding: Many[int] | None,
        **more: bool,
    ) -> Any:
        """Sequences that cannot share a forward, each alone; the results together, as if they had."""
        if isinstance(arrived, Prompt):
            raise ValueError("prompts with images run alone")
        results = []
        for number, sequence in enumerate(group):
            start = padding[number] if padding else 0
            row = arrived.row(number, start) if isinstance(arrived, Hidden) else arrived[number : number + 1, start:]
            results.append(self.forward(sequence, row, **more))
        if not isinstance(results[0], Hidden):
            return stack(results)
        first = results[0]
        columns = zip(*(result.tensors for result in results), strict=True)
        tensors = tuple(None if column[0] is None else stack(column) for column in columns)
        carried = zip(*(result.carried for result in results), strict=True)
        told = {f"{row}/{name}": tensor for row, result in enumerate(results) for name, tensor in result.told.items()}
        return Hidden(tensors, first.tuple_, tuple(stack(column) for column in carried), told)


def _caches(model: PreTrainedModel, wire: Wire, device: torch.device) -> Caches:
    config = model.config.get_text_config(decoder=True)
    known, own = family(model.config.model_type, config.model_type), wire.part.own
    if known.cache:
        return SealedCaches(config, own, torch.empty(0, dtype=model.dtype, device=device), known.cache)
    entries = config.num_hidden_layers // wire.parts.count  # of the cache, per layer
    keepers = {
        f"{path}.{name}": (module, name)
        for path, module in model.named_modules()
        for name in known.keeps
        if hasattr(module, name)
    }
    places = range(own.start * entries, own.stop * entries)
    caches = Caches(model.config, places, device, keepers, joins=known.joins is not False)
    takes = inspect.signature(type(model).forward).parameters
    caches.joins &= known.joins is True or "position_ids" in takes or not caches.attends
    return caches


def _renew_buffers(model: PreTrainedModel, wire: Wire, device: str) -> None:
    """Tables computed at construction (rotary frequencies) are lost by `to_empty`; compute them again."""
    for path, module in model.named_modules():
        if hasattr(module, "inv_freq") and hasattr(module, "config") and not path.startswith(wire.parts.front):
            fresh = type(module)(config=copy.deepcopy(module.config)).to(device)
            module.load_state_dict(fresh.state_dict(), strict=False)
            for name, buffer in fresh.named_buffers(recurse=False):
                setattr(module, name, buffer)


class _quiet:  # noqa: N801 - reads as a statement
    """transformers reports every foreign key of a shard as unexpected; here they are expected.

    And it loads in threads, each of which holds a tensor in its old form; one at a time takes less memory.
    """

    def __enter__(self) -> None:
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        self.logger = logging.getLogger("transformers")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
