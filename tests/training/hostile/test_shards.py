"""Shards with records and members that lie."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from training.data.index import BoxIndex
from training.data.index_format import PLACE, PhotoBoxes
from training.data.shards import PhotoFiles, ShardWriter, read_shard

from .files import (
    DEEP,
    NESTED,
    RECORD,
    TERMINAL,
    described,
    index_folder,
    npy,
    put,
    sentence,
)


def shard(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return path


def member(name: str, **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    "record",
    [
        DEEP,
        "7",
        "[]",
        b"\xff\xff",
        json.dumps({**RECORD, "path": 5}),
        json.dumps({**RECORD, "path": ["a"]}),
        json.dumps({**RECORD, "size": "99"}),
        json.dumps({**RECORD, "size": [1]}),
        json.dumps({**RECORD, "size": [1.5, 2]}),
        json.dumps({**RECORD, "boxes": 5}),
        json.dumps({**RECORD, "boxes": [[0, 0, 9]]}),
        json.dumps({**RECORD, "boxes": [[0, 0, 9, "x"]]}),
        json.dumps({**RECORD, "boxes": [[0, 0, 9, 1.5]]}),
        json.dumps({**RECORD, "boxes": [[0, 0, 9, 9], [1]]}),
        json.dumps({**RECORD, "boxes": [[0, 0, 9, 10**30]]}),
        json.dumps({**RECORD, "boxes": {"a": 1}}),
        json.dumps({**RECORD, "labels": "x"}),
        json.dumps({**RECORD, "labels": []}),
        json.dumps({**RECORD, "labels": [["x"]]}),
        json.dumps({**RECORD, "boxes": "N"}).replace('"N"', NESTED),
        json.dumps({"path": "a.jpg"}),
    ],
)
def test_records_in_shards(record: str | bytes, tmp_path: Path) -> None:
    data = record.encode() if isinstance(record, str) else record
    path = shard(tmp_path / "s.tar", ("0.jpg", b"photo"), ("0.json", data))
    sentence(lambda: list(read_shard(path, 0)), "s.tar' is no shard .*; make it anew")


def test_members_that_are_no_files(tmp_path: Path) -> None:
    text = ("0.json", json.dumps(RECORD).encode())
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    for kind in kinds:
        path = shard(tmp_path / "s.tar", member("0.jpg", type=kind, linkname="/etc/passwd"), text)
        sentence(lambda: list(read_shard(path, 0)), "'0.jpg' is not a regular file")  # noqa: B023
    for kind in kinds:
        path = shard(tmp_path / "s.tar", ("0.jpg", b""), member("0.json", type=kind, linkname="0"))
        sentence(lambda: list(read_shard(path, 0)), "'0.json' is not a regular file")  # noqa: B023
    path = shard(tmp_path / "s.tar", text)
    sentence(lambda: list(read_shard(path, 0)), "there is no photo before '0.json'")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(member("ü" * 200))
    sentence(lambda: list(read_shard(path, 0)), "is not a regular file")


@pytest.mark.parametrize("size", [10**6, 8 * 2**30 - 1, 2**80, -(2**40)])
@pytest.mark.parametrize("name", ["0.jpg", "0.json"])
def test_members_whose_sizes_lie(name: str, size: int, tmp_path: Path) -> None:
    header = bytearray(member(name).tobuf(tarfile.USTAR_FORMAT))
    if 0 <= size < 2**33:
        header[124:136] = b"%011o\0" % size
    else:
        header[124:136] = (size % 2**95 | 2**95).to_bytes(12, "big")
        header[124] = 0xFF if size < 0 else 0x80
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = put(tmp_path / "s.tar", bytes(header) + bytes(10_240))
    sentence(lambda: list(read_shard(path, 0)), "claims .* bytes, and 10,240 are left")


def test_a_record_of_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.shards._MAX_RECORD", 20)
    path = shard(tmp_path / "s.tar", ("0.jpg", b""), ("0.json", json.dumps(RECORD).encode()))
    sentence(lambda: list(read_shard(path, 0)), "'0.json' has .* bytes, and 20 are the most")


def test_a_photo_in_a_shard_larger_than_any(tmp_path: Path) -> None:
    put(tmp_path / "a.tar", b"photo")
    folder = index_folder(tmp_path / "index", shards=["a.tar"])
    rows = np.array([(0, 5, 0), (0, 2**32 - 1, 0)], PLACE)
    put(folder / "places.npy", npy(described(PLACE, (2,)), rows.tobytes()))
    index = BoxIndex.open(folder)
    files = PhotoFiles(index, tmp_path)
    assert files.read(index.photo(0)) == b"photo"
    with pytest.raises(OSError, match="has 4,294,967,295 bytes"):
        files.read(index.photo(1))


def test_a_photo_with_a_long_suffix_is_packed(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 9, 9]])
    photo = PhotoBoxes(path="a." + "x" * 200, size=(9, 9), boxes=boxes, labels=["x"])
    with ShardWriter(tmp_path) as writer:
        writer.add(photo, b"photo")
    (found,) = read_shard(tmp_path / "shard-000000.tar", 0)
    assert found.path == photo.path and found.length == 5


def test_names_in_an_index_do_not_reach_the_terminal(tmp_path: Path) -> None:
    index = BoxIndex.open(index_folder(tmp_path / "index", shards=[TERMINAL * 500]))
    sentence(lambda: PhotoFiles(index, tmp_path), "which does not exist")
    index = BoxIndex.open(index_folder(tmp_path / "index", photos=f"ftq://{TERMINAL}"))
    sentence(lambda: PhotoFiles(index, tmp_path), "can only be read from shards")
