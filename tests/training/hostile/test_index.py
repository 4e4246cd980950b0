"""Files that are not regular ones, and folders of an index that lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.cli import main
from training.config import load_config
from training.data.dataset import BoxDataset
from training.data.decode import photo_size, read_photo
from training.data.index import BoxIndex
from training.data.index_format import BOX, PHOTO, PLACE, PhotoBoxes
from training.data.index_writer import IndexWriter
from training.data.shards import read_shard
from training.data.unreadable import UnreadableList
from training.prepare.pieces import Piece

from .files import (
    DEEP,
    HEADER,
    TERMINAL,
    described,
    everything,
    index_folder,
    large,
    npy,
    passed_over,
    picture,
    pipe,
    put,
    sentence,
)

# ---- regular files only ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "c.json", "b.jsonl", "xml/a.xml", "images/data.yaml"])
def test_annotations_that_are_pipes(name: str, images: Path, tmp_path: Path) -> None:
    forms = {".csv": "openimages", ".json": "coco", ".jsonl": "boxes", ".xml": "voc"}
    path = pipe(tmp_path / name)
    form = forms.get(path.suffix, "yolo")
    annotations = path.parent if "/" in name else path
    if form == "yolo":
        put(tmp_path / "labels/a.txt", "0 0.5 0.5 1 1")
        assert everything(form, images, annotations)[0].boxes[0].label == "0"  # it is not a file
    elif form == "voc":
        (line,) = passed_over(form, images, annotations)
        assert "a.xml: " in line and "not a regular file" in line
    else:
        sentence(lambda: everything(form, images, annotations), "not a regular file")


def test_a_text_of_a_photo_that_is_a_pipe(images: Path, tmp_path: Path) -> None:
    pipe(tmp_path / "texts/a.txt")
    (line,) = passed_over("openimages", images, tmp_path / "texts")
    assert "a.txt': it is not a regular file" in line


@pytest.mark.parametrize(
    ("name", "form", "limit"),
    [
        ("c.json", "coco", 2**31),
        ("b.jsonl", "boxes", 2**31),
        ("texts/a.txt", "openimages", 2**24),
        ("labels/a.txt", "yolo", 2**24),
        ("images/classes.txt", "yolo", 2**26),
        ("class-descriptions-boxable.csv", "openimages", 2**26),
    ],
)
def test_annotations_larger_than_any(
    name: str, form: str, limit: int, images: Path, tmp_path: Path
) -> None:
    path = large(tmp_path / name, limit + 1)
    if name.endswith("boxable.csv"):
        path = put(tmp_path / "t.csv", f"{HEADER}\na,/m/a,0,0,1,1\n")
    annotations, reason = (
        path.parent if "/" in name else path,
        f"{limit + 1:,} bytes, and {limit:,}",
    )
    if name.endswith("a.txt"):  # of a single photo
        (line,) = passed_over(form, images, annotations)
        assert reason in line
    else:
        sentence(lambda: everything(form, images, annotations), reason)


@pytest.mark.parametrize(
    "name", ["index.json", "labels.json", "boxes.npy", "photos.npy", "places.npy", "paths.bin"]
)
def test_files_of_an_index_that_are_pipes(name: str, tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    pipe(folder / name)
    sentence(lambda: BoxIndex.open(folder), rf"{name}: it is not a regular file\); make it anew")


def test_other_pipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pipe(tmp_path / "run/pipe")
    for act, reason in (
        (lambda: load_config(str(path)), "no configuration"),
        (lambda: BoxIndex.open(path), "no box index"),
        (lambda: list(read_shard(path, 0)), "is no shard .*not a regular file"),
        (lambda: UnreadableList(path), "not a regular file; move it away"),
        (lambda: Piece.load(path), "not a regular file"),
    ):
        sentence(act, reason)
    for act in (photo_size, read_photo):
        with pytest.raises(OSError, match="not a regular file"):
            act(path)
    pipe(tmp_path / "run/config.json")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "m.safetensors")]) == 2
    assert "config.json" in capsys.readouterr().err
    pipe(tmp_path / "out/demo.json")
    assert main(["prepare", "demo", "--out", str(tmp_path / "out")]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_a_pipe_among_photos_is_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    pipe(tmp_path / "bad.png")
    lines = [json.dumps({"image": n, "box": [0, 0, 9, 9]}) for n in ("good.png", "bad.png")]
    put(tmp_path / "boxes.jsonl", "\n".join(lines))
    data = BoxDataset(
        tmp_path, "boxes.jsonl", resolution=16, exemplar_size=8, shuffle=False, min_area=0
    )
    assert [data[number]["skipped"] for number in range(2)] == [0, 1]
    assert data.index.photo(1).size is None


# ---- folders of an index -----------------------------------------------------------------------


BAD_ARRAYS = [
    b"",
    b"\x93NUMPY",
    b"\x93NUMPY\x01\x00\xff\xff",
    npy("(" * 5000),
    npy("{" * 5000),
    npy("{'descr': " + "[" * 300 + "]" * 300 + "}"),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}", bytes(32)),
    npy("{'descr': '<u4', 'fortran_order': False, 'shape': (4,)}", bytes(16)),
    npy("{'descr': 'V12', 'fortran_order': False, 'shape': (4,)}", bytes(48)),
    npy("{'descr': [('a',)], 'fortran_order': False, 'shape': (4,)}"),
    npy("{'descr': 5, 'fortran_order': False, 'shape': (4,)}"),
    npy("{'descr': '<u4', 'shape': (4,)}"),
    npy("{'descr': '<u4', 'fortran_order': False, 'shape': (4L,)}"),
    npy("import os"),
    npy("'''"),
    npy("\\\x00"),
    npy("[1, 2"),
    npy(described(BOX, (4,)), bytes(47)),
    npy(described(BOX, (4,)), bytes(49)),
    npy(described(BOX, (2**62,)), bytes(48)),
    npy(described(BOX, (-4,)), bytes(48)),
    npy(described(BOX, (10**300,)), bytes(48)),
    npy(described(BOX, (2, 2)), bytes(48)),
    npy(described(BOX, ()), bytes(12)),
    npy(described(BOX, (4,), True), bytes(48)),
    npy(described(BOX, (4,), "False"), bytes(48)),
    npy(described(BOX.newbyteorder(">"), (4,)), bytes(48)),
    npy(described(BOX, (4,)), bytes(48), (2, 0)),
    npy(described(BOX, (4,)), bytes(48), (9, 9)),
]


@pytest.mark.parametrize("data", BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_arrays_that_lie(data: bytes, tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    put(folder / "boxes.npy", data)
    sentence(lambda: BoxIndex.open(folder), r"no readable box index \(boxes.npy: ")


def test_the_array_as_it_should_be_is_read(tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    put(folder / "boxes.npy", npy(described(BOX, (4,)), bytes(48)))
    index = BoxIndex.open(folder)
    assert index.box(3) == (0, 0, 0, 0)
    assert type(index.boxes) is np.ndarray, "elements of a memmap are slow to read"


def change(field: str, row: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def apply(rows: np.ndarray) -> np.ndarray:
        rows[field][row] = value
        return rows

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        change("first", 0, 1),
        change("first", 1, 0),
        change("first", 1, 4),
        change("first", 1, 2**32 - 1),
        change("first", 2, 3),
        change("path", 0, 1),
        change("path", 1, 2**32 - 1),
        change("path", 2, 9),
        lambda rows: rows[:1],
        lambda rows: rows[:0],
        lambda rows: np.repeat(rows, 2),
    ],
)
def test_photos_that_do_not_fit(damage: Callable, tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    rows = damage(np.load(folder / "photos.npy"))
    put(folder / "photos.npy", npy(described(PHOTO, (len(rows),)), rows.tobytes()))
    sentence(lambda: BoxIndex.open(folder), "no readable box index")


def test_a_path_of_gigabytes(tmp_path: Path) -> None:
    folder, length = index_folder(tmp_path / "index"), 2**30
    os.truncate(folder / "paths.bin", length)
    rows = np.load(folder / "photos.npy")
    rows["path"][2] = length
    put(folder / "photos.npy", npy(described(PHOTO, (3,)), rows.tobytes()))
    sentence(lambda: BoxIndex.open(folder), "a path has more than 65,536 bytes")
    with pytest.raises(ValueError, match="is a path of 65,537 bytes, and 65,536 are the most"):
        IndexWriter(tmp_path / "other").__enter__().add(
            PhotoBoxes(path="x" * 65_537, size=(9, 9), boxes=np.ones((1, 4), int), labels=[""])
        )


@pytest.mark.parametrize(
    ("places", "meta"),
    [
        ([(0, 9, 0), (0, 9, 1)], {"shards": ["a.tar"]}),
        ([(0, 9, 0), (0, 9, 0)], {}),
        ([(0, 9, 0)], {"shards": ["a.tar"]}),
        ([(0, 9, 0)] * 3, {"shards": ["a.tar"]}),
    ],
)
def test_places_that_do_not_fit(places: list, meta: dict, tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index", **meta)
    rows = np.array(places, PLACE)
    put(folder / "places.npy", npy(described(PLACE, (len(rows),)), rows.tobytes()))
    sentence(lambda: BoxIndex.open(folder), "no readable box index .*place")


@pytest.mark.parametrize(
    "meta",
    [
        DEEP,
        "[]",
        "7",
        {"format": "1"},
        {"format": TERMINAL * 500},
        {"format": None},
        {"digest": None},
        {"digest": ["a"]},
        {"digest": "\ud800"},
        {"num_boxes": "4"},
        {"num_photos": [2]},
        {"photos": 5},
        {"photos": {"a": 1}},
        {"shards": "a.tar"},
        {"shards": [1]},
        {"shards": {"a.tar": 1}},
    ],
)
def test_what_an_index_says_of_itself(meta: str | dict, tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    found = json.loads((folder / "index.json").read_text())
    put(folder / "index.json", meta if isinstance(meta, str) else json.dumps({**found, **meta}))
    sentence(lambda: BoxIndex.open(folder), r"no readable box index .*; make it anew")


@pytest.mark.parametrize(
    "labels", [DEEP, '{"a": 1}', "[1, 2]", '["a", null]', '["a", ["b"]]', '"ab"']
)
def test_labels_of_an_index(labels: str, tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    put(folder / "labels.json", labels)
    sentence(lambda: BoxIndex.open(folder), "no readable box index .*labels")


def test_a_label_that_is_not_there(tmp_path: Path) -> None:
    folder = index_folder(tmp_path / "index")
    put(folder / "labels.json", '["x"]')
    index = BoxIndex.open(folder)
    assert index.label(0) == "x"
    sentence(lambda: index.label(1), "box 1 has label 1, but the index names 1; make it anew")


def test_half_of_a_surrogate_pair_as_a_label(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 9, 9]])
    with IndexWriter(tmp_path / "index") as writer:
        writer.add(PhotoBoxes(path="a", size=(9, 9), boxes=boxes, labels=["\ud800"]))
        writer.close({})
    assert BoxIndex.open(tmp_path / "index").label(0) == "\ud800"
