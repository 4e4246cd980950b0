"""Readers: known answers for tiny trees of each format; the filter: closed forms."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from training.prepare.annotations import (
    CLIPPED,
    Annotated,
    BoxFilter,
    MarkedBox,
    Reader,
    Unusable,
    open_reader,
)

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
BOM = b"\xef\xbb\xbf"
EVERYTHING = BoxFilter(min_area=0, max_area=1)


def write(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, np.zeros((size[1], size[0], 3), np.uint8))[1]
    return write(path, encoded.tobytes())


def everything(reader: Reader) -> list[Annotated]:
    return [reader.read(entry) for entry in reader.entries()]


def pixels(photo: Annotated, size: tuple[int, int]) -> list[list[int]]:
    return EVERYTHING.apply(photo, size, Counter())[0].tolist()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


# OpenImages


def table(tmp_path: Path, *rows: str, name: str = "oidv6-train-annotations-bbox.csv") -> Path:
    return write(tmp_path / name, "\n".join([HEADER, *rows]) + "\n")


def test_openimages_rows_become_photos(images: Path, tmp_path: Path) -> None:
    for name in ("train_0", "train_a"):
        (images / name).mkdir()
    rows = (
        "0001,xclick,/m/a,1,0.1,0.6,0.25,0.75,1,0,0,0,0",
        "0001,xclick,/m/b,1,0,1,0,0.5,-1,0,1,1,0",
        "5002,xclick,/m/a,1,0,1,0,1,0,0,0,0,0",
        "a003,activemil,/m/z,1,0.5,1,0.5,1,0,1,0,0,1",
    )
    write(tmp_path / "class-descriptions-boxable.csv", '/m/a,Cat\n/m/b,"Dog, big"\n')
    reader = open_reader("openimages", images, table(tmp_path, *rows))
    first, last = everything(reader)
    assert (first.path, last.path) == ("train_0/0001.jpg", "train_a/a003.jpg")
    assert first.boxes == [
        MarkedBox(0.1, 0.25, 0.6, 0.75, "Cat", frozenset({"occluded"})),
        MarkedBox(0, 0, 1, 0.5, "Dog, big", frozenset({"group", "depiction"})),  # -1 is unknown
    ]
    assert last.boxes[0].label == "/m/z" and last.boxes[0].flags == {"truncated", "inside"}
    assert reader.left_out == {"photos in folders that are not there": 1}
    assert pixels(first, (1000, 400)) == [[100, 100, 600, 300], [0, 0, 1000, 200]]


@pytest.mark.parametrize(
    ("name", "folder", "path"),
    [
        ("validation-annotations-bbox.csv", "validation", "validation/0001.jpg"),
        ("test-annotations-bbox.csv", "test", "test/0001.jpg"),
        ("train-annotations-bbox.csv", "train", "train/0001.jpg"),
        ("train-annotations-bbox.csv", "", "0001.jpg"),
    ],
)
def test_openimages_folders(
    name: str, folder: str, path: str, images: Path, tmp_path: Path
) -> None:
    (images / folder).mkdir(exist_ok=True)
    found = table(tmp_path, "0001,x,/m/a,1,0,1,0,1,0,0,0,0,0", name=name)
    assert [photo.path for photo in everything(open_reader("openimages", images, found))] == [path]


def test_byte_order_mark_and_line_ends_of_windows(images: Path, tmp_path: Path) -> None:
    text = f"{HEADER}\r\n0001,x,/m/a,1,0,1,0,1,0,0,0,0,0\r\n".encode()
    reader = open_reader("openimages", images, write(tmp_path / "t.csv", BOM + text))
    assert [photo.path for photo in everything(reader)] == ["0001.jpg"]
    write(images / "labels/ü.txt", BOM + b"0 0.5 0.5 1 1\r\n\r\n")
    picture(images / "ü.png")
    (photo,) = everything(open_reader("yolo", images, images / "labels"))
    assert photo.boxes == [MarkedBox(0, 0, 1, 1, "0")]
    line = json.dumps({"image": "ü.png", "box": [1, 2, 3, 4]}).encode()
    reader = open_reader("boxes", images, write(tmp_path / "b.jsonl", BOM + line + b"\r\n" + line))
    assert len(everything(reader)[0].boxes) == 2


def test_official_text_tree(images: Path, tmp_path: Path) -> None:
    write(tmp_path / "bbox/train_0/0a.txt", "10.5 2.25 30.0 15.75\n1 2 3 4 a big cat\n")
    write(tmp_path / "bbox/train_f/0b.txt", "1 2 3 4\n")
    write(tmp_path / "bbox/validation/0c.txt", "1 2 3 4\n")
    reader = open_reader("openimages", images, tmp_path / "bbox")
    photos = everything(reader)
    assert [photo.path for photo in photos] == ["train_0/0a.jpg", "train_f/0b.jpg"]
    assert reader.total == 2
    assert photos[0].boxes[1] == MarkedBox(1, 2, 3, 4, "a big cat")
    assert pixels(photos[0], (40, 20)) == [[10, 2, 30, 16], [1, 2, 3, 4]]
    flat = everything(open_reader("openimages", images, tmp_path / "bbox/validation"))
    assert [photo.path for photo in flat] == ["0c.jpg"]


# COCO


def coco(tmp_path: Path, **changes: Any) -> Path:
    content = {
        "images": [
            {"id": 7, "file_name": "train2017/ä b.jpg", "width": 40, "height": 20},
            {"id": 8, "file_name": "old\\c.jpg"},
            {"id": 9, "file_name": "empty.jpg", "width": 1, "height": 1},
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 8, "category_id": 3, "bbox": [0, 0, 2, 2]},
            {"image_id": 7, "category_id": 3, "bbox": [1.25, 2.5, 10.5, 5], "iscrowd": 0,
             "segmentation": [[1, 2, 3]]},
            {"image_id": 7, "category_id": 4, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"image_id": 7, "category_id": 4},
            {"image_id": 5, "bbox": [0, 0, 1, 1]},
        ],
    }  # fmt: skip
    return write(tmp_path / "instances.json", json.dumps(content | changes, ensure_ascii=False))


def test_coco(images: Path, tmp_path: Path) -> None:
    reader = open_reader("coco", images, coco(tmp_path))
    first, second = everything(reader)
    assert first.path == "train2017/ä b.jpg" and first.frame == (40, 20)
    assert first.boxes == [
        MarkedBox(1.25, 2.5, 11.75, 7.5, "cat"),
        MarkedBox(0, 0, 40, 20, "", frozenset({"crowd"})),
    ]
    assert (second.path, second.frame) == ("old/c.jpg", None)
    assert reader.dropped_flags == {"crowd"}
    assert sum(reader.left_out.values()) == 2
    assert reader.faults.counts == {"without a bbox or an outline": 1}


# YOLO


def test_yolo(tmp_path: Path) -> None:
    root = tmp_path / "my images"  # no folder `images`: only the last one of that name counts
    for name in ("images/train/a 1.jpg", "images/train/none.jpg", "images/val/ñ.png"):
        picture(root / name)
    write(root / "labels/train/a 1.txt", "0 0.5 0.5 0.5 0.25\n1 0.1 0.2 0.3 0.1 0.2 0.9\n")
    write(root / "labels/val/ñ.txt", "7 0.25 0.5 0.5 1\n")
    write(root / "data.yaml", "train: images/train\nnames:\n  0: cat\n  1: Hündin\n")
    for images in (root, root / "images"):
        reader = open_reader("yolo", images)
        first, second = everything(reader)
        assert [(box.label, *pixels(first, (40, 20))[i]) for i, box in enumerate(first.boxes)] == [
            ("cat", 10, 8, 30, 12),  # 7.5 is a tie: to even
            ("Hündin", 4, 2, 12, 18),
        ]
        assert second.boxes[0].label == "7" and pixels(second, (40, 20)) == [[0, 0, 20, 20]]
        assert reader.left_out == {"photos without annotations": 1}


@pytest.mark.parametrize(
    ("name", "content"), [("classes.txt", "cat\ndog\n"), ("data.yaml", "names: [cat, dog]\n")]
)
def test_yolo_class_names(name: str, content: str, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "1 0.5 0.5 1 1\n")
    write(tmp_path / name, content)
    (photo,) = everything(open_reader("yolo", tmp_path / "images"))
    assert photo.boxes[0].label == "dog"


# Pascal VOC


def voc(name: str, *corners: str, size: str = "", flags: str = "") -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, corners, strict=True))
    return (
        f"<annotation><filename>{name}</filename>{size}<object><name> cat </name>{flags}"
        f"<bndbox>{box}</bndbox></object></annotation>"
    )


def test_voc_counts_pixels_from_one_and_includes_the_last(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/sub/ö 1.jpg")
    size = "<size><width>40</width><height>20</height></size>"
    whole = voc("ö 1.jpg", "1", "1", "40", "20", size=size, flags="<difficult>1</difficult>")
    write(tmp_path / "Annotations/sub/x.xml", BOM + whole.encode())
    (photo,) = everything(open_reader("voc", tmp_path / "JPEGImages"))
    assert photo.path == "sub/ö 1.jpg" and photo.frame == (40, 20)
    assert photo.boxes == [MarkedBox(0, 0, 40, 20, "cat", frozenset({"difficult"}))]


def test_voc_of_a_renamed_photo(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/new.PNG")
    write(tmp_path / "Annotations/new.xml", voc("old.jpg", "1", "1", "2", "2"))
    (photo,) = everything(open_reader("voc", tmp_path / "JPEGImages"))
    assert photo.path == "new.PNG"


# masks


def test_masks(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[1:4, 2:6] = 255
    mask[4, 6] = 255  # touches by a corner
    mask[7:9, 10:20] = 200
    picture(tmp_path / "photos/p q.jpg", (40, 20))
    picture(tmp_path / "photos/without.jpg")
    encoded = cv2.imencode(".png", mask)[1].tobytes()
    write(tmp_path / "photos/masks/p q.png", encoded)
    for whole, expected in (
        (False, [[4, 2, 14, 10], [20, 14, 40, 18]]),
        (True, [[4, 2, 40, 18]]),
    ):
        reader = open_reader(
            "masks", tmp_path / "photos", tmp_path / "photos/masks", whole_masks=whole
        )
        (photo,) = everything(reader)
        assert photo.path == "p q.jpg" and pixels(photo, (40, 20)) == expected
        assert reader.left_out == {"photos without a mask": 1}
    picture(tmp_path / "photos/masks/p q.png")  # black
    reader = open_reader("masks", tmp_path / "photos", tmp_path / "photos/masks")
    with pytest.raises(Unusable, match="is empty"):
        everything(reader)


def test_boxes(images: Path, tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "box": [1, 2, 3, 4], "label": "x", "size": [9, 9]},
        {"image": "b.jpg", "box": [0, 0, 1, 1], "group": "g", "id": "i"},
        {"image": "a.jpg", "box": [5, 5, 6, 6]},
    ]
    path = write(tmp_path / "boxes.jsonl", "\n\n".join(map(json.dumps, lines)))
    first, second = everything(open_reader("boxes", images, path))
    assert first == Annotated("a.jpg", [MarkedBox(1, 2, 3, 4, "x"), MarkedBox(5, 5, 6, 6)], (9, 9))
    assert second.boxes[0].label == "g"


# what is wrong


@pytest.mark.parametrize(
    ("name", "file", "content", "sentence"),
    [
        ("openimages", "t.csv", "ImageID,XMin\n", "no column LabelName, YMin"),
        ("coco", "c.json", '{"images": [],\n "annotations" []}', "line 2 of .*is not JSON"),
        ("coco", "c.json", "[]", "is not COCO"),
        ("coco", "c.json", '{"images": []}', "no list 'annotations'"),
        ("yolo", "l/data.yaml", "names: {", "is not YAML"),
        ("yolo", "l/data.yaml", "names: 5", "no list of class names"),
        ("yolo", "l/data.yaml", "kpt_shape: [17]", "has the kpt_shape"),
        ("yolo", "l/data.yaml", "kpt_shape: [17, 4]", "has the kpt_shape"),
        ("boxes", "b.jsonl", b"\xff", "not UTF-8"),
    ],
)
def test_annotations_of_another_format_are_named(
    name: str, file: str, content: str | bytes, sentence: str, images: Path, tmp_path: Path
) -> None:
    picture(images / "x.jpg")
    path = write(tmp_path / file, content)
    with pytest.raises(ValueError, match=sentence) as error:
        everything(open_reader(name, images, path if "/" not in file else path.parent))
    assert "\n" not in str(error.value)


def test_missing_folders_are_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of photos at '.*none'; check --images"):
        open_reader("coco", tmp_path / "none", images)
    with pytest.raises(ValueError, match=r"no annotations at '.*none'; check --annotations"):
        open_reader("coco", images, tmp_path / "none")
    with pytest.raises(ValueError, match="the format coco needs --annotations"):
        open_reader("coco", images)
    with pytest.raises(ValueError, match="--whole-masks is for the format masks"):
        open_reader("coco", images, images, whole_masks=True)


# the filter

SIZE = (200, 100)


def reasons(box_filter: BoxFilter, *boxes: MarkedBox) -> dict[str, int]:
    counts: Counter[str] = Counter()
    kept, labels = box_filter.apply(Annotated("p", list(boxes)), SIZE, counts)
    assert len(kept) == len(labels)
    return dict(counts) | ({"kept": len(kept)} if len(kept) else {})


@pytest.mark.parametrize(
    ("options", "box", "reason"),
    [
        ({}, MarkedBox(0, 0, 20, 20), "kept"),  # 400 of 20,000 pixels: exactly 0.02
        ({}, MarkedBox(0, 0, 20, 19.9), "area too small"),
        ({}, MarkedBox(0, 0, 160, 100), "kept"),  # exactly 0.8
        ({}, MarkedBox(0, 0, 160.1, 100), "area too large"),
        ({"min_side": 21}, MarkedBox(0, 0, 100, 20), "side too short"),
        ({"min_side": 20}, MarkedBox(0, 0, 100, 20), "kept"),
        ({"max_aspect": 4.9}, MarkedBox(0, 0, 20, 98), "kept"),
        ({"max_aspect": 4.8}, MarkedBox(0, 0, 20, 98), "too oblong"),
        ({}, MarkedBox(50, 50, 50, 60), "without area"),
        ({}, MarkedBox(60, 50, 50, 60), "without area"),
        ({}, MarkedBox(math.nan, 0, 50, 60), "without area"),
        ({}, MarkedBox(0, 0, 50, 50, "cat", frozenset({"group"})), "kept"),
        (
            {"drop": frozenset({"group"})},
            MarkedBox(0, 0, 50, 50, "cat", frozenset({"group", "inside"})),
            "marked group",
        ),
        ({"include": frozenset({"cat"})}, MarkedBox(0, 0, 50, 50, "dog"), "label not included"),
        ({"include": frozenset({"cat"})}, MarkedBox(0, 0, 50, 50, "cat"), "kept"),
        ({"exclude": frozenset({"cat"})}, MarkedBox(0, 0, 50, 50, "cat"), "label excluded"),
    ],
)
def test_reasons(options: dict[str, Any], box: MarkedBox, reason: str) -> None:
    assert reasons(BoxFilter(**options), box) == {reason: 1}


def test_boxes_are_clipped_and_rounded() -> None:
    counts: Counter[str] = Counter()
    boxes = [
        MarkedBox(-30, 10.4, 50.6, 60.5),
        MarkedBox(-0.4, 0, 100, 50),  # rounding: not worth a count
        MarkedBox(150, 50, math.inf, 99),
        MarkedBox(300, 0, 400, 50),
    ]
    kept, _ = BoxFilter().apply(Annotated("p", boxes), SIZE, counts)
    assert kept.tolist() == [[0, 10, 51, 60], [0, 0, 100, 50], [150, 50, 200, 99]]
    assert counts == {CLIPPED: 3, "outside the photo": 1}


def test_areas_are_of_the_clipped_box() -> None:
    assert reasons(BoxFilter(), MarkedBox(-100, 0, 3, 100)) == {CLIPPED: 1, "area too small": 1}


def test_annotations_of_a_resized_or_turned_photo() -> None:
    box = MarkedBox(100, 50, 300, 150)
    kept, _ = BoxFilter().apply(Annotated("p", [box], frame=(400, 201)), SIZE, Counter())
    assert kept.tolist() == [[50, 25, 150, 75]]
    with pytest.raises(Unusable, match=r"another shape .100 x 200, but upright it is 200 x 100"):
        BoxFilter().apply(Annotated("p", [box], frame=(100, 200)), SIZE, Counter())


@pytest.mark.parametrize(
    "options", [{"min_area": 0.5, "max_area": 0.4}, {"max_area": 1.1}, {"max_aspect": 0.9}]
)
def test_limits_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"the l(imits|argest)"):
        BoxFilter(**options)  # pyright: ignore[reportArgumentType]
