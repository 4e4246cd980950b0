"""What a training sample costs: the paper's dataset class and ours on the same OpenImages tree.

The tree is made in a temporary folder: mosaics of the bundled photos at their own scale with the
noise of a sensor, JPEG quality 90 (the size of the files is printed), boxes of 2 to 80 % of the
photo as text files. Both classes make samples of 512 pixels with exemplars of 224 in one thread, by
turns. First they are held to each other: shapes, ranges, polarity of masks, and the distributions
of six quantities (two-sample Kolmogorov-Smirnov at 1e-3).

    make peers
    python -m benchmarks.data_pipeline [--rounds 15] [--samples 16] [--shrunk 0.75]

A round is so many samples of each. The table shows medians over the rounds, and of the ratio the
quartiles. Theirs are float tensors, normalised and masked; ours stay uint8 until they are on the
device, so a line shows them converted as well. Ours is also measured on the same photos as
`pbe-train prepare boxes --shards --max-side` stores them, `--shrunk` to a share of their sides:
nearer to what 512 pixels need. On two busy cores it takes several minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy import stats

import pbe_model
from benchmarks.official_dataset import CLIP_MEAN, CLIP_STD, FOLDERS, OfficialDataset
from training.data.augment import SampleGeometry, augment_exemplar, exemplar_crop, training_geometry
from training.data.dataset import BoxDataset, collate
from training.data.decode import decode_photo
from training.prepare.annotations import BoxFilter, open_reader
from training.prepare.collection import prepare
from training.prepare.packing import Packing

SIZES = [(1024, 768), (1600, 1200)]
PHOTOS = 32
RESOLUTION, EXEMPLAR = 512, 224
NOISE = 6.0  # standard deviation in grey levels
Sample = dict[str, torch.Tensor]


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description="Cost of a training sample.")
    parser.add_argument("--rounds", type=int, default=15, help="of each size [%(default)s]")
    parser.add_argument("--samples", type=int, default=16, help="in a round [%(default)s]")
    parser.add_argument(
        "--shrunk", type=float, default=0.75, help="side of photos in shards [%(default)s]"
    )
    parser.add_argument("--checked", type=int, default=128, help="compared first [%(default)s]")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    random.seed(0)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            mean_kb = write_tree(Path(folder), *size)
            theirs = OfficialDataset(Path(folder), image_size=RESOLUTION)
            print(f"{size[0]} x {size[1]}, files of {mean_kb:.0f} kB on average")
            max_side = round(args.shrunk * max(size))
            shards = prepare_shards(Path(folder), max_side)
            datasets = {
                "ours": dataset(folder, "boxes.jsonl", pixel_scale=1.0),
                f"ours, of {max_side} pixels": dataset(shards, "train", pixel_scale=args.shrunk),
            }
            jobs: dict[str, Callable[[int], Any]] = {
                "official": lambda i, data=theirs: data[i % PHOTOS],
            }
            for name, ours in datasets.items():
                print(f"  official, {name}:")
                check(theirs, ours, args.checked)
                jobs[name] = lambda i, data=ours: data[i]
                jobs[f"{name}, floats"] = lambda i, data=ours: as_official(data[i])
            report(interleaved(jobs, args.rounds, args.samples))
            for name, ours in datasets.items():
                report_stages(name, ours, 4 * args.samples)
            print()


def write_tree(root: Path, width: int, height: int) -> float:
    """Write photos and boxes, as the official repository lays them out and as a text index.

    Returns:
        Mean size of a photo's file in kilobytes.
    """
    rng = np.random.default_rng(0)
    scenes = [cv2.imread(str(path)) for path in sorted(bundled_scenes().glob("*/photo.jpg"))]
    for folder in FOLDERS:
        (root / "images" / folder).mkdir(parents=True)
        (root / "bbox" / folder).mkdir(parents=True)
    sizes, lines = [], []
    for number in range(PHOTOS):
        # Numbered along the folders: then the official order, sorted paths, is that of the index.
        folder, name = FOLDERS[number * len(FOLDERS) // PHOTOS], f"{number:016x}"
        photo = mosaic(scenes, width, height, rng)
        _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 90])
        (root / "images" / folder / f"{name}.jpg").write_bytes(data.tobytes())
        sizes.append(len(data) / 1000)
        box = draw_box(width, height, rng)
        (root / "bbox" / folder / f"{name}.txt").write_text(" ".join(map(str, box)) + "\n")
        entry = {"image": f"images/{folder}/{name}.jpg", "box": [int(edge) for edge in box]}
        lines.append(json.dumps({**entry, "size": [width, height]}) + "\n")
    (root / "boxes.jsonl").write_text("".join(lines))
    return statistics.mean(sizes)


def dataset(root: str | Path, index: str, *, pixel_scale: float) -> BoxDataset:
    """Ours, with the pixel amounts of the paper: also in large photos, scaled in shrunk ones."""
    return BoxDataset(
        root,
        index,
        resolution=RESOLUTION,
        exemplar_size=EXEMPLAR,
        sample="photo",
        geometry=SampleGeometry(pixel_scale=pixel_scale),
    )


def prepare_shards(tree: Path, max_side: int) -> Path:
    """What `pbe-train prepare boxes --shards --max-side` makes of the tree: its folder."""
    out = tree / f"shards-{max_side}"
    reader = open_reader("boxes", tree, tree / "boxes.jsonl")
    box_filter = BoxFilter(min_area=0.0, max_area=1.0)
    prepare(reader, out, box_filter=box_filter, val=0, packing=Packing(max_side=max_side))
    return out


def bundled_scenes() -> Path:
    """Folder of the photos that come with the package."""
    return Path(pbe_model.__file__).parent / "assets" / "scenes"


def mosaic(
    scenes: list[np.ndarray], width: int, height: int, rng: np.random.Generator
) -> np.ndarray:
    """Random photos side by side, unscaled: (height, width, 3) uint8 with noise."""
    tile = min(min(scene.shape[:2]) for scene in scenes)
    rows = []
    for _ in range(-(-height // tile)):
        row = [scenes[rng.integers(len(scenes))] for _ in range(-(-width // tile))]
        rows.append(np.hstack([scene[:tile, :tile][:, :: rng.choice([-1, 1])] for scene in row]))
    photo = np.vstack(rows)[:height, :width]
    return (photo + rng.normal(0, NOISE, photo.shape)).clip(0, 255).astype(np.uint8)


def draw_box(width: int, height: int, rng: np.random.Generator) -> list[float]:
    """A box that the official filter keeps, in pixels."""
    while True:
        x0, x1 = sorted(rng.uniform(0, 1, 2).tolist())
        y0, y1 = sorted(rng.uniform(0, 1, 2).tolist())
        if 0.02 <= (x1 - x0) * (y1 - y0) <= 0.8:
            return [x0 * width, y0 * height, x1 * width, y1 * height]


def as_official(sample: dict[str, Any]) -> Sample:
    """A sample of ours in the form of theirs."""
    batch = {name: tensor[0] for name, tensor in collate([sample]).items()}
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    keep_mask = 1 - batch["hole_mask"]
    return {
        "GT": batch["image"],
        "inpaint_image": batch["image"] * keep_mask,
        "inpaint_mask": keep_mask,
        "ref_imgs": (batch["exemplar"] - mean) / std,
    }


def check(theirs: OfficialDataset, ours: BoxDataset, samples: int) -> None:
    """Hold the two to each other.

    Raises:
        SystemExit: They do not do the same.
    """
    measured: tuple[list[list[float]], list[list[float]]] = [], []
    for index in range(samples):
        pair = theirs[index % PHOTOS], as_official(ours[index])
        forms = [{name: (x.shape, x.dtype) for name, x in sample.items()} for sample in pair]
        if forms[0] != forms[1]:
            raise SystemExit(f"samples differ in form: {forms[0]} and {forms[1]}")
        for sample, rows in zip(pair, measured, strict=True):
            rows.append(list(quantities(sample).values()))
    names = list(quantities(theirs[0]))
    for name, a, b in zip(names, *(np.transpose(rows) for rows in measured), strict=True):
        if (chance := stats.ks_2samp(a, b).pvalue) < 1e-3:
            raise SystemExit(f"samples differ in {name}: {a.mean():.3f} and {b.mean():.3f}")
        print(f"  {name:34}{a.mean():8.3f}{b.mean():8.3f}   p = {chance:.2f}")


def quantities(sample: Sample) -> dict[str, float]:
    """What is compared: means that a wrong range, polarity or shape of mask would move."""
    image, mask, exemplar = sample["GT"], sample["inpaint_mask"], sample["ref_imgs"]
    if image.abs().max() > 1 or mask.min() < 0 or mask.max() > 1:
        raise SystemExit("values are out of range")
    hole = mask[0] < 0.5
    frame = (hole.any(0).sum() * hole.any(1).sum()).clamp_min(1)
    return {
        "share of the image that is hole": hole.float().mean().item(),
        "share of the hole's box that is hole": (hole.sum() / frame).item(),
        "mean of the image": image.mean().item(),
        "deviation of the image": image.std().item(),
        "mean of the exemplar": exemplar.mean().item(),
        "detail of the exemplar": exemplar.diff(dim=-1).abs().mean().item(),
    }


def interleaved(
    jobs: dict[str, Callable[[int], Any]], rounds: int, samples: int
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds a sample of each job, (wall, processor), for every round but a first one."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        spent = {name: np.zeros(2) for name in jobs}
        for index in range(number * samples, (number + 1) * samples):
            for name, job in jobs.items():
                start = np.array([time.perf_counter(), time.process_time()])
                job(index)
                spent[name] += np.array([time.perf_counter(), time.process_time()]) - start
        if number:
            for name, total in spent.items():
                wall, processor = (total / samples * 1000).tolist()
                times[name].append((wall, processor))
    return times


def report(times: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians, and how many times faster than the first job."""
    first = next(iter(times))
    print(f"  {'ms a sample':28}{'wall':>8}{'process':>9}   times faster (process, quartiles)")
    for name, rounds in times.items():
        wall, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
        pairs = zip(times[first], rounds, strict=True)
        ratios = [peer[1] / own[1] for peer, own in pairs]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"  {name:28}{wall:8.1f}{processor:9.1f}   {middle:.1f} ({low:.1f} to {high:.1f})")


def report_stages(name: str, ours: BoxDataset, samples: int) -> None:
    """Print where our time goes."""
    stages = ("reading", "decoding", "exemplar", "hole and crop")
    spent: dict[str, list[float]] = {stage: [] for stage in stages}
    rng = np.random.default_rng(0)
    for number in range(samples):
        photo = ours.index.photo(number % PHOTOS)
        box = ours.index.box(photo.boxes[0])
        marks = [time.process_time()]
        data = ours.files.read(photo)
        marks.append(time.process_time())
        pixels = decode_photo(data)
        marks.append(time.process_time())
        crop = exemplar_crop(pixels, box, ours.geometry)
        augment_exemplar(crop, EXEMPLAR, rng, ours.exemplar)
        marks.append(time.process_time())
        training_geometry(pixels, box, RESOLUTION, rng, ours.geometry)
        marks.append(time.process_time())
        for stage, seconds in zip(stages, np.diff(marks).tolist(), strict=True):
            spent[stage].append(1000 * seconds)
    parts = (f"{stage} {statistics.median(values):.2f}" for stage, values in spent.items())
    print(f"  {name}, ms: " + ", ".join(parts))


if __name__ == "__main__":
    main()
