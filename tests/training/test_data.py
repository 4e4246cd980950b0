"""Samples as functions of their number: order, resume, workers, ranks, cache, bad files."""

from __future__ import annotations

import json
import logging
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from training.augment import augment_exemplar, exemplar_crop
from training.data import (
    EXEMPLAR,
    BoxDataset,
    StatelessBatchSampler,
    collate,
    data_loader,
    epoch_order,
    keyed_rng,
    load_index,
    read_photo,
)

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
        photo = read_photo(data.items[item].image)
        assert photo[0, 0, 0] == 30 * item
        sample = data[number]
        assert (sample["image"][sample["hole_mask"] == 0] == 30 * item).all()
        crop = exemplar_crop(photo, data.items[item].box, data.geometry)
        rng = keyed_rng(0, number, EXEMPLAR)
        assert np.array_equal(sample["exemplar"], augment_exemplar(crop, 24, rng, data.exemplar))


def test_streams_seeds_and_numbers_are_independent() -> None:
    keys = [(seed, number, stream) for seed in (0, 1) for number in (0, 1) for stream in range(3)]
    draws = np.array([keyed_rng(*key).random(1000) for key in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / np.sqrt(1000)


def test_negative_seed_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        dataset(root, seed=-1)


# ---- order and batches -------------------------------------------------------------------------


def test_every_epoch_covers_every_item_once_in_another_order(root: Path) -> None:
    data = dataset(root)
    epochs = [[data.item_of(epoch * COUNT + i) for i in range(COUNT)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs[3] == epoch_order(0, 3, COUNT).tolist()


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
    resumed = data_loader(data, StatelessBatchSampler(3, start_sample=consumed))
    for step, batch in enumerate(islice(resumed, 2)):
        expected = collate([data[consumed + 3 * step + i] for i in range(3)])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_worker_count_does_not_change_the_batches(root: Path) -> None:
    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        loader = data_loader(dataset(root), StatelessBatchSampler(4), num_workers=workers)
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
    }
    batch = collate([sample, sample])
    assert batch["image"].shape == (2, 3, 2, 2) and batch["hole_mask"].shape == (2, 1, 2, 2)
    assert torch.allclose(batch["image"][0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))
    assert torch.allclose(batch["hole_mask"][1, 0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    assert torch.allclose(batch["exemplar"], torch.full((2, 3, 3, 3), 0.2))
    assert batch["image"].is_contiguous() and batch["index"].tolist() == [5, 5]


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
    assert set(batch) == {"exemplar", "index", "cache_key"}
    assert torch.equal(batch["exemplar"], collate([full[n] for n in range(4)])["exemplar"])
    assert batch["cache_key"].dtype == torch.int64


def test_bank_needs_variants(root: Path) -> None:
    with pytest.raises(ValueError, match="geometry_variants set, got None"):
        _ = dataset(root).cache_rows
    with pytest.raises(ValueError, match="geometry_variants must be at least 1, got 0"):
        dataset(root, geometry_variants=0)


# ---- index and files ---------------------------------------------------------------------------


def test_boxes_outside_the_area_limits_are_dropped(tmp_path: Path) -> None:
    entries = write_photos(tmp_path, 4)
    for entry, width in zip(entries, (1, 2, 48, 49), strict=True):  # of 60 x 40
        entry["box"] = [0, 0, width, 40]
    write_index(tmp_path, entries)
    assert [item.id for item in load_index(tmp_path, "train/boxes.jsonl")] == ["item-1", "item-2"]
    with pytest.raises(ValueError, match=r"no box that covers 0\.9 to 1"):
        load_index(tmp_path, "train/boxes.jsonl", min_area=0.9, max_area=1)


def test_index_with_sizes_needs_no_photos(tmp_path: Path) -> None:
    write_index(tmp_path, [{"image": "a.jpg", "box": [0, 0, 9, 9], "size": [10, 10], "group": "g"}])
    assert load_index(tmp_path, "train/boxes.jsonl", max_area=0.81)[0].group == "g"
    with pytest.raises(ValueError, match="no box that covers"):
        load_index(tmp_path, "train/boxes.jsonl")


@pytest.mark.parametrize("line", ["{", '{"image": "a.png"}', '{"image": "a", "box": [1, 2]}', "7"])
def test_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "boxes.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is no box entry"):
        load_index(tmp_path, "boxes.jsonl")


def test_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no box index at .*boxes\.jsonl"):
        dataset(tmp_path)


def break_text(path: Path) -> None:
    path.write_text("no image")


def break_empty(path: Path) -> None:
    path.write_bytes(b"")


def break_truncated_jpeg(path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", photo)[1].tobytes()
    path.write_bytes(data[: len(data) // 2])


def break_small(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((5, 5, 3), np.uint8))


@pytest.mark.parametrize(
    "damage", [Path.unlink, break_text, break_empty, break_truncated_jpeg, break_small]
)
def test_broken_photo_is_replaced_by_the_next_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage
) -> None:
    write_photos(tmp_path, 4)
    data = dataset(tmp_path, shuffle=False)
    whole = data[2]["image"]
    damage(data.items[1].image)
    with caplog.at_level(logging.WARNING):
        samples = [data[number] for number in range(8)]
    shown = [int(sample["image"][sample["hole_mask"] == 0][0, 0]) // 30 for sample in samples]
    assert shown == [0, 2, 2, 3, 0, 2, 2, 3]
    assert np.array_equal(samples[2]["image"], whole)
    assert len(caplog.records) == 1 and "00001.png" in caplog.text
    assert data.unreadable == {data.items[1].image}


def test_photo_broken_before_the_start_keeps_its_number(tmp_path: Path) -> None:
    entries = write_photos(tmp_path, 3)
    (tmp_path / entries[0]["image"]).write_bytes(b"")
    data = dataset(tmp_path)
    assert len(data) == 3 and len([data[number] for number in range(6)]) == 6


def test_no_readable_photo_at_all_is_an_error(tmp_path: Path) -> None:
    for entry in write_photos(tmp_path, 2):
        (tmp_path / entry["image"]).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 photos can be read"):
        dataset(tmp_path)[0]


def test_photos_are_read_upright_as_rgb(tmp_path: Path) -> None:
    photo = np.zeros((8, 16, 3), np.uint8)
    photo[:, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    upright = read_photo(tmp_path / "a.jpg")
    assert upright.shape == (16, 8, 3)
    assert np.abs(upright[2, 4].astype(int) - (255, 0, 0)).max() < 10
    assert upright[13, 4].max() < 10
