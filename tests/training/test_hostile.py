"""Files from anywhere: whatever they hold or are, they end in a sentence, at once.

What is right in each format is tested beside its reader.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.data.index
import training.data.unreadable
from pbe_model import untrusted
from pbe_model.picture_headers import MAX_BYTES
from pbe_model.untrusted import numbered_lines
from training.cli import main
from training.config import MAX_CONFIG, RunConfig, load_config
from training.data.dataset import BoxDataset
from training.data.decode import decode_photo, photo_size, read_photo
from training.data.index import BoxIndex
from training.data.index_format import BOX, PHOTO, PLACE, PhotoBoxes
from training.data.index_writer import IndexWriter
from training.data.shards import PhotoFiles, ShardWriter, read_shard
from training.data.unreadable import UnreadableList
from training.demo.sources import Source, load
from training.evaluation.pairs import load_pairs
from training.prepare.annotations import Annotated, Unusable, open_reader
from training.prepare.annotations.base import files_below
from training.prepare.pieces import Piece, finish
from training.runlog import RunLog

DEEP = "[" * 100_000
NESTED = "[" * 500 + "]" * 500
HUGE = "1" + "0" * 400  # an integer that is no float
TERMINAL = "\x1b[31m\n"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A reader that waits for a pipe, or for a bomb, fails instead of hanging."""

    def late(*_: object) -> None:
        raise AssertionError("it took longer than 5 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def large(path: Path, size: int) -> Path:
    """A file that claims the size and takes no space."""
    put(path, b"")
    os.truncate(path, size)
    return path


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


def sentence(act: Callable[[], object], pattern: str) -> None:
    """`act` fails with one printable line."""
    with pytest.raises(ValueError, match=pattern) as error:
        act()
    message = str(error.value)
    assert message.isprintable() and len(message) < 1500, message


@pytest.fixture
def images(tmp_path: Path) -> Path:
    picture(tmp_path / "images/a.png")
    return tmp_path / "images"


def everything(form: str, images: Path, annotations: Path) -> list[Annotated]:
    reader = open_reader(form, images, annotations)
    return [reader.read(entry) for entry in reader.entries()]


# ---- lines of JSON -----------------------------------------------------------------------------

BAD_LINES = [
    DEEP,
    '{"image": "a.png", "box": ' + NESTED + "}",
    '{"image": "a.png", "box": [0, 0, 1, ' + HUGE + "]}",
    '{"image": "a.png", "box": [0, 0, 1, ' + "1" * 5000 + "]}",
    '{"image": "a.png", "box": {"0": 0, "1": 1, "2": 2, "3": 3}}',
    '{"image": "a.png", "box": "1234"}',
    '{"image": "a.png", "box": [[0], 0, 9, 9]}',
    '{"image": ["a.png"], "box": [0, 0, 9, 9]}',
    '{"image": {"a": 1}, "box": [0, 0, 9, 9]}',
    '{"image": 7, "box": [0, 0, 9, 9]}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "label": ' + NESTED + "}",
    '{"image": "a.png", "box": [0, 0, 9, 9], "label": {"a": 1}}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": "99"}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": ["w", "h"]}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": {"0": 1}}',
    '{"image": "a.png", "box": [0, 0, 9, 9], "size": [9, ' + HUGE + "]}",
    '[["image", "a.png"]]',
    '"image"',
    "7",
    "null",
    TERMINAL.strip() + "{",
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_of_boxes(line: str, images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "boxes.jsonl", f"\n{line}\n")
    sentence(lambda: BoxIndex.open(path, images), "^line 2 of .*is no box entry")
    sentence(lambda: everything("boxes", images, path), "^line 2 of .* is not ")


@pytest.mark.parametrize(
    "entry",
    [
        '"box": [0, 0, 1e999, 9]',
        '"box": [0, 0, NaN, 9]',
        '"box": [0, 0, 9, 9], "size": [NaN, 9]',
        '"box": [0, 0, 9, 9], "size": [1e999, 9]',
        '"box": [0, 0, 9, 9], "size": [-5, 9]',
        '"box": [0, 0, 9, 9], "size": [70000, 9]',
    ],
)
def test_numbers_that_no_index_holds(entry: str, images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "boxes.jsonl", '{"image": "a.png", ' + entry + "}")
    sentence(lambda: BoxIndex.open(path, images, min_area=0, max_area=1), "no(t in| box)")


def test_a_name_that_no_file_has(images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "boxes.jsonl", '{"image": "\\ud800", "box": [0, 0, 9, 9]}')
    sentence(lambda: BoxIndex.open(path, images), "line 1 of")


def test_numbers_are_kept_as_floats_by_the_filter_and_cut_by_the_index(
    images: Path, tmp_path: Path
) -> None:
    text = '{"image": "gone.png", "box": [0, -1e300, "9.5", 1e300], "label": "\\ud800"}'
    path = put(tmp_path / "boxes.jsonl", text)
    index = BoxIndex.open(path, images)
    assert index.box(0) == (0, 0, 9, 2**16 - 1) and index.photo(0).size is None
    assert everything("boxes", images, path)[0].boxes[0][:4] == (0, -1e300, 9.5, 1e300)


def test_lines_are_read_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = put(tmp_path / "lines.txt", b"\xef\xbb\xbfa\r\n\r\nb\rc\n")
    assert list(numbered_lines(text)) == [(1, "a"), (3, "b"), (4, "c")]
    with pytest.raises(ValueError, match="has 12 bytes, and 10 are the most"):
        list(numbered_lines(text, 10))
    monkeypatch.setattr(untrusted, "MAX_LINE", 8)
    long = put(tmp_path / "long.txt", "fine\n" + 20 * "x")
    lines = numbered_lines(long)
    assert next(lines) == (1, "fine")
    with pytest.raises(ValueError, match=r"cannot read .*long.txt': its line 2 has more than 8"):
        next(lines)


def test_a_log_of_anything_is_taken_back(tmp_path: Path) -> None:
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": "\xff"}']
    bad = ["[]", "7", "null", '{"step": "1"}', '{"step": [1]}', '{"step": 1e999}', DEEP, "\0\0\0"]
    put(tmp_path / "log.jsonl", b"\n".join([good[0], *(b.encode() for b in bad), good[1]]))
    RunLog(tmp_path, start=9, total=9).close()
    assert (tmp_path / "log.jsonl").read_bytes() == good[0] + b"\n" + good[1] + b"\n"
    pipe(tmp_path / "log.jsonl")
    sentence(lambda: RunLog(tmp_path, start=9, total=9), "log.jsonl': it is not a regular file")


@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        "7",
        "[1]",
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": [0, 0, 1e999, 9]}',
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": [0, 0, NaN, 9]}',
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": [0, 0, 9, ' + HUGE + "]}",
        '{"photo": "p.png", "exemplar": "e.png", "group": "g", "box": {"a": 0}}',
        '{"photo": "p.png", "exemplar": "e.png", "group": ' + NESTED + ', "box": [0, 0, 9, 9]}',
        '{"photo": ["p.png"], "exemplar": "e.png", "group": "g", "box": [0, 0, 9, 9]}',
    ],
)
def test_bad_pairs(line: str, tmp_path: Path) -> None:
    put(tmp_path / "val/pairs.jsonl", line)
    sentence(lambda: load_pairs(tmp_path, 1), "^line 1 of .* is not a pair")


