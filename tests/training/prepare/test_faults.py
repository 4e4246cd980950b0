"""Collections as people have them: a fault of one photo or annotation never costs the others."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

import training.prepare.collection
from training.cli import main
from training.data.index import BoxIndex
from training.data.unreadable import UnreadableList
from training.prepare.annotations import PhotoFinder, Unusable, open_reader
from training.prepare.annotations.coco_outlines import outlined
from training.prepare.workers import process_map

SIZE = (160, 120)
BOX = [40, 30, 100, 80]
LINE = "0 0.4375 0.45833333 0.375 0.41666667\n"  # the same in shares
VOC_BOX = "<bndbox><xmin>41</xmin><ymin>31</ymin><xmax>100</xmax><ymax>80</ymax></bndbox>"
SQUARE = [[40, 30, 100, 30, 100, 80, 40, 80]]
ELLIPSE = (  # and of an ellipse and a square
    "\\X1c0S28I6K4L4L4M2N2N2N2N2O0O2O0000000000000001N101N2N2N2N2N3L4L4L5J7HiS1@klN00000i`0"
)
COMPRESSED = "nf4b1V2" + "0" * 117 + "RP7"  # pycocotools' string for a mask of that square


def picture(path: Path, format: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8)).save(path, format)
    return path


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def prepare(form: str, images: Path, out: Path, *more: str | Path) -> int:
    words = ["prepare", form, "--images", images, "--out", out, "--val", "0", "--processes", "1"]
    return main([str(word) for word in (*words, *more)])


def found(out: Path) -> dict[str, list[tuple[int, ...]]]:
    """Boxes by photo."""
    index = BoxIndex.open(out / "train")
    photos = map(index.photo, range(index.num_photos))
    return {photo.path: [index.box(number) for number in photo.boxes] for photo in photos}


def listed(out: Path) -> dict[str, str]:
    lines = (out / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def table(printed: str) -> dict[str, int]:
    """Counts of the table by the name of the row, the first of each."""
    rows: dict[str, int] = {}
    for line in printed.splitlines():
        name, _, count = line.strip().rpartition("  ")
        if name and count.strip().replace(",", "").isdigit():
            rows.setdefault(name.strip(), int(count.replace(",", "")))
    return rows


# ---- every file is counted ---------------------------------------------------------------------

FORMATS = {
    "jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "gif": "GIF", "avif": "AVIF", "jp2": "JPEG2000",
    "mpo": "MPO", "bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "webp": "WEBP", "ppm": "PPM",
}  # fmt: skip
OPTIONAL = {"avif": "avif", "jp2": "jpg_2000", "webp": "webp"}


def test_all_suffixes_are_read_and_every_file_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    there = {s: f for s, f in FORMATS.items() if features.check(OPTIONAL.get(s, "jpg"))}
    for suffix, format in there.items():
        picture(images / f"{suffix}.{suffix}", format)
        put(tmp_path / f"labels/{suffix}.txt", LINE)
    picture(images / "alone.png")
    put(images / "empty.jpg", "")
    put(tmp_path / "labels/empty.txt", LINE)
    picture(images / "boxless.jpg")
    put(tmp_path / "labels/boxless.txt", "")
    for name in ("a.heic", "b.HEIC", "Thumbs.db", ".DS_Store", "._jpe.jpe", "README"):
        put(images / name, "x")
    put(tmp_path / "labels/gone.txt", LINE)
    out = images / "prepared"  # what it writes there is not counted
    for _ in range(2):
        assert prepare("yolo", images, out) == 0
        rows = table(capsys.readouterr().out)
        assert rows["files in the folder of photos"] == len(there) + 9
        assert rows["pictures used"] == rows["photos"] == len(there)
        assert rows["pictures without a box left"] == rows["pictures left out"] == 1
        assert rows["pictures that nothing annotates"] == 1
        assert rows["other files (.heic 2, hidden 2, .db 1, without suffix 1)"] == 6
        assert rows["no photo for this text file"] == rows["empty file"] == 1
    assert set(found(out)) == {f"{suffix}.{suffix}" for suffix in there}
    assert set(map(tuple, found(out).values())) == {(tuple(BOX),)}
    assert listed(out) == {
        "labels/gone.txt": "no photo for this text file",
        "empty.jpg": "empty file",
    }


@pytest.mark.slow
def test_faults_are_the_same_with_several_processes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    lines = [{"image": f"C:\\x\\sub\\{n}.jpg", "box": BOX} for n in range(6)]
    lines += [{"image": "0.jpg", "box": [90, 9, 1, 9]}, {"image": 7}, {"image": "no", "box": BOX}]
    for number in range(5):
        picture(images / f"sub/{number}.jpg")
    put(images / "sub/4.jpg", "no picture")
    path = put(tmp_path / "b.jsonl", "\n".join(map(json.dumps, lines)))
    for processes in ("1", "2"):
        more = ("--annotations", path, "--processes", processes, "--shards")
        assert prepare("boxes", images, tmp_path / processes, *more) == 0
    one, two = (
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "1", tmp_path / "2")
    )
    assert one == two and len(found(tmp_path / "1")) == 4


def test_the_first_faults_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        picture(tmp_path / f"images/{number}.png")
        put(tmp_path / f"labels/{number}.txt", LINE + "\n0 1 2\x1b\n" * 3)
    assert prepare("yolo", tmp_path / "images", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "passed over: 9, see unreadable.txt; the first 5 of them:" in printed
    assert printed.count("): ") == 0 and printed.count("labels/") == 5 and "\x1b" not in printed
    assert "labels/0.txt, line 3: not 'class cx cy width height'" in printed
    assert table(printed)["photos"] == 3 and len(listed(tmp_path / "out")) == 9


def test_when_nothing_is_left_it_says_why_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        picture(tmp_path / f"images/{number}.png")
        put(tmp_path / f"labels/{number}.txt", "0 0.5 0.5 0.4\n")
    out = tmp_path / "new/out"
    assert prepare("yolo", tmp_path / "images", out) == 2
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert "has a box left (photos left out: without a box left (3); annotations passed" in said
    assert "over: not 'class cx" in said and "the first is labels/0.txt, line 1: not" in said
    assert not (tmp_path / "new").exists()
    for number in range(3):  # once that is mended, the same command works
        put(tmp_path / f"labels/{number}.txt", LINE)
    assert prepare("yolo", tmp_path / "images", out) == 0 and len(found(out)) == 3
    before = (out / "prepare.json").read_bytes()
    for number in range(3):
        put(tmp_path / f"labels/{number}.txt", "")
    assert prepare("yolo", tmp_path / "images", out) == 2
    assert (out / "prepare.json").read_bytes() == before and len(found(out)) == 3
    assert not (out / "prepare.partial").exists()


# ---- COCO --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "corners"),
    [
        (SQUARE, BOX),
        (SQUARE[0], BOX),
        ([[[40, 30], [100, 80]]], BOX),
        ([[40, 30, 50, 40], [90, 70, 100, 80]], BOX),
        ({"size": [120, 160], "counts": COMPRESSED}, BOX),
        ({"size": [120, 160], "counts": [4830, *[50, 70] * 59, 50]}, BOX),
        ({"size": [2, 3], "counts": [1, 2, 3]}, [0, 0, 2, 2]),
        ({"size": [2, 3], "counts": [0, 6]}, [0, 0, 3, 2]),
        (
            {"size": [90, 70], "counts": ELLIPSE},
            [14, 3, 64, 70],
        ),
    ],
)  # fmt: skip
def test_boxes_around_outlines(segmentation: Any, corners: list[int]) -> None:
    box = outlined(segmentation)
    assert box is not None and list(box.corners) == corners


@pytest.mark.parametrize(
    "segmentation",
    [
        [], {}, 5, "0", [[]], [[1, 2]], [[1, 2, 3]], [["a", "b", "c", "d"]],
        [[1, 2, float("nan"), 4]],
        {"size": [2, 3]}, {"size": [2, 3], "counts": [6]}, {"size": [2, 3], "counts": [0, 7]},
        {"size": [2, 3], "counts": [-1, 2]}, {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": "P" * 20}, {"size": [2], "counts": [1, 2, 3]},
        {"size": [2, 3], "counts": "o"}, {"size": [1e999, 3], "counts": [1, 2]},
    ],
)  # fmt: skip
def test_outlines_of_nothing(segmentation: Any) -> None:
    assert outlined(segmentation) is None


def coco(tmp_path: Path, annotations: list[Any], **more: Any) -> Path:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(len(annotations))]
    entries = [{"image_id": n, **a} for n, a in enumerate(annotations)]
    for n in range(len(annotations)):
        picture(tmp_path / f"images/{n}.png")
    text = json.dumps({"images": images, "annotations": entries, **more})
    return put(tmp_path / "c.json", b"\xef\xbb\xbf" + text.encode())


def test_coco_without_categories_and_with_all_kinds_of_boxes(tmp_path: Path) -> None:
    xywh = [40, 30, 60, 50]
    path = coco(
        tmp_path,
        [
            {"bbox": xywh},
            {"segmentation": SQUARE},
            {"bbox": [], "segmentation": SQUARE},
            {"bbox": None, "segmentation": SQUARE},
            {"bbox": [0, 0, 0, 0], "segmentation": {"size": [120, 160], "counts": COMPRESSED}},
            {"bbox": xywh, "iscrowd": "0", "category_id": 5},
            {"bbox": xywh, "iscrowd": 1},
            {"bbox": []},
            {"bbox": None},
            {},
            {"bbox": [40, 30, 60, 50, 12], "segmentation": [[1]]},
            {"bbox": [0.25, 0.25, 0.375, 0.4]},
            {"bbox": [-30, -30, 130, 110]},
        ],
    )
    out = tmp_path / "out"
    assert prepare("coco", tmp_path / "images", out, "--annotations", path) == 0
    boxes = found(out)
    assert boxes.pop("12.png") == [(0, 0, 100, 80)]
    assert boxes == {f"{n}.png": [tuple(BOX)] for n in range(6)}
    meta = BoxIndex.open(out / "train").meta
    assert meta["annotations passed over"] == {
        "without a bbox or an outline": 3,
        "its bbox is not [x, y, width, height]": 1,
    }
    assert meta["boxes left out"] == {
        "marked crowd": 1, "in shares of the photo, not in pixels": 1
    }  # fmt: skip
    assert meta["photos left out"] == {"without a box left": 2, "photos without annotations": 4}
    assert set(listed(out)) == {f"c.json, entry {n} of 'annotations'" for n in range(7, 11)} | {
        "11.png"
    }


def test_coco_ids_that_are_there_twice(tmp_path: Path) -> None:
    box = {"bbox": [40, 30, 60, 50]}
    path = coco(tmp_path, [box] * 4, categories=[{"id": 1, "name": n} for n in ("a", "b", "a")])
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    content["images"][1]["id"] = 0  # two photos of one id
    content["images"][3]["file_name"] = "2.png"  # one photo under two ids
    content["annotations"][3] |= {"bbox": [0, 0, 60, 50]}
    content["annotations"] += [{"image_id": 3, **box}, {"image_id": "2", **box}]
    put(path, json.dumps(content))
    out = tmp_path / "out"
    assert prepare("coco", tmp_path / "images", out, "--annotations", path) == 0
    assert found(out) == {"2.png": [tuple(BOX), (0, 0, 60, 50)]}
    assert listed(out) == {
        "c.json, entry 1 of 'categories'": "its id is that of another category (b)",
        "c.json, entry 0 of 'images'": "its id is that of another photo (0)",
        "c.json, entry 1 of 'images'": "its id is that of another photo (0)",
    }


def test_a_mask_in_runs_of_another_size_than_the_photo(tmp_path: Path) -> None:
    runs = {"segmentation": {"size": [60, 80], "counts": [60, 60]}}
    path = coco(tmp_path, [{"segmentation": SQUARE}, runs])
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    content["images"] = [{**image, "width": 160, "height": 120} for image in content["images"]]
    reader = open_reader("coco", tmp_path / "images", put(path, json.dumps(content)))
    assert [photo.path for photo in reader.entries()] == ["0.png"]
    assert reader.faults.listed[0][1].endswith("(80, 60) is not as large as the photo)")


# ---- Pascal VOC --------------------------------------------------------------------------------


def xml(*boxes: str, name: str = "", label: str = "cat", head: str = "") -> str:
    filename = f"<filename>{name}</filename>" if name else ""
    things = "".join(f"<object><name>{label}</name>{box}</object>" for box in boxes)
    return f"{head}<annotation>{filename}{things}</annotation>"


POLYGON = "<polygon><x1>41</x1><y1>31</y1><x2>100.0</x2><y2>31</y2><x3>60</x3><y3>80</y3></polygon>"
POINTS = "<polygon><pt><x>41</x><y>31</y></pt><pt><x>100</x><y>80</y></pt></polygon>"
TURNED = (
    "<robndbox><cx>70.5</cx><cy>55.5</cy><w>59</w><h>49</h><angle>3.141592653589793</angle>"
    "</robndbox>"
)


@pytest.mark.parametrize(
    "box",
    [VOC_BOX, POLYGON, POINTS, TURNED, "<bndbox/>" + POLYGON, VOC_BOX.replace("41", "41.0")],
    ids=range(6),
)
def test_voc_boxes_and_outlines(box: str, tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/a.png")
    put(tmp_path / "Annotations/a.xml", xml(box))
    out = tmp_path / "out"
    assert prepare("voc", tmp_path / "JPEGImages", out) == 0
    assert found(out) == {"a.png": [tuple(BOX)]}


@pytest.mark.parametrize(
    ("encoding", "declared", "label"),
    [
        ("gb2312", "gb2312", "猫"), ("gbk", "GBK", "猫"), ("shift_jis", "Shift_JIS", "猫"),
        ("euc_kr", "euc-kr", "고양이"), ("big5", "big5", "貓"), ("cp1252", "windows-1252", "é"),
        ("latin-1", "ISO-8859-1", "é"), ("utf-16", "utf-16", "猫"), ("utf-16", "utf-8", "猫"),
        ("utf-16-le", "utf-16", "猫"), ("utf-8-sig", "utf-8", "猫"), ("utf-8", "", "猫"),
        ("utf-32", "utf-32", "猫"),
    ],
)  # fmt: skip
def test_xml_in_any_encoding(encoding: str, declared: str, label: str, tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/a.png")
    head = f'<?xml version="1.0" encoding="{declared}"?>\r\n' if declared else "\n"
    text = xml(VOC_BOX, name="a.png", label=label, head=head)
    put(tmp_path / "Annotations/a.xml", text.encode(encoding))
    reader = open_reader("voc", tmp_path / "JPEGImages")
    (entry,) = reader.entries()
    assert reader.read(entry).boxes[0].label == label


def test_one_bad_xml_of_many(tmp_path: Path) -> None:
    images, annotations = tmp_path / "JPEGImages", tmp_path / "Annotations"
    contents = {
        "good": xml(VOC_BOX),
        "half": xml("<bndbox/>", VOC_BOX, VOC_BOX.replace("41", "4,1")),
        "windows": xml(VOC_BOX, name="C:\\data\\windows.png"),
        "bare": xml(VOC_BOX, name="bare"),
        "empty": "",
        "cut": xml(VOC_BOX)[:-9],
        "wrong": xml(VOC_BOX, label="é").encode("latin-1"),
        "none": xml(),
    }
    for name, content in contents.items():
        picture(images / f"{name}.png")
        put(annotations / f"{name}.xml", content)
    out = tmp_path / "out"
    assert prepare("voc", images, out) == 0
    assert set(found(out)) == {"good.png", "half.png", "windows.png", "bare.png"}
    assert set(listed(out)) == {
        "empty.xml", "cut.xml", "wrong.xml", "half.xml, object 1", "half.xml, object 3"
    }  # fmt: skip


def test_xml_of_another_photo(tmp_path: Path) -> None:
    images, annotations = tmp_path / "JPEGImages", tmp_path / "Annotations"
    for name in ("a.png", "b.png", "deep/c.png"):
        picture(images / name)
    put(annotations / "a.xml", xml(VOC_BOX, name="b.png"))  # which of the two?
    put(annotations / "b.xml", xml(VOC_BOX, name="b.png"))
    put(annotations / "copy.xml", xml(VOC_BOX.replace("41", "11"), name="b.png"))
    put(annotations / "deep/c.xml", xml(VOC_BOX, name="old.png"))
    out = tmp_path / "out"
    assert prepare("voc", images, out) == 0
    assert found(out) == {"b.png": [tuple(BOX)], "deep/c.png": [tuple(BOX)]}
    assert listed(out) == {
        "a.xml": "it says it is of another photo (b.png, not a.png)",
        "copy.xml": "several annotations may mean the same photo (b.png)",
    }


# ---- lines -------------------------------------------------------------------------------------


def test_lines_of_boxes(tmp_path: Path) -> None:
    names = ["a.png", "sub/b.png", "line\u2028sep.png", "é.png"]
    for name in names:
        picture(tmp_path / "images" / name)
    entries: list[Any] = [
        {"image": "C:\\Users\\me\\a.png", "box": BOX},
        {"image": "sub\\b.png", "box": BOX},
        {"image": "line\u2028sep.png", "box": BOX},
        {"image": unicodedata.normalize("NFD", "É.PNG"), "box": BOX},
        {"image": 1, "box": BOX},
        {"image": None, "box": BOX},
        {"image": "sub/b.png", "box": BOX, "size": [9, 9]},
        {"image": "sub\\b.png", "box": [1, 2, 3]},
        {"image": "a.png", "box": [0.1, 0.2, 0.5, 0.6]},
        7,
    ]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    text = "\r\n".join([*lines, "{", ""])
    path = put(tmp_path / "b.jsonl", b"\xef\xbb\xbf" + text.encode())
    out = tmp_path / "out"
    assert prepare("boxes", tmp_path / "images", out, "--annotations", path) == 0
    assert found(out) == {name: [tuple(BOX)] for name in names}
    assert {name for name in listed(out) if name.startswith("b.jsonl")} == {
        f"b.jsonl, line {n}" for n in (5, 6, 8, 10, 11)
    }
    assert listed(out)["sub/b.png"].startswith("annotated in another shape (9 x 9")


def test_training_passes_over_bad_lines_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "sub/a.png")
    entries = [
        {"image": "sub\\a.png", "box": BOX},
        {"image": 5, "box": BOX},
        {"image": "sub/a.png", "box": [100, 80, 40, 30]},
        {"image": "sub/a.png"},
        {"image": "b.png", "box": BOX, "size": [70_000, 9]},
        {"image": "x" * 70_000, "box": BOX},
        {"image": "sub/a.png", "box": BOX},
    ]
    path = put(tmp_path / "b.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, entries)) + "\n{")
    index = BoxIndex.open(path, tmp_path)
    assert (index.num_photos, index.num_boxes, index.photo(0).path) == (1, 2, "sub/a.png")
    assert "passing over 6 lines, the first: line 2 (" in caplog.text
    put(path, "\n".join(map(json.dumps, entries[1:4])))
    with pytest.raises(ValueError, match=r"line 1 of .* is no box entry .*, and 2 more are none"):
        BoxIndex.open(path, tmp_path)


# ---- names of photos ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("a.jpg", "sub/a.jpg", "sub/b.JPG", "x/c.jpg", "y/c.jpg", "x/d.jpg", "é.jpg"):
        put(folder / name, "")
    return folder


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("a.jpg", ("a.jpg", True)),
        ("./a.jpg", ("./a.jpg", True)),
        ("sub/a.jpg", ("sub/a.jpg", True)),
        ("sub\\a.jpg", ("sub/a.jpg", True)),
        (".\\sub\\a.jpg", ("./sub/a.jpg", True)),
        ("C:\\photos\\sub\\a.jpg", ("sub/a.jpg", False)),
        ("C:/photos/a.jpg", ("a.jpg", False)),
        ("\\\\server\\share\\sub\\a.jpg", ("sub/a.jpg", False)),
        ("/home/me/data/sub/a.jpg", ("sub/a.jpg", False)),
        ("http://host/data/x/d.jpg", ("x/d.jpg", False)),
        ("train/x/d.jpg", ("x/d.jpg", False)),
        ("d.jpg", ("x/d.jpg", False)),
        ("SUB/B.jpg", ("sub/b.JPG", False)),
        ("b.jpg", ("sub/b.JPG", False)),
        ("C:\\photos\\B.JPG", ("C:/photos/B.JPG", True)),  # not by its name alone
        (unicodedata.normalize("NFD", "é.jpg"), ("é.jpg", False)),
        ("z/d.jpg", ("z/d.jpg", True)),  # another folder, another photo
        ("none.jpg", ("none.jpg", True)),
        ("/none/c.jpg", ("/none/c.jpg", True)),
        ("", ("", True)),
        ("\0", ("\0", True)),
        ("a/" * 100_000, ("a/" * 100_000, True)),
    ],
    ids=range(22),
)
def test_photos_are_found(stated: str, expected: tuple[str, bool], folder: Path) -> None:
    assert PhotoFinder(folder).find(stated) == expected


def test_photos_of_the_same_name_are_not_guessed(folder: Path) -> None:
    with pytest.raises(Unusable, match="several photos have that name"):
        PhotoFinder(folder).find("c.jpg")


def test_annotations_that_were_taken_for_the_same_photo(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "images" / name)
    names = ["C:\\x\\a.png", "D:\\y\\a.png", "b.png", "./b.png", "/q/b.png", "/q/c.png", "/q/c.png"]
    lines = [{"image": n, "box": [k, 10, 90, 90]} for k, n in enumerate(names)]
    path = put(tmp_path / "b.jsonl", "\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    assert prepare("boxes", tmp_path / "images", out, "--annotations", path) == 0
    assert found(out) == {
        "b.png": [(2, 10, 90, 90), (3, 10, 90, 90)],
        "c.png": [(5, 10, 90, 90), (6, 10, 90, 90)],
    }
    assert list(listed(out)) == ["C:\\x\\a.png", "D:\\y\\a.png", "/q/b.png"]


def test_names_and_links_of_any_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    for name in ("a\nb.png", "one/x.png", "two/x.png", "tab\t.png"):
        picture(images / name)
        put((tmp_path / "labels" / name).with_suffix(".txt"), LINE)
    for name in ("broken.png", "self.png", os.fsdecode(b"\xff.png")):
        put((tmp_path / "labels" / name).with_suffix(".txt"), LINE)
    (images / "broken.png").symlink_to("nowhere")
    (images / "self.png").symlink_to("self.png")
    (images / "loop").symlink_to(images)
    picture(images / os.fsdecode(b"\xff.png"))
    out = tmp_path / "out"
    assert prepare("yolo", images, out) == 0
    assert set(found(out)) == {"a\nb.png", "one/x.png", "two/x.png", "tab\t.png"}
    assert set(listed(out)) == {"broken.png", "self.png", "\\udcff.png"}
    rows = table(capsys.readouterr().out)
    assert (rows["files in the folder of photos"], rows["pictures left out"]) == (7, 3)


def test_masks_without_photos_and_photos_without_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, masks = tmp_path / "photos", tmp_path / "photos/masks"
    white = np.zeros(SIZE[::-1], np.uint8)
    white[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    for name in ("good", "black", "broken", "alone"):
        picture(photos / f"{name}.png")
    masks.mkdir()
    for name in ("good", "other"):
        Image.fromarray(white).save(masks / f"{name}.gif")
    Image.fromarray(white * 0).save(masks / "black.png")
    put(masks / "broken.png", "no picture")
    out = tmp_path / "out"
    assert prepare("masks", photos, out, "--annotations", masks) == 0
    assert found(out) == {"good.png": [tuple(BOX)]}
    assert set(listed(out)) == {"other.gif", "black.png", "broken.png"}
    rows = table(capsys.readouterr().out)
    assert (rows["files of annotations"], rows["pictures that nothing annotates"]) == (4, 1)


def test_two_masks_of_one_name_and_folders_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "photos/a.png")
    picture(tmp_path / "photos/shut/b.png")
    for suffix in ("png", "bmp"):
        picture(tmp_path / f"masks/a.{suffix}")
    scandir = os.scandir

    def refusing(path: str) -> Any:  # root may read everything
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    reader = open_reader("masks", tmp_path / "photos", tmp_path / "masks")
    assert list(reader.entries()) == [("a.png", "a.bmp")]
    assert reader.faults.listed == [
        (f"{tmp_path}/photos/shut", "a folder that cannot be read (Permission denied)"),
        ("a.png", "another mask has the same name (a.bmp)"),
    ]


def test_lists_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.prepare.faults.MOST_LISTED", 4)
    picture(tmp_path / "images/a.png")
    good = json.dumps({"image": "a.png", "box": BOX})
    path = put(tmp_path / "b.jsonl", "\n".join(["{}"] * 9 + [good]))
    out = tmp_path / "out"
    assert prepare("boxes", tmp_path / "images", out, "--annotations", path) == 0
    assert list(listed(out).items())[-1] == ("and 5 more", "not listed") and len(listed(out)) == 5
    assert "passed over: 9, see unreadable.txt; the first 4 of them:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "annotations"),
    [("coco", "images"), ("boxes", "images"), ("yolo", "f"), ("voc", "f"), ("masks", "f")],
)
def test_a_file_where_a_folder_belongs_and_the_reverse(
    form: str, annotations: str, tmp_path: Path
) -> None:
    picture(tmp_path / "images/a.png")
    put(tmp_path / "f", "")
    with pytest.raises(ValueError, match=r"is a (file|folder); this format takes a (file|folder)"):
        open_reader(form, tmp_path / "images", tmp_path / annotations)


def test_shards_of_photos_that_went_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "images" / name)
    lines = [json.dumps({"image": f"{name}.png", "box": BOX}) for name in "abc"]
    path = put(tmp_path / "b.jsonl", "\n".join(lines))
    pack = training.prepare.collection.pack

    def later(*arguments: Any) -> Any:
        (tmp_path / "images/b.png").unlink(missing_ok=True)
        return pack(*arguments)

    monkeypatch.setattr(training.prepare.collection, "pack", later)
    out = tmp_path / "out"
    assert prepare("boxes", tmp_path / "images", out, "--annotations", path, "--shards") == 0
    assert set(found(out)) == {"a.png", "c.png"} and set(listed(out)) == {"b.png"}


def test_a_full_disk_is_no_fault_of_a_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "images" / name)
    lines = [json.dumps({"image": f"{name}.png", "box": BOX}) for name in "ab"]
    path = put(tmp_path / "b.jsonl", "\n".join(lines))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.prepare.packing.ShardWriter.add", full)
    out = tmp_path / "out"
    more = ("--annotations", path, "--shards")
    assert prepare("boxes", tmp_path / "images", out, *more) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert prepare("boxes", tmp_path / "images", out, *more) == 0 and len(found(out)) == 2


def test_unreadable_photos_are_noted_in_memory_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = UnreadableList(tmp_path / "list.txt")
    assert notes.note("a.png", "cut")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))  # the last bytes
    assert notes.note("b.png", "cut") and not notes.note("b.png", "cut")
    monkeypatch.undo()
    assert notes.note("c.png", "cut")
    assert (tmp_path / "list.txt").read_text() == "a.png\tcut\nc.png\tcut\n"


@pytest.mark.slow
def test_a_worker_that_was_killed_is_a_sentence() -> None:
    with (
        pytest.raises(
            ValueError, match=r"a worker process was killed, .* fewer --processes than 2"
        ),
        process_map(2) as run,
    ):
        list(run(os._exit, [9]))
