"""`pbe-train prepare`: the same bytes however it ran, nothing lost silently, indexes that train."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.prepare.examine
from training.cli import main
from training.data.decode import decode_photo, photo_size
from training.data.index import BoxIndex
from training.data.index_format import PhotoBoxes
from training.data.shards import PhotoFiles
from training.prepare.annotations import BoxFilter, PhotoFinder, open_reader
from training.prepare.claims import Photos
from training.prepare.command import byte_size
from training.prepare.examine import Job, examine
from training.prepare.pieces import Piece, finish
from training.prepare.sample_sheet import SAMPLES, TILE, draw_sample
from training.prepare.workers import process_map

COUNT = 20
SIZE = (48, 32)
ORIENTATION = 0x0112


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with a bright object each, whose box is named after its colour, and their boxes."""
    root = tmp_path_factory.mktemp("a collection")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        photo = rng.integers(0, 60, (SIZE[1], SIZE[0], 3), np.uint8)
        photo[8:24, 12:36] = 255 * np.eye(3, dtype=np.uint8)[number % 3]
        name = f"photos/{number:03d} é.png"
        save(root / name, photo)
        label = ("red", "green", "blue")[number % 3]
        lines.append({"image": name, "box": [12, 8, 36, 24], "label": label})
        lines.append({"image": name, "box": [0, 0, 4, 4], "label": "speck"})
    (root / "boxes.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.prepare.examine, "CHUNK", 3)


def words(collection: Path, out: Path, *more: str) -> list[str]:
    files = ["--images", str(collection), "--annotations", str(collection / "boxes.jsonl")]
    return ["prepare", "boxes", *files, "--out", str(out), "--processes", "1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def paths(index: BoxIndex) -> set[str]:
    return {index.photo(number).path for number in range(index.num_photos)}


def test_train_and_val_share_the_photos(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(collection, out, "--val", "5")) == 0
    printed = capsys.readouterr().out
    train, val = BoxIndex.open(out / "train"), BoxIndex.open(out / "val")
    assert (train.num_photos, val.num_photos) == (COUNT - 5, 5)
    assert len(paths(train) | paths(val)) == COUNT
    assert {name for index in (train, val) for name in index.labels} == {"red", "green", "blue"}
    assert {train.box(number) for number in range(train.num_boxes)} == {(12, 8, 36, 24)}
    assert train.photo(0).size == SIZE
    assert train.meta["boxes left out"] == {"area too small": COUNT}
    statistics = train.meta["statistics"]
    assert statistics["area_counts"] == [0, 0, 0, 0, COUNT - 5, 0, 0]  # 384 of 1,536 pixels
    assert sum(statistics["frequent_labels"].values()) == statistics["boxes"] == COUNT - 5
    assert "area too small" in printed and "samples.jpg" in printed
    assert {p.name for p in out.iterdir()} == {
        "train", "val", "prepare.json", "unreadable.txt", "samples.jpg"
    }  # fmt: skip


def test_a_share_holds_out_the_same_photos_when_others_are_added(
    collection: Path, tmp_path: Path
) -> None:
    found = []
    boxes = (collection / "boxes.jsonl").read_text(encoding="utf-8").splitlines()
    for count in (COUNT // 2, COUNT):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(boxes[: 2 * count]), encoding="utf-8")
        out = tmp_path / f"out{count}"
        options = ["--annotations", str(path), "--val", "0.4"]
        assert main(words(collection, out, *options)) == 0
        found.append((paths(BoxIndex.open(out / "train")), paths(BoxIndex.open(out / "val"))))
    (fewer_train, fewer_val), (train, val) = found
    assert fewer_train < train and fewer_val < val
    assert 2 <= len(val) <= 14  # 0.4 of 20, within four deviations


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_processes(collection: Path, tmp_path: Path) -> None:
    found = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        more = ("--shards", "--max-side", "24", "--shard-size", "8KB", "--processes", processes)
        assert main(words(collection, out, *more)) == 0
        found.append(contents(out))
    assert found[0] == found[1]
    assert len([name for name in found[0] if name.endswith(".tar")]) > 2


KILLED = """
import sys, time, training.prepare.examine as p
p.CHUNK = 3
finish, left = p.finish, [4]
def slow(*arguments):
    done = finish(*arguments)
    left[0] -= 1
    if not left[0]:
        print("now", flush=True)
        time.sleep(60)
    return done
p.finish = slow
from training.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_and_resumed_to_the_same_bytes(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = words(collection, out, "--shards")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.rglob("00*.json"))) == 4 and not (out / "train").exists()

    examined = []
    check = training.prepare.examine._check
    monkeypatch.setattr(
        training.prepare.examine, "_check", lambda *a: (examined.append(a[0].name), check(*a))[1]
    )
    assert main(arguments) == 0
    assert len(examined) == COUNT - 4 * 3
    assert main(words(collection, tmp_path / "whole", "--shards")) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_pieces_of_other_annotations_are_done_again(collection: Path, tmp_path: Path) -> None:
    reader = open_reader("boxes", collection, collection / "boxes.jsonl")
    job = Job(reader, PhotoFinder(collection), BoxFilter(), False, tmp_path)
    entries = list(reader.entries())
    path, _ = examine(job, (0, entries[:2]))
    again, _ = examine(job, (0, entries[2:5]))
    assert path == again and len(Piece.load(path).photos) == 3


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (6, 1), (20, 4), (39, 7), (40, 8), (700, 8), (5000, 50)]
)
def test_by_default_few_photos_give_a_fifth_and_more_at_least_eight(
    tmp_path: Path, count: int, held_out: int
) -> None:
    names, boxes = [f"{number}.jpg" for number in range(count)], np.array([[0, 0, 4, 4]])
    made = [PhotoBoxes(path=name, size=(8, 8), boxes=boxes, labels=[""]) for name in names]
    piece = finish(tmp_path / "piece.json", names, lambda: Piece(photos=made, guessed=[""] * count))
    photos = Photos([piece], tmp_path)
    found = list(photos.split(photos.limit(None), held_out=True))
    # A share is one of the hashes, which are spread as dice are: 50 and its standard deviation.
    assert len(found) == pytest.approx(held_out, abs=0 if count < 800 else 2 * 7)


def test_pieces_of_a_mended_label_are_done_again(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5\n")
    reader = open_reader("yolo", tmp_path)
    job = Job(reader, PhotoFinder(tmp_path), BoxFilter(), False, tmp_path)
    entries = list(reader.entries())
    path, _ = examine(job, (0, entries))
    assert Piece.load(path).boxless == ["a.png"]
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    examine(job, (0, entries))
    assert len(Piece.load(path).photos) == 1


def test_other_options_are_refused(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(collection, out)) == 0
    before = contents(out)
    capsys.readouterr()
    assert main(words(collection, out, "--min-area", "0.1", "--val", "3")) == 2
    assert (
        "was begun with min_area 0.02 (now 0.1), val default (now 3.0); give another --out"
        in capsys.readouterr().err
    )
    assert contents(out) == before
    assert main(words(collection, out)) == 0  # the same again is fine
    assert contents(out) == before


def test_broken_photos_are_counted_and_listed(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    good = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("good.jpg", "good too.jpg", "cut.jpg"):
        save(images / name, good, quality=90)
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:1500])
    (images / "text ü.jpg").write_text("no picture")
    (images / "empty.png").touch()
    names = ["good.jpg", "good too.jpg", "cut.jpg", "text ü.jpg", "empty.png", "gone.jpg"]
    lines = [json.dumps({"image": name, "box": [8, 8, 40, 40]}) for name in names]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for verify, cut in ((["--verify"], ["cut.jpg\ttruncated JPEG"]), ([], [])):
        folder = tmp_path / f"out{len(cut)}"
        arguments = ["--images", str(images), "--annotations", str(tmp_path / "boxes.jsonl")]
        arguments += ["--out", str(folder), *verify]
        assert main(["prepare", "boxes", *arguments, "--processes", "1"]) == 0
        assert (folder / "unreadable.txt").read_text(encoding="utf-8").splitlines() == [
            *cut,
            "text ü.jpg\tnot a picture of a known format but a text file",
            "empty.png\tempty file",
            "gone.jpg\tno such file",
        ]
        meta = BoxIndex.open(folder / "train").meta
        reasons = ["no such file", "empty file"]
        reasons += ["not a picture of a known format but a text file"]
        reasons += ["truncated JPEG"] * len(cut)
        assert meta["photos left out"] == dict.fromkeys(sorted(reasons), 1)
    assert "no such file" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_header_sizes_are_those_of_the_decoded_photo(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{suffix.lower()}"
    Image.new("RGB", (40, 20)).save(path, suffix, exif=exif)
    height, width = decode_photo(path.read_bytes()).shape[:2]
    assert photo_size(path) == (width, height) == ((20, 40) if orientation > 4 else (40, 20))


def test_boxes_of_a_turned_photo_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn clockwise
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[30:, :40] = 255  # bottom left, upright: top left
    for name in ("a", "b"):
        save(tmp_path / f"images/{name}.jpg", pixels, exif=exif)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{name}.txt").write_text("0 0.125 0.25 0.25 0.5\n")
    out = tmp_path / "out"
    images = str(tmp_path / "images")
    assert main(["prepare", "yolo", "--images", images, "--out", str(out), "--processes", "1"]) == 0
    index = BoxIndex.open(out / "train")
    photo = decode_photo(PhotoFiles(index, out).read(index.photo(0)))
    x0, y0, x1, y1 = index.box(0)
    assert (photo > 127).all(2).sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.02)
    assert photo[y0:y1, x0:x1].mean() > 250


def test_shards_hold_the_files_untouched(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(collection, out, "--shards", "--shard-size", "10KB", "--val", "2")) == 0
    (tmp_path / "moved").mkdir()
    out = out.rename(tmp_path / "moved/out")
    for name in ("train", "val"):
        index = BoxIndex.open(out / name)
        files = PhotoFiles(index, out)
        for number in range(index.num_photos):
            photo = index.photo(number)
            assert files.read(photo) == (collection / photo.path).read_bytes()
    shards = sorted(path.name for path in (out / "shards").iterdir())
    assert shards[0] == "train-000000.tar" and shards[-1] == "val-000000.tar"


def test_large_photos_are_shrunk_into_shards(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(collection, out, "--shards", "--max-side", "24")) == 0
    index = BoxIndex.open(out / "train")
    files = PhotoFiles(index, out)
    for number in range(index.num_photos):
        photo = index.photo(number)
        pixels = decode_photo(files.read(photo))
        assert photo.size == (24, 16) == pixels.shape[1::-1]
        assert index.box(photo.boxes[0]) == (6, 4, 18, 12)
        colour = ("red", "green", "blue").index(index.label(photo.boxes[0]))
        assert pixels[5:11, 7:17].mean((0, 1)).argmax() == colour


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--val", "20"], "--val 20 of 20 photos leaves none to train on"),
        (["--val", "1.5"], "neither a share below 1 nor a number"),
        (["--include", "cat"], "no photo in .* has a box left .*label not included"),
        (["--drop", "fuzzy"], "--drop fuzzy is no flag; choose from group"),
        (["--max-side", "9"], "add --shards"),
        (["--shards", "--shard-size", "big"], "'big' is no size such as 256MB"),
        (["--images", "{tmp}/none"], "no folder of photos"),
        (
            ["--annotations", "{tmp}/bad.jsonl"],
            "found no lines .*the first is bad.jsonl, line 2",
        ),
        (["--annotations", "{tmp}/blank.jsonl"], "found no lines such as"),
        (["--out", "{tmp}/bad.jsonl/out"], "cannot make the folder"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    more: list[str],
    sentence: str,
    collection: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.jsonl").write_text("\n{}\n")
    (tmp_path / "blank.jsonl").write_text("\n")
    more = [word.format(tmp=tmp_path) for word in more]
    assert main(words(collection, tmp_path / "out", *more)) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("pbe-train: ")
    assert re.search(sentence, last), last
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_says_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    files = ["--images", str(tmp_path / "images"), "--annotations", str(tmp_path / "masks")]
    assert main(["prepare", "masks", *files, "--out", str(tmp_path / "out")]) == 2
    assert "found no photos in" in (said := capsys.readouterr().err) and "masks'" in said


def test_the_sample_sheet_shows_hole_and_exemplar(collection: Path, tmp_path: Path) -> None:
    photo = np.full((60, 90, 3), 40, np.uint8)
    photo[20:40, 30:60] = (0, 0, 255)
    sample = draw_sample(photo, (30, 20, 60, 40), np.random.default_rng(0))
    assert sample.shape == (TILE, 3 * TILE, 3)
    annotated, holed, exemplar = np.split(sample, 3, axis=1)
    assert (annotated == (80, 220, 80)).all(2).any() and (annotated == 255).all(2).any()
    assert ((annotated[..., 0] > 150) & (annotated[..., 1] < 100)).any()
    assert not (holed == (0, 0, 255)).all(2).any()  # all of the object is in the hole
    assert (np.abs(holed - 127.0) <= 1).all(2).any()
    assert exemplar[..., 2].mean() > 120  # blue

    assert main(words(collection, tmp_path / "out")) == 0
    sheet = Image.open(tmp_path / "out/samples.jpg")
    assert sheet.size == (6 * TILE, SAMPLES // 2 * TILE)


def test_process_map_keeps_the_order_and_reads_ahead_a_little() -> None:
    read = []

    def numbers() -> object:
        for number in range(1000):
            read.append(number)
            yield number

    with process_map(2) as run:
        results = run(abs, numbers())
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(read) < 20


ORPHANS = """
import os, time
from training.prepare.workers import process_map
def work(number):
    print(os.getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    with process_map(2) as run:
        list(run(work, range(2)))
"""


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "orphans.py")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_byte_sizes() -> None:
    sizes = {"256MB": 256_000_000, "1GiB": 2**30, "512": 512, "1.5k": 1500, "2 gb": 2 * 10**9}
    assert {text: byte_size(text) for text in sizes} == sizes