def test_pairs_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"photo": "p.png", "exemplar": "p.png", "group": "g", "box": [0, 0, 41, 9]}
    picture(tmp_path / "p.png")
    put(tmp_path / "val/pairs.jsonl", json.dumps(entry))
    sentence(lambda: load_pairs(tmp_path, 1), "line 1 of .* has the box .* photo of 40 x 20")
    monkeypatch.setattr("training.evaluation.pairs._MAX_PIXELS", 1000)
    sentence(lambda: load_pairs(tmp_path, 1), "have 1,600 pixels, and 1,000 are the most")
    pipe(tmp_path / "p.png")
    sentence(lambda: load_pairs(tmp_path, 1), "p.png")


# ---- COCO --------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
}


def coco(images: Path, name: str, entry: object) -> list[Annotated]:
    text = json.dumps({**COCO, name: [entry]}).replace('"HUGE"', HUGE).replace('"DEEP"', NESTED)
    return everything("coco", images, put(images.parent / "c.json", text))


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        ("images", [1], "is not an object"),
        ("images", {"id": [1], "file_name": "a.png"}, "has the id"),
        ("images", {"id": "DEEP", "file_name": "a.png"}, "has the id"),
        ("images", {"id": 1, "file_name": {"a": 1}}, "has the file_name .*; it has to be a string"),
        ("images", {"id": 1, "file_name": 7}, "has the file_name 7"),
        ("images", {"id": 1}, "lacks file_name"),
        ("images", {"id": 1, "file_name": "a", "width": "w", "height": 9}, "the width and height"),
        ("images", {"id": 1, "file_name": "a", "width": [1], "height": 9}, "the width and height"),
        ("images", {"id": 1, "file_name": "a", "width": "HUGE", "height": 9}, "width and height"),
        ("categories", {"id": [1], "name": "cat"}, "has the id"),
        ("categories", {"id": 1, "name": "DEEP"}, "has the name"),
        ("categories", {"id": 1, "name": {"a": 1}}, "has the name"),
        ("annotations", {"image_id": [1], "bbox": [0, 0, 9, 9]}, "has the image_id"),
        ("annotations", {"image_id": {}, "bbox": [0, 0, 9, 9]}, "has the image_id"),
        ("annotations", {"image_id": 1, "category_id": [1], "bbox": [0, 0, 9, 9]}, "category_id"),
        ("annotations", {"image_id": 1, "bbox": "1234"}, "has the bbox"),
        ("annotations", {"image_id": 1, "bbox": {"0": 1}}, "has the bbox"),
        ("annotations", {"image_id": 1, "bbox": [0, 0, 9, "HUGE"]}, "has the bbox"),
        ("annotations", {"image_id": 1, "bbox": [0, 0, 9, "DEEP"]}, "has the bbox"),
        ("annotations", {"image_id": 1, "bbox": [TERMINAL * 900]}, "has the bbox"),
    ],
)
def test_coco_of_other_types(name: str, entry: object, reason: str, images: Path) -> None:
    sentence(lambda: coco(images, name, entry), reason)


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
    monkeypatch.setattr("training.prepare.annotations.yolo._MAX_NODES", 1000)
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
        ("<?xml version='1.0' encoding='nonsense'?><a/>", "is not XML"),
        ("<?xml version='1.0' encoding='utf-7'?><a/>", "is not XML"),
        (b"<?xml version='1.0' encoding='gb2312'?><a>\xd6\xd0</a>", "is not XML"),
        ("<a>&b;</a>", "line 1 of .* is not XML"),
        ("\0", "is not XML"),
        ("", "is not XML"),
        (" " * (2**22 + 1), "has 4,194,305 bytes, and 4,194,304 are the most"),
        ("<a><object><bndbox/></object></a>", "object 1 of .* has no bndbox"),
    ],
    ids=range(12),
)
def test_xml_bombs(text: str | bytes, reason: str, images: Path) -> None:
    sentence(lambda: voc(images, text), reason)


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

