"""transformers' own loading of weights, and transformers kept from talking.

Must not know: files, blocks, what is loaded for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of transformers', no progress bars."""
    loud, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(loud)
        if shown:
            logging.enable_progress_bar()


def load(model: Any, tensors: Mapping[str, torch.Tensor], device: str) -> Any:
    """Tensors under the checkpoint's names made into the model's weights, there; what transformers says of it, its
    LoadStateDictInfo."""
    rules = get_model_conversion_mapping(model)
    if device == "meta":
        for rule in rules:
            if isinstance(rule, WeightConverter):
                rule.force_cpu = False  # spares a device memory; there is nothing to copy here
    config = LoadStateDictConfig(device_map={"": device}, dtype=model.dtype, weight_mapping=rules)
    with quiet():
        told, _ = convert_and_load_state_dict_in_model(model, dict(tensors), config)
    return told
