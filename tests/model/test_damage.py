"""Damaged checkpoints: whatever is wrong, a ModelError says where, what, and what to do."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import INDEX, config, rewrite
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import make_checkpoint
from safetensors import safe_open
from transformers.utils import logging

from edgesplit.errors import ModelError
from edgesplit.model.checkpoint import open_checkpoint, resolve
from edgesplit.model.headers import read_header

EXAMPLES = int(os.environ.get("EDGESPLIT_FUZZ", "100"))  # damaged headers of either kind


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(whole, tmp_path / "llama")


# --- one file


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FILES = {
    "empty": (b"", "truncated or no safetensors file: it has 0 bytes"),
    "no header": (b"1234567", "truncated or no safetensors file: it has 7 bytes"),
    "header longer than the file": (struct.pack("<Q", 500) + b"{}", "it has 10 bytes and claims a header of 500"),
    "header beyond the format": (struct.pack("<Q", 2**63) + b"{}", f"claims a header of {2**63}"),
    "garbage header": (raw(b"\xff\x00 no json"), "is damaged: "),
    "deep header": (raw(b"[" * 100_000), "is damaged: "),
    "header is a list": (raw([]), "its header is not a JSON object"),
    "entry is text": (raw({"a": "b"}), "a has no proper dtype, shape and data_offsets"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [1]}}), "a has no proper dtype, shape and data_offsets"),
    "three offsets": (raw({"a": tensor(0, 4, [1]) | {"data_offsets": [0, 4, 4]}}, bytes(4)), "no proper dtype"),
    "infinite offset": (
        raw({"a": tensor(0, 4, [1]) | {"data_offsets": [0, math.inf]}}, bytes(4)),
        "the number Infinity",
    ),
    "negative shape": (raw({"a": tensor(0, 4, [-1, -1])}, bytes(4)), "the number -1"),
    "unknown elements": (raw({"a": tensor(0, 4, [1], "F12")}, bytes(4)), "a has elements of unknown type F12"),
    "wrong size": (raw({"a": tensor(0, 8, [1])}, bytes(8)), "a: 8 bytes do not hold F32 [1]"),
    "backwards": (raw({"a": tensor(8, 4, [1])}, bytes(8)), "a: -4 bytes do not hold"),
    "truncated data": (raw({"a": tensor(0, 8, [2])}, bytes(5)), "truncated: a ends at byte"),
    "gap": (raw({"a": tensor(4, 8, [1])}, bytes(8)), "a begins at byte"),
    "overlap": (raw({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)), "b begins at byte"),
    "bytes of nobody": (raw({"a": tensor(0, 4, [1])}, bytes(9)), "its tensors end at byte"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_safetensors_file(tmp_path: Path, name: str) -> None:
    data, said = FILES[name]
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path, "x", "float32")
    assert str(file) in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint


# --- a whole checkpoint


def index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / INDEX
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


def without(folder: Path, part: str) -> None:
    rewrite(folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if part not in key})


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def renumber(folder: Path, old: int, new: int) -> None:
    rewrite(folder, lambda all_: {key.replace(f"layers.{old}.", f"layers.{new}."): t for key, t in all_.items()})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (truncate, "model-00002-of-00004.safetensors is truncated: model."),
    "absent shard": (
        lambda folder: (folder / "model-00003-of-00004.safetensors").unlink(),
        "model-00003-of-00004.safetensors is named by the index but is not there",
    ),
    "index of an absent tensor": (
        lambda folder: index(folder, lambda files: files.update(zzz="model-00001-of-00004.safetensors")),
        "names tensors that no file holds: zzz",
    ),
    "index of an absent file": (
        lambda folder: index(folder, lambda files: files.update(zzz="zzz.safetensors")),
        "zzz.safetensors is named by the index but is not there",
    ),
    "index of a file outside": (
        lambda folder: index(folder, lambda files: files.update(zzz="../zzz.safetensors")),
        "names files outside its folder: ../zzz.safetensors",
    ),
    "index that is no JSON": (lambda folder: (folder / INDEX).write_text("{"), f"{INDEX} is damaged"),
    "index without a map": (
        lambda folder: (folder / INDEX).write_text("{}"),
        f"{INDEX} is damaged: it has no proper weight_map",
    ),
    "index with a list": (lambda folder: (folder / INDEX).write_text('{"weight_map": []}'), f"{INDEX} is damaged"),
    "empty index": (lambda folder: index(folder, dict.clear), "holds 0 tensors, but its config says 4 layers"),
    "no weights at all": (lambda folder: [f.unlink() for f in folder.glob("model*")], "holds neither model.safetens"),
    "missing layer": (lambda folder: without(folder, "layers.2."), "holds no weights of its layer 2 (of 4 layers)"),
    "missing embedding": (lambda folder: without(folder, "embed_tokens"), "holds no weights of its token embedding"),
    "missing head": (lambda folder: without(folder, "lm_head"), "lacks weights of the model: lm_head.weight"),
    "missing norm": (lambda folder: without(folder, "model.norm"), "lacks weights of the model: model.norm.weight"),
    "missing projection": (
        lambda folder: without(folder, "layers.1.self_attn.q"),
        "lacks weights of the model: model.layers.1.",
    ),
    "a layer more than the config says": (
        lambda folder: config(folder, num_hidden_layers=3),
        "holds layer 3, but its config says 3 layers",
    ),
    "a layer of another number": (lambda folder: renumber(folder, 3, 4), "holds layer 4, but its config says 4 layers"),
    "a layer fewer than the config says": (
        lambda folder: config(folder, num_hidden_layers=5),
        "holds no weights of its layer 4 (of 5 layers)",
    ),
    "layers without end": (lambda folder: config(folder, num_hidden_layers=10**9), "its config says 1000000000 layers"),
    "another width": (
        lambda folder: config(folder, intermediate_size=64),
        "has shape [32, 48], but its config asks",
    ),
    "no width": (lambda folder: config(folder, hidden_size=0), "but its config asks for"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "config that is binary": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "is not a JSON object"),
    "deep config": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
    "unknown model type": (lambda folder: config(folder, model_type="llamma"), "llamma"),
    "no model type": (lambda folder: (folder / "config.json").write_text("{}"), "model_type"),
    "no causal language model": (
        lambda folder: config(folder, model_type="vit"),
        "holds no weights of its token embedding",
    ),
    "code of its own": (
        lambda folder: config(folder, model_type="my", auto_map={"AutoConfig": "my.Config"}),
        "needs its own code, which is not run",
    ),
    "a config of nonsense": (lambda folder: config(folder, hidden_size="wide"), "cannot build this model"),
    "quantised": (lambda folder: config(folder, quantization_config={"quant_method": "gptq"}), "is quantised (gptq)"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint(llama: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    damage(llama)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(llama, "x", "float32")
    assert str(llama) in caught.value.message
    assert said in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.hint


def test_bin_files_are_named_as_what_they_are(llama: Path) -> None:
    for file in llama.glob("model*"):
        file.unlink()
    (llama / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds only \.bin files$") as caught:
        open_checkpoint(llama, "x", "float32")
    assert "convert it to safetensors" in caught.value.hint


@pytest.mark.parametrize(
    "source", ["./absent", "/absent/model", "absent", "a/b/c", "~nobody-here/m", "a\0b", "x" * 300]
)
def test_no_such_folder(tmp_path: Path, source: str) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        resolve(source, None, tmp_path)


# --- any damage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("small"), "llama", layers=1)
    return rewrite(folder, lambda tensors: tensors)


def changed(data: bytes, flips: list[tuple[int, int]], cut: int | None) -> bytes:
    new = bytearray(data)
    for place, value in flips:
        new[place % len(new)] = value
    return bytes(new[:cut])


def read(file: Path) -> bool:
    """Is it read? Refused it may be, nothing else; and what is read must be what safetensors reads."""
    try:
        found = {tensor.key: (list(tensor.shape), tensor.dtype) for tensor in read_header(file)}
    except ModelError as error:
        assert len(error.message.splitlines()) == 1  # noqa: PT017 - it may be raised, nothing else may
        return False
    with safe_open(file, "pt") as theirs:
        slices = {key: theirs.get_slice(key) for key in theirs.keys()}  # noqa: SIM118 - it is no dict
        assert found == {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
    return True


PARTS = st.sampled_from(["dtype", "shape", "data_offsets", "more"])
STRANGE = st.sampled_from(
    [None, 0, -1, 1.5, True, "F16", "F12", [], [0], [1] * 70, [2**62, 4], [0, 4], {}, 2**63, 10**30, "\ud800", "\0"]
).map(copy.deepcopy)  # one list in two places would change in both


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(data=st.data())
def test_a_header_that_lies_anywhere_is_read_as_safetensors_reads_it_or_refused(small: Path, data: Any) -> None:
    """Its entries changed by meaning; half of the files keep the sizes they claim."""
    whole = (small / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 3))):
        key, part = data.draw(st.sampled_from([*header, "__metadata__", "a"])), data.draw(PARTS)
        entry = header.get(key)
        if isinstance(entry, dict) and isinstance(entry.get(part), list) and data.draw(st.booleans()):
            step = data.draw(st.sampled_from([-4, -1, 1, 4, 2**40, 2**63]))
            entry[part] = [value + step if type(value) is int else value for value in entry[part]]
        elif isinstance(entry, dict) and data.draw(st.booleans()):
            entry[part] = data.draw(STRANGE)
        else:
            header[key] = data.draw(STRANGE)
    file = small / "lies.safetensors"
    try:
        file.write_bytes(raw(header, whole[8 + length :][: data.draw(st.none() | st.integers(0, 100))]))
        read(file)
    finally:
        file.unlink()


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4), cut=st.none() | st.integers(0))
def test_bytes_changed_anywhere_are_read_as_safetensors_reads_them_or_refused(
    small: Path, flips: list[tuple[int, int]], cut: int | None
) -> None:
    file = small / "flipped.safetensors"
    try:
        file.write_bytes(changed((small / "model.safetensors").read_bytes(), flips, cut))
        assert read(file) or flips or cut is not None
    finally:
        file.unlink()


@settings(max_examples=50, deadline=None, database=None)
@given(flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4), cut=st.none() | st.integers(0))
@example(flips=[], cut=8)
@example(flips=[(0, 0)], cut=None)
@example(flips=[(7, 255)], cut=None)
def test_a_file_changed_anywhere_is_read_or_refused(small: Path, flips: list[tuple[int, int]], cut: int | None) -> None:
    """The first 1500 bytes are the header's."""
    file = small / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(changed(whole, flips, cut))
    try:
        open_checkpoint(small, "x", "float32")
    except ModelError as error:
        assert error.message  # noqa: PT017 - it may be raised, nothing else may
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module")
def settings_of(small: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    text = (small / "config.json").read_text()
    yield small / "config.json", json.loads(text)
    (small / "config.json").write_text(text)


ODD = st.sampled_from([None, 0, -1, 1, 3, 1.5, True, "x", "", [], [1], {}, {"a": 1}, 10**30])


@settings(max_examples=30, deadline=None, database=None)
@given(data=st.data())
def test_a_config_changed_anywhere_is_read_or_refused(settings_of: tuple[Path, dict[str, Any]], data: Any) -> None:
    path, original = settings_of
    key, value = data.draw(st.sampled_from(sorted(original))), data.draw(ODD)
    path.write_text(json.dumps({**original, key: value}))
    try:
        open_checkpoint(path.parent, "x", "float32")
    except ModelError as error:
        assert error.message  # noqa: PT017 - it may be raised, nothing else may