HEADER = "ImageID,LabelName,XMin,YMin,XMax,YMax"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{HEADER}\n,/m/a,0,0,1,1\n", "line 2 of .* names no photo"),
        (f"{HEADER}\na,/m/a,0,0,1,1\n\x1b,/m/a,0,0,1,1\n", "goes back from photo a to"),
        (f'{HEADER}\n"{"x" * 200_000}', "line 2 of .* is not a row"),
        (HEADER + "," * 200_000 + "\n" + "x" * 2**21, "line 2 of .* is not a row"),
        (b"\xff\xfe", "is not UTF-8"),
        ("x" * 200_000, "line 1 of .* is not a row"),
    ],
    ids=range(6),
)
def test_bad_tables(text: str | bytes, reason: str, images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", text)
    sentence(lambda: everything("openimages", images, path), reason)


def test_a_bad_table_of_class_names(images: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", f"{HEADER}\na,/m/a,0,0,1,1\n")
    put(tmp_path / "class-descriptions-boxable.csv", f'/m/a,"{"x" * 200_000}"\n')
    sentence(lambda: everything("openimages", images, path), "not a table of class names")


def test_a_photo_with_millions_of_boxes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.prepare.annotations.openimages._MAX_BOXES", 3)
    path = put(tmp_path / "t.csv", f"{HEADER}\n" + "a,/m/a,0,0,1,1\n" * 4)
    sentence(lambda: everything("openimages", images, path), "line 5 of .* more than 3 boxes")


def test_a_mask_of_specks(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.prepare.annotations.masks._MOST_BLOBS", 9)
    specks = np.zeros((20, 40), np.uint8)
    specks[::2, ::2] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(specks).save(tmp_path / "masks/a.png")
    with pytest.raises(Unusable, match="has 200 white blobs, and 9 are the most"):
        everything("masks", images, tmp_path / "masks")


def test_links_that_lead_around_in_circles(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"photos/{name}/{name}.png")
        for link in ("x", "y"):
            (tmp_path / f"photos/{name}/{link}").symlink_to(tmp_path / "photos")
    assert files_below(tmp_path / "photos") == ["a/a.png", "b/b.png", "c/c.png"]
    (tmp_path / "linked").symlink_to(tmp_path / "photos/a")
    assert files_below(tmp_path / "linked")[0] == "a.png"


@pytest.mark.parametrize("size", [(0, 9), (-5, 9), (1e999, 9), (float("nan"), 9), (1e308, 1e-308)])
def test_sizes_that_no_photo_has(size: tuple[float, float], images: Path, tmp_path: Path) -> None:
    line = {"image": "a.png", "box": [0, 0, 40, 10], "size": size}
    annotations = put(tmp_path / "b.jsonl", json.dumps(line))
    words = ["--images", str(images), "--annotations", str(annotations), "--val", "0"]
    words += ["--out", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare", "boxes", *words]) == 2  # no photo is left


# ---- regular files only ------------------------------------------------------------------------


def index_folder(folder: Path, **meta: object) -> Path:
    boxes = np.array([[0, 0, 9, 9], [1, 1, 8, 8]])
    with IndexWriter(folder) as writer:
        for name in ("a.png", "b.png"):
            writer.add(PhotoBoxes(path=name, size=(40, 20), boxes=boxes, labels=["x", "y"]))
        writer.close(meta)
    return folder


@pytest.mark.parametrize("name", ["t.csv", "c.json", "b.jsonl", "xml/a.xml", "images/data.yaml"])
def test_annotations_that_are_pipes(name: str, images: Path, tmp_path: Path) -> None:
    forms = {".csv": "openimages", ".json": "coco", ".jsonl": "boxes", ".xml": "voc"}
    path = pipe(tmp_path / name)
    form = forms.get(path.suffix, "yolo")
    annotations = path.parent if "/" in name else path
    if form == "yolo":
        put(tmp_path / "labels/a.txt", "0 0.5 0.5 1 1")
        assert everything(form, images, annotations)[0].boxes[0].label == "0"  # it is not a file
    else:
        sentence(lambda: everything(form, images, annotations), "not a regular file")


def test_a_text_of_a_photo_that_is_a_pipe(images: Path, tmp_path: Path) -> None:
    pipe(tmp_path / "texts/a.txt")
    sentence(
        lambda: everything("openimages", images, tmp_path / "texts"), "a.txt': it is not a regular"
    )


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
    annotations = path.parent if "/" in name else path
    sentence(lambda: everything(form, images, annotations), f"{limit + 1:,} bytes, and {limit:,}")


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


def npy(description: str, rows: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    header = description.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + rows


def described(dtype: np.dtype, shape: object, order: object = False) -> str:
    descr = np.lib.format.dtype_to_descr(dtype)
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


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


# ---- photos ------------------------------------------------------------------------------------


def encoded(kind: str, size: tuple[int, int] = (40, 20), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, of some thirty bytes, comes again and again."""
    data = encoded("JPEG", (2048, 2048), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def tiff(entries: int, each: int) -> bytes:
    """One whose unknown entries all point to the same bytes."""
    known = [
        (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64),
    ]  # fmt: skip
    start = 14 + 12 * (len(known) + entries)
    known += [(40_000 + number, 1, each, start) for number in range(entries)]
    rows = b"".join(struct.pack("<HHII", *entry) for entry in known)
    return b"II*\0" + struct.pack("<IH", 8, len(known)) + rows + bytes(4 + each)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(100_000, 100_000), "too many pixels"),
        (png(2**31 - 1, 1), "too many pixels"),
        (png(9000, 9000), "too many pixels"),
        (jpeg(65_500, 65_500), "too many pixels"),
        (png(40, 20), None),
        (png(0, 20), "not a picture of a known format"),
        (b"", "empty file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "known format"),
        (b"<svg/>", "known format"),
        (encoded("PNG")[:40], None),
        (encoded("WEBP")[:20], None),
        (encoded("TIFF")[:12], None),
        (b"II*\0\xff\xff\xff\xff", None),
        (b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", None),
        (b"\xff\xd8\xff\xe0\0\0\xff\xd9", None),
    ],
    ids=range(15),
)
def test_photos_that_are_none(data: bytes, reason: str | None, tmp_path: Path) -> None:
    path = put(tmp_path / "photo.png", data)
    with pytest.raises(OSError, match=reason):
        decode_photo(data)
    with pytest.raises(OSError, match=reason):
        photo_size(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (scans(1000), "more than 512 scans of"),
        (tiff(300, 2**20), "damaged header .*its entries claim more bytes than the file has"),
        (b"\xff\xd8" + b"\xff" * 10**7 + b"\xff\xd9", None),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 10**6 + b"\xff\xd9", None),
    ],
    ids=range(4),
)
def test_photos_that_would_take_long(data: bytes, reason: str | None) -> None:
    with pytest.raises(OSError, match=reason):
        decode_photo(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_all_formats_are_still_read(kind: str, tmp_path: Path) -> None:
    data = encoded(kind)
    assert decode_photo(data).shape == (20, 40, 3)
    assert photo_size(put(tmp_path / "photo", data)) == (40, 20)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"quality": 100, "subsampling": 0}, {"optimize": True}]
)
def test_all_kinds_of_jpeg_are_still_read(options: dict) -> None:
    assert decode_photo(encoded("JPEG", **options)).shape == (20, 40, 3)
    assert decode_photo(scans(100)).shape == (2048, 2048, 3)


def test_tiffs_of_any_kind_are_still_read() -> None:
    for options in ({"big_tiff": True}, {"compression": "tiff_lzw"}, {"tiffinfo": {270: "x" * 99}}):
        assert decode_photo(encoded("TIFF", **options)).shape == (20, 40, 3)


@pytest.mark.parametrize(
    "error",
    [zlib.error("x"), RuntimeError(), ZeroDivisionError("x"), EOFError(), struct.error("x"),
     RecursionError("x"), OverflowError("x"), KeyError("x"), MemoryError(), SyntaxError("x")],
    ids=repr,
)  # fmt: skip
def test_whatever_pillow_raises_is_a_reason(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = picture(tmp_path / "photo.png")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.getexif", fail)
    with pytest.raises(OSError, match=r"damaged header \(.+\)"):
        photo_size(path)


def test_a_photo_larger_than_any_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"536,870,913 bytes, and 536,870,912 are the most"):
        read_photo(large(tmp_path / "photo.jpg", MAX_BYTES + 1))


def test_names_that_no_photo_has(tmp_path: Path) -> None:
    index = index_folder(tmp_path / "index")
    files = PhotoFiles(BoxIndex.open(index), tmp_path)
    for name in ("a\0b", "\ud800", "x" * 300, ""):
        with pytest.raises(OSError):
            photo_size(tmp_path / name)
        with pytest.raises(OSError):
            files.read(training.data.index.Photo(name, None, range(1), None))


# ---- shards ------------------------------------------------------------------------------------


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


RECORD = {"path": "a.jpg", "size": [40, 20], "boxes": [[0, 0, 9, 9]], "labels": ["x"]}


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


# ---- what an interrupted `prepare` left --------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        DEEP,
        "[]",
        "{}",
        {"photos": {}},
        {"photos": [5]},
        {"photos": [{**RECORD, "path": 5}]},
        {"photos": [{**RECORD, "labels": []}]},
        {"photos": [{**RECORD, "shard": "0"}]},
        {"photos": [{**RECORD, "offset": -1}]},
        {"photos": [{**RECORD, "shard": [0]}]},
        {"unusable": {}},
        {"unusable": ["ab"]},
        {"unusable": [["a", 5]]},
        {"unusable": [["a", "b", "c"]]},
        {"counts": []},
        {"counts": {"a": "b"}},
        {"counts": {"a": 1.5}},
    ],
)
def test_damaged_pieces(stored: str | dict, tmp_path: Path) -> None:
    whole = {"photos": [RECORD], "unusable": [["a", "b"]], "counts": {"c": 1}}
    text = stored if isinstance(stored, str) else json.dumps({**whole, **stored})
    path = put(tmp_path / "work/0.json", text)
    sentence(lambda: Piece.load(path), "0.json.*; delete the folder '.*work' and start the same")
    piece = Piece.load(put(path, json.dumps(whole)))
    assert piece.photos[0].boxes.tolist() == [[0, 0, 9, 9]] and piece.counts == {"c": 1}


def test_a_piece_that_is_no_file_is_made_again(tmp_path: Path) -> None:
    path = pipe(tmp_path / "0.json")
    assert Piece.load(finish(path, ["a", "\ud800"], Piece)) == Piece()


@pytest.fixture
def prepared(images: Path, tmp_path: Path) -> list[str]:
    """Words of a command that works."""
    picture(images / "b.png")
    lines = [json.dumps({"image": n, "box": [0, 0, 20, 10]}) for n in ("a.png", "b.png")]
    path = put(tmp_path / "boxes.jsonl", "\n".join(lines))
    words = ["prepare", "boxes", "--images", str(images), "--annotations", str(path)]
    return [*words, "--out", str(tmp_path / "out"), "--val", "0", "--processes", "1"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (DEEP, "nested too deeply"),
        ("[]", "no JSON object"),
        ("5", "no JSON object"),
        (json.dumps({TERMINAL * 99: NESTED}), "was begun with"),
        (json.dumps({"images": "IT"}).replace('"IT"', NESTED), "was begun with .*others"),
        (json.dumps(dict.fromkeys(map(str, range(9999)), "x" * 500)), "10[0-9]+ others"),
    ],
    ids=range(6),
)
def test_settings_of_another_run(
    settings: str,
    reason: str,
    prepared: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(tmp_path / "out/prepare.json", settings)
    assert main(prepared) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert len(said) < 1000 and said.isprintable()
    assert "give another --out, or delete that folder" in said
    assert re.search(reason, said), said
    pipe(tmp_path / "out/prepare.json")
    assert main(prepared) == 2 and "not a regular file" in capsys.readouterr().err


def test_names_that_a_list_of_photos_escapes(
    images: Path, tmp_path: Path, prepared: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["x\ny.png", "tab\t.png", "\x1b[31m.png", "\ud800.png", "pipe.png"]
    lines = [json.dumps({"image": name, "box": [0, 0, 20, 10]}) for name in names]
    label = {"image": "a.png", "box": [0, 0, 30, 10], "label": TERMINAL * 100}
    path = tmp_path / "boxes.jsonl"
    put(path, "\n".join([path.read_text(), *lines, json.dumps(label)]))
    pipe(images / "pipe.png")
    assert main(prepared) == 0
    listed = (tmp_path / "out/unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [
        "x\\ny.png", "tab\\t.png", "\\x1b[31m.png", "\\ud800.png", "pipe.png"
    ]  # fmt: skip
    assert listed[-1].split("\t")[1] == "it is not a regular file"
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) < 200


def test_the_list_of_a_run_escapes_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = UnreadableList(tmp_path / "list.txt")
    assert found.note("x\ny\tz\x1b.png", "a\nreason\x1b") and not found.note("x\ny\tz\x1b.png", "")
    assert (tmp_path / "list.txt").read_text() == "x\\ny\\tz\\x1b.png\ta reason\\x1b\n"
    later = UnreadableList(tmp_path / "list.txt")
    assert not later.note("x\ny\tz\x1b.png", "again")
    monkeypatch.setattr(training.data.unreadable, "_MAX_LIST", 9)
    sentence(lambda: UnreadableList(tmp_path / "list.txt"), "9 are the most; move it away")


# ---- configurations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5000, "run.toml is not valid TOML: nested too deeply"),
        ("a = " + "{b = " * 5000, "run.toml is not valid TOML: nested too deeply"),
        ("a." * 20_000 + "a = 1", "is not valid TOML: line 1 has more than 32 dots"),
        ("steps = " + "1" * 5000, "is not valid TOML"),
        (b"a = '\xff'", "is not valid TOML"),
        ("#" * (MAX_CONFIG + 1), "cannot read .* bytes, and 262,144 are the most"),
        ("model = '" + "x" * 9999 + "'", r"model = 'xx+ \.\.\.' is wrong"),
        ('model = "\\u001b[31m\\n"', r"model = '\\x1b\[31m\\n' is wrong"),
        ('"\\u001b[31m\\n" = 1', r"unknown entry '\\x1b\[31m\\n'"),
        ("x" * 9999 + " = 1", "unknown entry 'xx"),
        ("base = '" + "x" * 9999 + "'", "no configuration 'xx"),
        ('base = "a\\u0000b"', "no configuration"),
        ("[ema]\nlengths = [" + "0.1, \n" * 17 + "]", "ema.lengths = .* at most 16"),
        ("data.workers = 1000000", "data.workers = 1000000 is wrong"),
        ("data.geometry_variants = 100_000", "data.geometry_variants = 100000 is wrong"),
        ("batch_size = 1_000_000_000", "batch_size = 1000000000 is wrong"),
        ("accumulate = 1_000_000_000", "accumulate = 1000000000 is wrong"),
        ("steps = 100_000_000", "steps = 100000000 is wrong"),
        ("seed = 4294967296", "seed = 4294967296 is wrong"),
        ("threads = 1000000", "threads = 1000000 is wrong"),
        ("lora.rank = 1000000000", "lora.rank = 1000000000 is wrong"),
        ("optim.lr = nan", "optim.lr = nan is wrong"),
    ],
    ids=range(22),
)
def test_configurations(text: str | bytes, reason: str, tmp_path: Path) -> None:
    path = put(tmp_path / "run.toml", text)
    sentence(lambda: load_config(str(path)), reason)


def test_a_chain_of_bases(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path / f"{number}.toml", f"base = '{number + 1}.toml'")
    sentence(lambda: load_config(str(tmp_path / "0.toml")), "is the base of more than 10")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "Invalid JSON: recursion limit"),
        ('{"data":' * 9999, "Invalid JSON: recursion limit"),
        ("[]", "should be an object"),
        (b"\xff", "Invalid JSON"),
        ('{"steps": 1e999}', "steps = inf is wrong"),
        ('{"steps": ' + "1" * 5000 + "}", "Invalid JSON"),
        ('{"model": "\\u001b[31m"}', r"model = '\\x1b"),
        (" " * (MAX_CONFIG + 1), "262,144 are the most"),
    ],
    ids=range(8),
)
def test_configurations_of_runs(
    text: str | bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "run/config.json", text)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model.safetensors")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "no configuration of this version" in said and said.isprintable() and len(said) < 1000
    assert re.search(reason, said), said
    assert not (tmp_path / "model.safetensors").exists()


def test_defaults_are_within_the_limits() -> None:
    RunConfig.model_validate(RunConfig().model_dump())
    RunConfig(steps=10**8 - 1, batch_size=2**16, seed=2**32 - 1)


# ---- the demo set ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [DEEP, "[]", json.dumps({TERMINAL: "x" * 9999})])
def test_a_demo_set_of_something_else(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "demo.json", settings)
    assert main(["prepare", "demo", "--out", str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "give another folder, or delete this one" in said
    assert said.isprintable() and len(said) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_prepared_pictures_that_are_something_else(tmp_path: Path) -> None:
    source = Source(
        id="s", split="train", package="p", path="x", licence="CC0-1.0", author="me", group="g"
    )
    path = tmp_path / source.prepared
    for make in (picture, pipe, lambda p: put(p, b"text"), lambda p: put(p, png(9**5, 9**5))):
        make(path)
        sentence(lambda: load(source, tmp_path), r"s\.png.*; delete it and start the same command")


# ---- through the commands ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "name", "content"),
    [
        ("coco", "c.json", DEEP),
        ("boxes", "b.jsonl", DEEP),
        ("boxes", "b.jsonl", TERMINAL),
        ("openimages", "t.csv", b"\xff"),
        ("voc", "xml/a.xml", "<a>" * 1000),
        ("yolo", "labels/a.txt", TERMINAL),
        ("openimages", "texts/a\n\x1b.txt", "0 0"),
    ],
)
def test_prepare_says_one_sentence(
    form: str,
    name: str,
    content: str | bytes,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = put(tmp_path / name, content)
    annotations = path.parent if "/" in name else path
    words = ["--images", str(images), "--annotations", str(annotations)]
    words += ["--out", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare", form, *words]) == 2
    *_, said = capsys.readouterr().err.strip().split("\n")
    said = said.split("\r")[-1]
    assert said.startswith("pbe-train: ") and said.isprintable() and len(said) < 1000
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"prepare.json", "prepare.partial"}


@pytest.mark.parametrize("command", ["train", "plan"])
def test_train_and_plan_say_one_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "run.toml", "a." * 5000)
    assert main([command, str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "32 dots" in said and list(tmp_path.iterdir()) == [path]


def test_training_on_what_is_no_index_says_one_sentence(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    put(root / "train/boxes.jsonl", DEEP)
    settings = f'stage = "first_stage"\nmodel = "tiny"\nout = "{tmp_path}/run"\n'
    put(tmp_path / "run.toml", settings + f'data.root = "{root}"\ndata.workers = 0\n')
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert "is no box entry" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()
