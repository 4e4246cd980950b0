"""Samples as functions of their number: order, resume, workers, ranks, cache, bad files."""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from training.data.augment import (
    ExemplarAugment,
    PhotoRecolour,
    augment_exemplar,
    exemplar_crop,
    recolour_photo,
)
from training.data.dataset import (
    BoxDataset,
    StatelessBatchSampler,
    Stream,
    collate,
    keyed_rng,
    shuffled,
)
from training.data.decode import decode_photo
from training.data.index import BoxIndex
from training.data.index_format import PhotoBoxes
from training.data.index_writer import IndexWriter
from training.data.loader import load_batches
from training.data.shards import ShardWriter
from training.data.unreadable import UnreadableList

COUNT = 7


def write_index(root: Path, entries: list[dict]) -> None:
    (root / "train").mkdir(exist_ok=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (root / "train/boxes.jsonl").write_text(lines, encoding="utf-8")


def write_photos(root: Path, count: int = COUNT) -> list[dict]:
    """Photos of one grey each, so that an image tells its item; the box is textured."""
    (root / "train/images").mkdir(parents=True)
    entries = []
    for number in range(count):
        photo = np.full((40, 60, 3), 30 * number, np.uint8)
        photo[10:30, 20:44] = np.random.default_rng(number).integers(0, 256, (20, 24, 3))
        name = f"train/images/{number:05d}.png"
        assert cv2.imwrite(str(root / name), photo)
        entries.append({"image": name, "box": [20, 10, 44, 30], "id": f"item-{number}"})
    write_index(root, entries)
    return entries


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def dataset(root: Path, **options) -> BoxDataset:
    return BoxDataset(root, resolution=16, exemplar_size=24, **options)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- samples -----------------------------------------------------------------------------------


def test_sample_depends_on_seed_and_number_only(root: Path) -> None:
    one, two = dataset(root), dataset(root)
    numbers = [3, 3 + COUNT, 1000 * COUNT + 2]
    ahead = {number: one[number] for number in numbers}
    assert all(same(two[number], ahead[number]) for number in reversed(numbers))
    assert not same(dataset(root, seed=1)[3], ahead[3])


def test_sample_has_the_promised_shapes(root: Path) -> None:
    sample = dataset(root)[0]
    assert sample["image"].shape == (16, 16, 3) and sample["hole_mask"].shape == (16, 16)
    assert sample["exemplar"].shape == (24, 24, 3)
    assert {sample[name].dtype for name in ("image", "hole_mask", "exemplar")} == {np.dtype("u1")}
    assert sample["hole_mask"].max() == 255 and sample["hole_mask"].min() == 0


def test_image_and_exemplar_show_the_item_of_the_order(root: Path) -> None:
    data = dataset(root)
    for number in range(2 * COUNT):
        item = data.item_of(number)
        photo = decode_photo((root / f"train/images/{item:05d}.png").read_bytes())
        assert photo[0, 0, 0] == 30 * item
        sample = data[number]
        assert (sample["image"][sample["hole_mask"] == 0] == 30 * item).all()
        crop = exemplar_crop(photo, data.index.box(item), data.geometry)
        rng = keyed_rng(0, number, Stream.EXEMPLAR)
        assert np.array_equal(sample["exemplar"], augment_exemplar(crop, 24, rng, data.exemplar))


def test_streams_seeds_and_numbers_are_independent() -> None:
    keys = [(seed, number, stream) for seed in (0, 1) for number in (0, 1) for stream in range(3)]
    draws = np.array([keyed_rng(*key).random(1000) for key in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / np.sqrt(1000)


def test_negative_seed_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="seed is -1"):
        dataset(root, seed=-1)


def test_photo_and_exemplar_are_recoloured_alike(root: Path) -> None:
    recolour = PhotoRecolour(probability=0.5)
    plain = ExemplarAugment(flip=0, rotate=0, blur=0, affine=0)
    data = dataset(root, recolour=recolour, exemplar=plain, geometry_variants=2)
    changes = 0
    for number in range(4 * COUNT):
        sample, key = data[number], data.cache_key(number)
        item = data.item_of(number)
        photo = decode_photo((root / f"train/images/{item:05d}.png").read_bytes())
        expected = recolour_photo(photo, keyed_rng(0, key, Stream.COLOURS), recolour)
        changes += not np.array_equal(expected, photo)
        crop = exemplar_crop(expected, data.index.box(item), data.geometry)
        exemplar = augment_exemplar(crop, 24, keyed_rng(0, number, Stream.EXEMPLAR), plain)
        assert np.array_equal(sample["exemplar"], exemplar)
        assert (sample["image"][sample["hole_mask"] == 0] == expected[0, 0]).all()
        assert np.array_equal(sample["image"], data.geometry_sample(key)[0])
    assert 0 < changes < 4 * COUNT


# ---- order and batches -------------------------------------------------------------------------


def test_every_epoch_covers_every_item_once_in_another_order(root: Path) -> None:
    data = dataset(root)
    epochs = [[data.item_of(epoch * COUNT + i) for i in range(COUNT)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs[3] == [shuffled(position, 0, 3, COUNT) for position in range(COUNT)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11, 16, 97, 1000])
def test_orders_are_permutations_that_differ_by_seed_and_epoch(length: int) -> None:
    orders = {
        tuple(shuffled(position, seed, epoch, length) for position in range(length))
        for seed in (0, 2**62)
        for epoch in range(5)
    }
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert len(orders) == 10 or length < 16


def test_every_item_is_equally_likely_at_every_position() -> None:
    length, epochs = 5, 1200
    orders = np.array(
        [[shuffled(p, 0, epoch, length) for p in range(length)] for epoch in range(epochs)]
    )
    mean, deviation = epochs / length, np.sqrt(epochs * (1 / length) * (1 - 1 / length))
    counts = np.array([np.bincount(column, minlength=length) for column in orders.T])
    assert np.abs(counts - mean).max() < 4.5 * deviation
    # All 120 orders occur, none much too often.
    each = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(each) == 120 and each.max() < 30


def test_a_long_order_neither_repeats_nor_keeps_neighbours_together() -> None:
    length = 14_000_000
    order = np.array([shuffled(position, 0, 1, length) for position in range(10_000)])
    assert len(np.unique(order)) == len(order) and order.min() >= 0 and order.max() < length
    assert abs(order.mean() / length - 0.5) < 0.015
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_unshuffled_epochs_follow_the_index(root: Path) -> None:
    data = dataset(root, shuffle=False)
    assert [data.item_of(i) for i in range(2 * COUNT)] == [*range(COUNT), *range(COUNT)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_global_batches_are_the_same_for_any_world_size(world_size: int) -> None:
    ranks = [
        StatelessBatchSampler(8, start_sample=16, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = zip(*(islice(rank, 3) for rank in ranks), strict=True)
    batches = [list(chain(*shares)) for shares in steps]
    assert batches == [list(range(start, start + 8)) for start in (16, 24, 32)]


@pytest.mark.parametrize("consumed", [0, 1, 5, 13, 40])
def test_resume_continues_at_any_position(root: Path, consumed: int) -> None:
    data = dataset(root)
    resumed = load_batches(data, StatelessBatchSampler(3, start_sample=consumed))
    for step, batch in enumerate(islice(resumed, 2)):
        expected = collate([data[consumed + 3 * step + i] for i in range(3)])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_worker_count_does_not_change_the_batches(root: Path) -> None:
    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        loader = load_batches(dataset(root), StatelessBatchSampler(4), num_workers=workers)
        return list(islice(loader, 4))

    alone = batches(0)
    for workers in (1, 2):
        for one, other in zip(alone, batches(workers), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size 6 cannot be shared equally by 4"):
        StatelessBatchSampler(6, world_size=4)


def test_collate_converts_to_model_ranges() -> None:
    sample = {
        "image": np.stack([np.full((2, 2), value, np.uint8) for value in (0, 51, 255)], axis=-1),
        "hole_mask": np.array([[0, 255], [51, 102]], np.uint8),
        "exemplar": np.full((3, 3, 3), 51, np.uint8),
        "index": 5,
        "skipped": 1,
    }
    batch = collate([sample, sample])
    assert batch["image"].shape == (2, 3, 2, 2) and batch["hole_mask"].shape == (2, 1, 2, 2)
    assert torch.allclose(batch["image"][0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))
    assert torch.allclose(batch["hole_mask"][1, 0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    assert torch.allclose(batch["exemplar"], torch.full((2, 3, 3, 3), 0.2))
    assert batch["image"].is_contiguous() and batch["index"].tolist() == [5, 5]
    assert batch["skipped"].tolist() == [1, 1]


# ---- a bank of cached geometry -----------------------------------------------------------------


def test_bank_rows_are_what_the_samples_show(root: Path) -> None:
    data = dataset(root, geometry_variants=3)
    assert data.cache_rows == 3 * COUNT
    for number in range(4 * COUNT):
        sample = data[number]
        assert sample["cache_key"] == data.cache_key(number)
        image, hole_mask = data.geometry_sample(sample["cache_key"])
        assert np.array_equal(image, sample["image"])
        assert np.array_equal(hole_mask, sample["hole_mask"])


def test_bank_is_used_up_evenly_while_exemplars_stay_fresh(root: Path) -> None:
    data = dataset(root, geometry_variants=3)
    keys = [data.cache_key(number) for number in range(3 * COUNT)]
    assert sorted(keys) == list(range(3 * COUNT))
    again = next(n for n in range(3 * COUNT, 4 * COUNT) if data.cache_key(n) == keys[0])
    assert np.array_equal(data[0]["image"], data[again]["image"])
    assert not np.array_equal(data[0]["exemplar"], data[again]["exemplar"])


def test_samples_without_image_have_the_same_exemplars(root: Path) -> None:
    full, slim = (dataset(root, geometry_variants=2, with_image=flag) for flag in (True, False))
    batch = collate([slim[number] for number in range(4)])
    assert set(batch) == {"exemplar", "index", "skipped", "cache_key"}
    assert torch.equal(batch["exemplar"], collate([full[n] for n in range(4)])["exemplar"])
    assert batch["cache_key"].dtype == torch.int64


def test_bank_needs_variants(root: Path) -> None:
    with pytest.raises(ValueError, match="geometry_variants set, got None"):
        _ = dataset(root).cache_rows
    with pytest.raises(ValueError, match="geometry_variants must be at least 1, got 0"):
        dataset(root, geometry_variants=0)


# ---- a photo with one of its boxes -------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos, one with three boxes, one with a single box."""
    folder = tmp_path_factory.mktemp("crowd")
    one, other = write_photos(folder, 2)
    boxes = [[0, 0, 20, 10], [40, 0, 60, 10], [20, 10, 44, 30]]
    write_index(folder, [*({**one, "box": box} for box in boxes), other])
    return folder


def shown_box(data: BoxDataset, number: int) -> int:
    """Number of the box that a sample's exemplar shows."""
    crops = []
    for box in range(data.index.num_boxes):
        path = data.index.photo(data.index.photo_of(box)).path
        photo = decode_photo((Path(data.files._folder) / path).read_bytes())
        crop = exemplar_crop(photo, data.index.box(box), data.geometry)
        rng = keyed_rng(data.seed, number, Stream.EXEMPLAR)
        crops.append(augment_exemplar(crop, data.exemplar_size, rng, data.exemplar))
    exemplar = data[number]["exemplar"]
    return next(box for box, crop in enumerate(crops) if np.array_equal(crop, exemplar))


def test_an_epoch_of_photos_shows_each_once_with_any_of_its_boxes(crowd: Path) -> None:
    data = dataset(crowd, sample="photo")
    assert len(data) == 2 and len(dataset(crowd)) == 4
    shown = [shown_box(data, number) for number in range(60)]
    photos = [data.index.photo_of(box) for box in shown]
    assert all(sorted(pair) == [0, 1] for pair in zip(photos[::2], photos[1::2], strict=True))
    counts = np.bincount(shown)
    assert counts[3] == 30 and counts[:3].min() > 4
    assert shown[7:20] == [shown_box(dataset(crowd, sample="photo"), n) for n in range(7, 20)]


def test_bank_rows_of_photos_are_what_the_samples_show(crowd: Path) -> None:
    data = dataset(crowd, sample="photo", geometry_variants=3)
    assert data.cache_rows == 6
    for number in range(12):
        sample = data[number]
        image, hole_mask = data.geometry_sample(sample["cache_key"])
        assert np.array_equal(image, sample["image"])
        assert np.array_equal(hole_mask, sample["hole_mask"])


# ---- where photos lie --------------------------------------------------------------------------


def test_lines_folder_and_shards_give_the_same_samples(tmp_path: Path) -> None:
    entries = write_photos(tmp_path, 5)
    for entry, name in zip(
        entries, ("a b.png", "ä.png", "犬.png", "e.png", "f#%20?.png"), strict=True
    ):
        new = f"train/images/{name}"
        (tmp_path / entry["image"]).rename(tmp_path / new)
        entry["image"] = new
    write_index(tmp_path, [*entries, {**entries[0], "box": [0, 0, 30, 30]}])
    lines = BoxIndex.open(tmp_path / "train/boxes.jsonl", tmp_path)
    with (
        IndexWriter(tmp_path / "train/index") as files,
        IndexWriter(tmp_path / "train/sharded") as sharded,
    ):
        with ShardWriter(tmp_path / "shards", max_bytes=20_000) as writer:
            for number in range(lines.num_photos):
                photo = lines.photo(number)
                boxes = PhotoBoxes(
                    path=photo.path,
                    size=photo.size or (0, 0),
                    boxes=lines.boxes_of(number),
                    labels=[lines.label(box) for box in photo.boxes],
                )
                files.add(boxes)
                sharded.add(writer.add(boxes, (tmp_path / photo.path).read_bytes()))
        files.close({})
        sharded.close({"photos": "shards", "shards": writer.names})
    for unit in ("box", "photo"):
        expected = dataset(tmp_path, sample=unit)
        others = [
            BoxDataset(tmp_path, f"train/{name}", resolution=16, exemplar_size=24, sample=unit)
            for name in ("index", "sharded")
        ]
        for number in range(12):
            for data in others:
                assert len(data) == len(expected) and same(data[number], expected[number])
        assert {data.index.digest for data in others} == {expected.index.digest}


# ---- broken photos -----------------------------------------------------------------------------


def break_text(path: Path) -> None:
    path.write_text("no image")


def break_empty(path: Path) -> None:
    path.write_bytes(b"")


def break_truncated_jpeg(path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", photo)[1].tobytes()
    path.write_bytes(data[: len(data) // 2])


def break_size(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((80, 120, 3), np.uint8))


def break_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [Path.unlink, break_text, break_empty, break_truncated_jpeg, break_size, break_folder]


@pytest.mark.parametrize("unit", ["box", "photo"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_photo_is_replaced_by_the_next_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, unit: str
) -> None:
    write_photos(tmp_path, 4)
    report = tmp_path / "run/unreadable.txt"
    data = dataset(tmp_path, shuffle=False, report=report, sample=unit)
    whole = data[2]["image"]
    damage(tmp_path / data.index.photo(1).path)
    with caplog.at_level(logging.WARNING):
        samples = [data[number] for number in range(8)]
    shown = [int(sample["image"][sample["hole_mask"] == 0][0, 0]) // 30 for sample in samples]
    assert shown == [0, 2, 2, 3, 0, 2, 2, 3]
    assert [sample["skipped"] for sample in samples] == [0, 1, 0, 0, 0, 1, 0, 0]
    assert np.array_equal(samples[2]["image"], whole)
    assert len(caplog.records) == 1 and "00001.png" in caplog.text
    (line,) = report.read_text().splitlines()
    path, reason = line.split("\t")
    assert path == "train/images/00001.png" and len(reason) > 5


def test_a_box_outside_its_photo_is_reported(tmp_path: Path) -> None:
    entries = write_photos(tmp_path, 3)
    entries[1]["box"] = [70, 10, 90, 30]
    write_index(tmp_path, entries)
    data = dataset(tmp_path, shuffle=False, report=tmp_path / "unreadable.txt")
    assert [data[number]["skipped"] for number in range(3)] == [0, 1, 0]
    assert (
        "00001.png\tits box (70, 10, 90, 30) is outside the 60 x 40 photo"
        in (tmp_path / "unreadable.txt").read_text()
    )


def test_a_box_that_reaches_beyond_its_photo_is_cut(tmp_path: Path) -> None:
    (entry,) = write_photos(tmp_path, 1)
    samples = []
    for box in ([30, 20, 80, 50], [30, 20, 60, 40]):
        write_index(tmp_path, [{**entry, "box": box}])
        samples.append(dataset(tmp_path)[0])
    assert same(*samples) and samples[0]["skipped"] == 0


def test_all_boxes_of_a_broken_photo_are_one_failure(crowd: Path, tmp_path: Path) -> None:
    broken = tmp_path / "crowd"
    shutil.copytree(crowd, broken)
    data = dataset(broken, shuffle=False)
    (broken / data.index.photo(0).path).write_bytes(b"")
    assert [data[number]["skipped"] for number in range(4)] == [1, 1, 1, 0]


def test_workers_tell_how_many_they_skipped_and_list_each_once(tmp_path: Path) -> None:
    entries = write_photos(tmp_path, 8)
    for number in (1, 4, 5):
        (tmp_path / entries[number]["image"]).write_bytes(b"")
    report = tmp_path / "run/unreadable.txt"

    def skipped(workers: int) -> list[int]:
        data = dataset(tmp_path, report=report)
        loader = load_batches(data, StatelessBatchSampler(4), num_workers=workers)
        return [int(batch["skipped"].sum()) for batch in islice(loader, 8)]

    alone = skipped(0)
    assert sum(alone) == 4 * 4  # an epoch meets 1 and 4 once and 5 twice
    assert skipped(2) == alone
    listed = [line.split("\t")[0] for line in report.read_text().splitlines()]
    assert sorted(listed) == [entries[number]["image"] for number in (1, 4, 5)]


def test_photo_broken_before_the_start_keeps_its_number(tmp_path: Path) -> None:
    entries = write_photos(tmp_path, 3)
    (tmp_path / entries[0]["image"]).write_bytes(b"")
    data = dataset(tmp_path)
    assert len(data) == 3 and len([data[number] for number in range(6)]) == 6


def test_no_readable_photo_at_all_is_an_error(tmp_path: Path) -> None:
    for entry in write_photos(tmp_path, 2):
        (tmp_path / entry["image"]).write_bytes(b"")
    with pytest.raises(ValueError, match="2 photos in a row cannot be read"):
        dataset(tmp_path)[0]


def _note(file: Path) -> None:
    found = UnreadableList(file)
    for number in range(200):
        found.note(f"ordner {number % 50}/ä.jpg", "empty\nfile")


def test_several_processes_list_a_photo_once(tmp_path: Path) -> None:
    file = tmp_path / "run/unreadable.txt"
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        list(pool.map(_note, [file] * 8))
    lines = file.read_text().splitlines()
    assert sorted(lines) == sorted(f"ordner {number}/ä.jpg\tempty file" for number in range(50))
    later = UnreadableList(file)
    assert not later.note("ordner 7/ä.jpg", "again") and later.note("other.jpg", "new")


def test_streams_of_randomness_have_numbers_of_their_own() -> None:
    """A number given twice would make two draws the same; training's may never change."""
    assert len(Stream) == len(set(map(int, Stream))) == 9
    trained = (Stream.ORDER, Stream.GEOMETRY, Stream.EXEMPLAR, Stream.NOISE, Stream.VALIDATION,
               Stream.PICTURES, Stream.CHOICE, Stream.COLOURS)  # fmt: skip
    assert trained == (0, 1, 2, 3, 4, 5, 16, 17)
