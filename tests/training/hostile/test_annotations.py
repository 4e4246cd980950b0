"""Annotations of other tools: damaged, bombs, of other types."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.cli import main
from training.prepare.annotations import Annotated, Unusable
from training.prepare.annotations.files import pictures_below

from .files import (
    DEEP,
    HEADER,
    HUGE,
    NESTED,
    TERMINAL,
    everything,
    passed_over,
    picture,
    put,
    sentence,
)

# ---- COCO --------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
}


def coco_file(images: Path, name: str, *entries: object) -> Path:
    """COCO with other entries in a list."""
    text = json.dumps({**COCO, name: entries}).replace('"HUGE"', HUGE).replace('"DEEP"', NESTED)
    return put(images.parent / "c.json", text)


def coco(images: Path, name: str, *entries: object) -> list[Annotated]:
    return everything("coco", images, coco_file(images, name, *entries))


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        ("images", [1], "not an object"),
        ("images", {"id": [1], "file_name": "a.png"}, "its id is not a number or a string"),
        ("images", {"id": "DEEP", "file_name": "a.png"}, "its id is not"),
        ("images", {"id": 1, "file_name": {"a": 1}}, "its file_name is not a string"),
        ("images", {"id": 1, "file_name": 7}, "its file_name is not a string (7)"),
        ("images", {"id": 1}, "it lacks file_name"),
        ("images", {"id": 1, "file_name": "a", "width": "w", "height": 9}, "its size is not"),
        ("images", {"id": 1, "file_name": "a", "width": [1], "height": 9}, "its size is not"),
        ("images", {"id": 1, "file_name": "a", "width": "HUGE", "height": 9}, "its size is not"),
        ("categories", {"id": [1], "name": "cat"}, "its id is not"),
        ("categories", {"id": 1, "name": "DEEP"}, "its name is not"),
        ("categories", {"id": 1, "name": {"a": 1}}, "its name is not"),
        ("annotations", {"image_id": [1], "bbox": [0, 0, 9, 9]}, "its image_id is not"),
        ("annotations", {"image_id": {}, "bbox": [0, 0, 9, 9]}, "its image_id is not"),
        ("annotations", {"image_id": 1, "category_id": [1], "bbox": [0, 0, 9, 9]}, "category_id"),
        ("annotations", {"image_id": 1, "bbox": "1234"}, "its bbox is not [x, y, width, height]"),
        ("annotations", {"image_id": 1, "bbox": {"0": 1}}, "its bbox is not"),
        ("annotations", {"image_id": 1, "bbox": [0, 0, 9, "HUGE"]}, "its bbox is not"),
        ("annotations", {"image_id": 1, "bbox": [0, 0, 9, "DEEP"]}, "its bbox is not"),
        ("annotations", {"image_id": 1, "bbox": [TERMINAL * 900]}, "its bbox is not"),
    ],
)
def test_coco_of_other_types(name: str, entry: object, reason: str, images: Path) -> None:
    sound = COCO[name][0]
    (line,) = passed_over("coco", images, coco_file(images, name, entry, {**sound, "id": 9}))
    assert line.startswith(f"c.json, entry 0 of '{name}': ") and reason in line, line


def test_coco_that_is_tolerated(images: Path) -> None:
    (photo,) = coco(images, "images", {"id": 1.0, "file_name": "a.png", "width": "40", "height": 9})
    assert photo.frame == (40, 9) and photo.boxes[0].label == "cat"
    (photo,) = coco(images, "images", {"id": 1, "file_name": "a.png", "width": None, "height": 9})
    assert photo.frame is None
    (photo,) = coco(images, "annotations", {"image_id": 1, "bbox": [0, 0, 9, 9]})
    assert photo.boxes[0].label == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [(DEEP, "nested too deeply"), ('{"a":' * 50_000, "nested too deeply"), (b"\xff", "not JSON")],
)
def test_coco_that_is_not_json(
    text: str | bytes, reason: str, images: Path, tmp_path: Path
) -> None:
    path = put(tmp_path / "c.json", text)
    sentence(lambda: everything("coco", images, path), reason)


def test_ids_that_hash_alike_take_no_longer(images: Path, tmp_path: Path) -> None:
    ids = [number * (2**61 - 1) for number in range(30_000)]  # all have the hash 0
    entries = [{"image_id": i, "bbox": [0, 0, 9, 9]} for i in ids]
    path = put(tmp_path / "c.json", json.dumps({**COCO, "annotations": entries}))
    assert everything("coco", images, path) == []


# ---- YAML --------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a0: &a0 {k0: v}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


def class_names(images: Path, text: str | bytes) -> str:
    """What the first class is called."""
    put(images / "data.yaml", text)
    put(images.parent / "labels/a.txt", "0 0.5 0.5 1 1\n")
    return everything("yolo", images, images)[0].boxes[0].label


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS + "names: *i", "no list of class names"),
        (LAUGHS + "names: {0: *i}", "no list of class names"),
        (MERGES + "names: *a8", "no list of class names"),
        (f"names: {'[' * 2000}", "is not YAML: more than 32 levels"),
        (f"names: {'{a: ' * 2000}", "is not YAML: more than 32 levels"),
        ("- " * 2000, "is not YAML: more than 32 levels"),
        ("a: &a [*a]", "is not YAML"),
        ("names: {" + "1" * 500 + ": a}", "no list of class names"),
        ("names: {one: a}", "no list of class names"),
        ("names:", "no list of class names"),
        ("[]", "no list of class names"),
        ("names: {[a]: b}", "is not YAML"),
        ("names: 'a" + "\n\n" * 100 + "\x1b'", "is not YAML"),
        ("x" * (2**20 + 1), "has 1,048,577 bytes, and 1,048,576 are the most"),
    ],
    ids=range(14),
)
def test_yaml_bombs(text: str, reason: str, images: Path) -> None:
    sentence(lambda: class_names(images, text), reason)


def test_yaml_of_many_entries(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.prepare.annotations.yolo_names._MAX_NODES", 1000)
    sentence(
        lambda: class_names(images, f"names: [{'a,' * 1000}]"), "is not YAML: .* 1,000 entries"
    )
    assert class_names(images, f"names: [cat, {'a,' * 900}]") == "cat"


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat]",
        "names:\n- cat\n- dog",
        "names: {0: cat}",
        "names: {'0': cat}",
        b"\xef\xbb\xbfnames:\n  0: cat\n  7: dog\nnc: 2",
        "x: &n [cat, dog]\nnames: *n",
        "x: &c cat\nnames: [*c]",
        "train: &t images\nval: *t\n<<: {kpt_shape: [17, 3]}\nnames: [cat]",
        LAUGHS + "names: [cat]",
    ],
)
def test_yaml_with_class_names(text: str | bytes, images: Path) -> None:
    assert class_names(images, text) == "cat"


def test_yaml_makes_nothing_but_text(images: Path) -> None:
    assert class_names(images, "names: [!!python/name:os.getcwd cat]\n") == "cat"
    text = "names: !!python/object/apply:os.mkdir [ran-by-file]\n"
    assert class_names(images, text) == "ran-by-file" and not Path("ran-by-file").exists()


# ---- XML ---------------------------------------------------------------------------------------


def voc(images: Path, text: str | bytes) -> list[Annotated]:
    put(images.parent / "xml/a.xml", text)
    return everything("voc", images, images.parent / "xml")


BOX_OF_VOC = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "<!DOCTYPE a [<!ENTITY a 'x'><!ENTITY b '&a;&a;&a;'>]><a><filename>&b;</filename></a>",
            "declares entities",
        ),
        ("<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><a>&a;</a>", "declares entities"),
        ("<!DOCTYPE a [<!ENTITY % a SYSTEM '/dev/zero'> %a;]><a/>", "declares entities"),
        ("<a>" * 100_000, "nested more than 100 deep"),
        ("<?xml version='1.0' encoding='nonsense'?><a/>", "not XML of annotations .*nonsense"),
        ("<?xml version='1.0' encoding='utf-7'?><a/>", "not XML of .* utf-7 is not read"),
        ("<?xml version='1.0' encoding='punycode'?><a/>", "not XML of .* punycode is not read"),
        ("<?xml version='1.0' encoding='zip'?><a/>", "not XML of annotations"),
        (b"<?xml version='1.0' encoding='gb2312'?><a>\xd6</a>", "not XML of annotations .*gb2312"),
        ("<?xml version='1.0'?><a>\xe9</a>".encode("latin-1"), "not XML of annotations .*utf-8"),
        ("<a>&b;</a>", "not XML .*line 1"),
        ("\0", "not XML"),
        ("", "not XML"),
        (" " * (2**22 + 1), "has 4,194,305 bytes, and 4,194,304 are the most"),
        (
            "<a><object><bndbox/></object></a>",
            "object 1: it has neither a bndbox .* nor an out",
        ),
    ],
    ids=range(15),
)
def test_xml_bombs(text: str | bytes, reason: str, images: Path) -> None:
    put(images.parent / "xml/a.xml", text)
    (line,) = passed_over("voc", images, images.parent / "xml")
    assert line.startswith("a.xml") and re.search(reason, line), line


def test_xml_that_is_tolerated(images: Path) -> None:
    thing = f"<object><name>cat</name>{BOX_OF_VOC}</object>"
    doctype = "<!DOCTYPE annotation SYSTEM 'voc.dtd'>"
    (photo,) = voc(images, f"{doctype}<annotation>{thing}<filename>a.png</filename></annotation>")
    assert (photo.path, photo.boxes[0].label) == ("a.png", "cat")
    long = "x" * 5000
    (photo,) = voc(images, f"<annotation>{thing}<filename>{long}</filename></annotation>")
    assert photo.path == "a.png"


def test_many_elements_take_linear_time(images: Path) -> None:
    (photo,) = voc(images, "<a>" + f"<object>{BOX_OF_VOC}</object>" * 10_000 + "</a>")
    assert len(photo.boxes) == 10_000
    assert voc(images, "<a>" + "<b/>" * 200_000 + "</a>")[0].boxes == []


# ---- other annotations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",/m/a,0,0,1,1", "line 3: a row without the name of a photo"),
        (f'"{"x" * 200_000}"', "line 3: not a row with ImageID"),
        ("x" * (2**20 + 1), "line 3: not a row with ImageID"),
        ("b,/m/a,0,0,1", "line 3: not a row with ImageID"),
        ("b,/m/a,0,0,one,1", "line 3: not a row with ImageID"),
        (b"b,/m/\xff,0,0,1,1", "line 3: a row without .* not in UTF-8"),
        (b"b\xff,/m/a,0,0,1,1", "line 3: a row without .* not in UTF-8"),
    ],
    ids=range(7),
)
def test_bad_rows(row: str | bytes, reason: str, images: Path, tmp_path: Path) -> None:
    row = row.encode() if isinstance(row, str) else row
    good = b"c,/m/a,0,0,1,1"
    path = put(tmp_path / "t.csv", b"\n".join([HEADER.encode(), good, row, b"", good]))
    assert re.search(reason, passed_over("openimages", images, path)[0])
    (photo,) = everything("openimages", images, path)
    assert (photo.path, len(photo.boxes)) == ("c.jpg", 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff\xfe" + HEADER.encode("utf-16-le"), "is not UTF-8; save it"),
        ("x" * 200_000, "has no column ImageID"),
        ("", "has no column ImageID"),
    ],
    ids=range(3),
)
def test_bad_tables(text: str | bytes, reason: str, images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", text)
    sentence(lambda: everything("openimages", images, path), reason)


def test_rows_of_a_photo_that_do_not_stand_together(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "t.csv", f"{HEADER}\n" + "b,/m/a,0,0,1,1\n\x1b,/m/a,0,0,1,1\n" * 2)
    photos = everything("openimages", images, path)
    assert [(photo.path, len(photo.boxes)) for photo in photos] == [("b.jpg", 2), ("\x1b.jpg", 2)]
    monkeypatch.setattr("training.prepare.annotations.openimages._GATHERED", 9)
    sentence(lambda: everything("openimages", images, path), "goes back from photo b to")


def test_a_bad_table_of_class_names(images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", f"{HEADER}\na,/m/a,0,0,1,1\n")
    put(tmp_path / "class-descriptions-boxable.csv", f'/m/a,"{"x" * 200_000}"\n')
    sentence(lambda: everything("openimages", images, path), "not a table of class names")


def test_a_photo_with_millions_of_boxes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.prepare.annotations.openimages._MAX_BOXES", 3)
    path = put(tmp_path / "t.csv", f"{HEADER}\n" + "a,/m/a,0,0,1,1\n" * 4)
    (line,) = passed_over("openimages", images, path)
    assert "line 5: a row of a photo that has too many boxes" in line
    assert len(everything("openimages", images, path)[0].boxes) == 3


def test_a_mask_of_specks(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.prepare.annotations.masks._MOST_BLOBS", 9)
    specks = np.zeros((20, 40), np.uint8)
    specks[::2, ::2] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(specks).save(tmp_path / "masks/a.png")
    with pytest.raises(Unusable, match=r"has too many white blobs .200; 9 are the most"):
        everything("masks", images, tmp_path / "masks")


def test_links_that_lead_around_in_circles(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"photos/{name}/{name}.png")
        for link in ("x", "y"):
            (tmp_path / f"photos/{name}/{link}").symlink_to(tmp_path / "photos")
    assert pictures_below(tmp_path / "photos") == ["a/a.png", "b/b.png", "c/c.png"]
    (tmp_path / "linked").symlink_to(tmp_path / "photos/a")
    assert pictures_below(tmp_path / "linked")[0] == "a.png"


@pytest.mark.parametrize("size", [(0, 9), (-5, 9), (1e999, 9), (float("nan"), 9), (1e308, 1e-308)])
def test_sizes_that_no_photo_has(size: tuple[float, float], images: Path, tmp_path: Path) -> None:
    line = {"image": "a.png", "box": [0, 0, 40, 10], "size": size}
    annotations = put(tmp_path / "b.jsonl", json.dumps(line))
    words = ["--images", str(images), "--annotations", str(annotations), "--val", "0"]
    words += ["--out", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare", "boxes", *words]) == 2  # no photo is left
