"""The box index: bytes, size and time of the mapped one; lines of the text one; both the same."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.index import BoxIndex
from training.data.index_format import BOX, PHOTO, PhotoBoxes
from training.data.index_writer import IndexWriter


def photo(path: str, *boxes: tuple[int, int, int, int], label: str = "thing", **place):
    array = np.array(boxes, int).reshape(-1, 4)
    return PhotoBoxes(path=path, size=(100, 80), boxes=array, labels=[label] * len(boxes), **place)


PHOTOS = [
    photo("a b/ä ö.jpg", (0, 0, 50, 40), (10, 20, 100, 80), label="cat"),
    photo("日本/c.jpg", (5, 6, 70, 80), label="犬"),
    photo("plain.png", (1, 2, 60, 70), label="cat"),
]


def write(folder: Path, photos: list[PhotoBoxes] | None = None, **meta) -> Path:
    with IndexWriter(folder) as writer:
        for entry in PHOTOS if photos is None else photos:
            writer.add(entry)
        writer.close(meta)
    return folder


def write_lines(path: Path, photos: list[PhotoBoxes]) -> Path:
    lines = [
        {"image": p.path, "size": p.size, "box": box, "label": label}
        for p in photos
        for box, label in zip(p.boxes.tolist(), p.labels, strict=True)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def assert_same_tables(one: BoxIndex, other: BoxIndex) -> None:
    assert (one.num_boxes, one.num_photos) == (other.num_boxes, other.num_photos)
    assert one.digest == other.digest
    for number in range(one.num_photos):
        assert one.photo(number) == other.photo(number)
    for number in range(one.num_boxes):
        assert one.box(number) == other.box(number)
        assert one.label(number) == other.label(number)


# ---- the mapped index --------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    index = BoxIndex.open(write(tmp_path / "index", filters={"min_area": 0.02}))
    assert (index.num_photos, index.num_boxes) == (3, 4)
    assert index.meta["filters"] == {"min_area": 0.02}
    boxes = [box for entry in PHOTOS for box in entry.boxes.tolist()]
    assert [list(index.box(number)) for number in range(4)] == boxes
    assert [index.label(number) for number in range(4)] == ["cat", "cat", "犬", "cat"]
    assert [index.photo_of(number) for number in range(4)] == [0, 0, 1, 2]
    found = [index.photo(number) for number in range(3)]
    assert [entry.path for entry in found] == [entry.path for entry in PHOTOS]
    assert [entry.boxes for entry in found] == [range(2), range(2, 3), range(3, 4)]
    assert found[1].size == (100, 80) and found[1].place is None
    assert index.boxes_of(0).tolist() == boxes[:2]


def test_places_in_shards_are_kept(tmp_path: Path) -> None:
    far = 2**40
    placed = [
        photo("a.jpg", (0, 0, 9, 9), shard=0, offset=512, length=7),
        photo("b.jpg", (0, 0, 9, 9), shard=3, offset=far, length=9),
    ]
    index = BoxIndex.open(write(tmp_path / "index", placed, shards=["0", "1", "2", "3"]))
    assert index.photo(0).place == (0, 512, 7) and index.photo(1).place == (3, far, 9)
    plain = BoxIndex.open(write(tmp_path / "plain", [photo(p.path, (0, 0, 9, 9)) for p in placed]))
    assert plain.digest == index.digest, "where the bytes lie changes no sample"
    with pytest.raises(ValueError, match=r"'c\.jpg': an index has all of its photos in shards"):
        write(tmp_path / "mixed", [*placed, photo("c.jpg", (0, 0, 9, 9))])


def test_the_same_photos_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    names = sorted(path.name for path in one.iterdir())
    assert names == ["boxes.npy", "index.json", "labels.json", "paths.bin", "photos.npy"]
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    assert np.load(one / "boxes.npy").dtype == BOX and np.load(one / "photos.npy").dtype == PHOTO


def test_the_digest_knows_every_change(tmp_path: Path) -> None:
    boxes = (1, 2, 30, 40), (5, 6, 70, 80)
    variants = [
        [photo("a", *boxes)],
        [photo("b", *boxes)],
        [photo("a", *boxes[::-1])],
        [photo("a", *boxes, label="other")],
        [photo("a", boxes[0])],
        [photo("a", boxes[0]), photo("a", boxes[1])],
    ]
    digests = {
        BoxIndex.open(write(tmp_path / str(number), photos)).digest
        for number, photos in enumerate(variants)
    }
    assert len(digests) == len(variants)


def test_an_index_appears_only_when_whole(tmp_path: Path) -> None:
    folder = tmp_path / "index"

    def interrupted() -> None:
        with IndexWriter(folder) as writer:
            writer.add(PHOTOS[0])
            assert not folder.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    (tmp_path / "index.partial").mkdir()  # as a killed process leaves it
    (tmp_path / "index.partial/places.npy").write_bytes(b"old")
    assert BoxIndex.open(write(folder)).num_boxes == 4
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_may_be_replaced_but_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "index")
    opened = BoxIndex.open(tmp_path / "index")
    copy = pickle.dumps(opened)
    assert BoxIndex.open(write(tmp_path / "index", PHOTOS[:1])).num_boxes == 2
    assert opened.photo(2).path == "plain.png", "who has it open keeps it"
    with pytest.raises(ValueError, match="made anew while it was in use"):
        pickle.loads(copy)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="exists and is no box index"):
        IndexWriter(tmp_path / "photos")


def test_photos_without_boxes_are_left_out(tmp_path: Path) -> None:
    index = BoxIndex.open(write(tmp_path / "index", [photo("empty.jpg"), PHOTOS[1]]))
    assert index.num_photos == 1 and index.photo(0).path == PHOTOS[1].path
    with pytest.raises(ValueError, match="no box is left"):
        write(tmp_path / "none", [photo("empty.jpg")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("box", [(-1, 0, 9, 9), (0, 0, 9, 2**16)])
def test_coordinates_that_do_not_fit_are_refused(tmp_path: Path, box) -> None:
    with pytest.raises(ValueError, match=r"'a\.jpg' .* is not in 0 to 65535"):
        write(tmp_path / "index", [photo("a.jpg", box)])


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("name", ["boxes.npy", "photos.npy", "paths.bin", "index.json"])
@pytest.mark.parametrize("damage", [Path.unlink, shorten])
def test_a_damaged_index_is_named(tmp_path: Path, name: str, damage) -> None:
    folder = write(tmp_path / "index")
    damage(folder / name)
    with pytest.raises(ValueError, match=r"index' is no readable box index .* make it anew"):
        BoxIndex.open(folder)


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "index")
    meta = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**meta, "format": 2}))
    with pytest.raises(ValueError, match="its format is 2, not 1"):
        BoxIndex.open(folder)


@pytest.mark.slow
def test_200_000_photos_open_in_milliseconds_and_stay_small(tmp_path: Path) -> None:
    boxes = np.tile(np.array([[10, 20, 300, 400]]), (8, 1))
    with IndexWriter(tmp_path / "index") as writer:
        for number in range(200_000):
            path = f"train_{number % 16:x}/{number:016x}.jpg"
            entry = PhotoBoxes(path=path, size=(1024, 768), boxes=boxes, labels=["/m/01g317"] * 8)
            writer.add(entry)
        writer.close({})
    size = sum(file.stat().st_size for file in (tmp_path / "index").iterdir())
    assert size < 200_000 * (8 * 12 + 12 + 28) + 10_000  # 14 M boxes in 1.74 M photos: 238 MB
    times = []
    for _ in range(5):
        start = time.perf_counter()
        index = BoxIndex.open(tmp_path / "index")
        assert index.photo(index.photo_of(1_599_999)).path == "train_f/0000000000030d3f.jpg"
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02
    assert len(pickle.dumps(index)) < 1000, "spawned workers map the files themselves"


# ---- lines -------------------------------------------------------------------------------------


def test_lines_and_folder_are_the_same_index(tmp_path: Path) -> None:
    lines = BoxIndex.open(write_lines(tmp_path / "boxes.jsonl", PHOTOS))
    folder = BoxIndex.open(write(tmp_path / "index"))
    assert_same_tables(lines, folder)
    for index in (lines, folder):
        assert_same_tables(pickle.loads(pickle.dumps(index)), index)


def test_boxes_of_a_photo_are_gathered(tmp_path: Path) -> None:
    ordered = write_lines(tmp_path / "ordered.jsonl", PHOTOS)
    lines = ordered.read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(lines[number] for number in (0, 2, 1, 3)))
    assert_same_tables(BoxIndex.open(mixed), BoxIndex.open(ordered))


def test_boxes_outside_the_area_limits_are_dropped(tmp_path: Path) -> None:
    widths = (1, 2, 80, 81)  # of 100
    path = write_lines(
        tmp_path / "boxes.jsonl", [photo(f"{width}.jpg", (0, 0, width, 80)) for width in widths]
    )
    index = BoxIndex.open(path)
    assert [index.photo(number).path for number in range(2)] == ["2.jpg", "80.jpg"]
    assert index.num_boxes == index.num_photos == 2
    with pytest.raises(ValueError, match=r"no box that covers 0\.9 to 1 of its photo"):
        BoxIndex.open(path, min_area=0.9, max_area=1)


def test_sizes_are_read_from_headers_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "upright.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8")
    names = ["turned.jpg", "upright.png", "broken.jpg", "missing.jpg"]
    lines = [json.dumps({"image": name, "box": [0, 0, 9, 9]}) for name in names]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    index = BoxIndex.open(tmp_path / "boxes.jsonl")
    assert [index.photo(number).size for number in range(4)] == [(20, 30), (30, 20), None, None]


def test_boxes_that_reach_beyond_the_photo_stay(tmp_path: Path) -> None:
    line = {"image": "a", "size": [100, 80], "box": [-5, -5, 60, 70]}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(line))
    assert BoxIndex.open(tmp_path / "boxes.jsonl").box(0) == (0, 0, 60, 70)


@pytest.mark.parametrize("line", ["{", '{"image": "a.png"}', '{"image": "a", "box": [1, 2]}', "7"])
def test_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "boxes.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is no box entry"):
        BoxIndex.open(tmp_path / "boxes.jsonl")


def test_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no box index at .*boxes\.jsonl"):
        BoxIndex.open(tmp_path / "boxes.jsonl")
