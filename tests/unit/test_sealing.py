"""Sealed files give back what went in; changed, cut, exchanged or with another key they give nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sealed import key, sealed

from edgesplit.runner.sealing import MAGIC, SEGMENT, TAG, SealedFile, SealError, content_begun, place, sealed_size

SIZES = [1, 100, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 2 * SEGMENT + 77]


def written(folder: Path, data: bytes) -> Path:
    file = folder / "a.sealed"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("size", SIZES)
def test_what_went_in_comes_out_wherever_one_reads(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    file = SealedFile(written(tmp_path, sealed(data, "a")), key("a"))
    assert file.size == size
    for start in {0, size // 3, size - 1, min(size, SEGMENT) - 1}:
        for count in {0, 1, (size - start) // 2, size - start}:
            assert file.read(start, count) == data[start : start + count]
    with pytest.raises(SealError, match="holds"):
        file.read(1, size)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_known_before(size: int) -> None:
    data = sealed(bytes(size), "a")
    assert sealed_size(size) == len(data)
    assert content_begun(len(data)) == size // SEGMENT * SEGMENT
    for cut in (0, 5, len(MAGIC), len(data) - 1, place(1) - 1, place(1)):
        begun = content_begun(min(cut, len(data) - 1))
        assert begun % SEGMENT == 0
        assert begun <= size
        assert place(begun // SEGMENT) <= max(cut, len(MAGIC))


def test_nothing_of_the_content_can_be_seen(tmp_path: Path) -> None:
    content = b"the quick brown fox " * 100
    assert b"quick brown" not in written(tmp_path, sealed(content, "a")).read_bytes()


def swapped(data: bytes) -> bytes:
    first, second = data[place(0) : place(1)], data[place(1) : place(2)]
    return MAGIC + second + first + data[place(2) :]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[: place(2)],  # whole segments, but the last is missing
        lambda data: data + b"x",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data[:-TAG] + bytes(TAG),
        swapped,
        lambda data: b"NOSEAL1\n" + data[len(MAGIC) :],
        lambda _: b"",
        lambda _: MAGIC,
    ],
)
def test_whatever_is_changed_is_found_out(tmp_path: Path, change: object) -> None:
    data = sealed(os.urandom(2 * SEGMENT + 77), "a")
    file = written(tmp_path, change(data))  # type: ignore[operator]
    with pytest.raises(SealError):
        everything(file)


def everything(file: Path) -> bytearray:
    opened = SealedFile(file, key("a"))
    return opened.read(0, opened.size)


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    file = SealedFile(written(tmp_path, sealed(b"content", "a")), key("b"))
    with pytest.raises(SealError, match="another key"):
        file.read(0, 7)
