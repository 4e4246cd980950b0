"""Training samples from a folder of photos with boxes, as a function of seed and sample number.

Nothing here has a state to save. Samples are numbered over the whole run: number `i` is position
`i % N` of epoch `i // N`, the order of an epoch is a permutation keyed by (seed, epoch), and all
randomness in a sample is keyed by (seed, number), with a counter-based generator (Philox). A run
resumed at sample `i` sees exactly what the uninterrupted run would have seen, with any number of
worker processes and ranks. (NVlabs/edm2 does the same for its order and noise.)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from pbe_model.mask import Box
from training.augment import (
    ExemplarAugment,
    SampleGeometry,
    augment_exemplar,
    exemplar_crop,
    training_geometry,
)

log = logging.getLogger(__name__)

ORDER, GEOMETRY, EXEMPLAR = range(3)
"""Streams of `keyed_rng`: independent randomness under the same seed and number."""


def keyed_rng(seed: int, number: int, stream: int) -> np.random.Generator:
    """Generator that depends on its arguments only: the same in any process, in any order."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]))


@lru_cache(maxsize=4)  # a batch may reach into the next epoch, and a validation set has its own
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Permutation of `range(length)` that an epoch walks through, read-only."""
    order = keyed_rng(seed, epoch, ORDER).permutation(length)
    order.flags.writeable = False
    return order


@dataclass(frozen=True, slots=True)
class BoxItem:
    """One line of a box index.

    Attributes:
        image: Path of the photo.
        box: The object in pixels of the photo.
        id: Name of what the box shows, by default the line number.
        group: Name shared by near-duplicates, by default the id.
    """

    image: Path
    box: Box
    id: str
    group: str


def load_index(
    root: Path, index: str, *, min_area: float = 0.02, max_area: float = 0.8
) -> list[BoxItem]:
    """Read a box index and drop boxes that are too small or too large.

    Each line is a JSON object: `{"image": "train/images/00001.jpg", "box": [x0, y0, x1, y1]}`, the
    path relative to `root`, the box in pixels with right and bottom exclusive; optional are `id`,
    `group` and `size` (`[width, height]`; without it the photo's header is read).

    Args:
        root: Folder that the paths in the index start from.
        index: The index file, relative to `root`.
        min_area: Smallest share of the photo's area that a box may cover.
        max_area: Largest share.

    Returns:
        The items in the order of the file. Items whose photo has no readable header are kept: it
        is reading them that skips and reports them.

    Raises:
        ValueError: No such file, a malformed line, or no box left.
    """
    path = Path(root) / index
    if not path.is_file():
        raise ValueError(f"no box index at '{path}'; make one with 'pbe-train prepare'")
    items = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                photo = Path(root) / entry["image"]
                x0, y0, x1, y1 = (int(value) for value in entry["box"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of '{path}' is no box entry ({line.strip()[:80]}); "
                    'each line must read {"image": "path", "box": [x0, y0, x1, y1]}'
                ) from error
            size = entry.get("size") or _header_size(photo)
            area = (x1 - x0) * (y1 - y0) / (size[0] * size[1]) if size else None
            if area is None or min_area <= area <= max_area:
                name = str(entry.get("id", number))
                items.append(BoxItem(photo, (x0, y0, x1, y1), name, str(entry.get("group", name))))
    if not items:
        raise ValueError(
            f"'{path}' has no box that covers {min_area} to {max_area} of its photo; "
            "add photos or widen the limits"
        )
    return items


def _header_size(photo: Path) -> tuple[int, int] | None:
    try:
        with Image.open(photo) as image:
            return image.size
    except OSError:
        return None


def read_photo(path: Path) -> np.ndarray:
    """Decode a photo, turned upright by its EXIF orientation.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        OSError: The file cannot be read, is no image or, for JPEG, ends before the image does.
    """
    data = path.read_bytes()
    # OpenCV fills what is missing from a JPEG with grey and says nothing. The end marker may be
    # followed by a maker's trailer, and an embedded thumbnail has one of its own near the start.
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[len(data) // 2 :]:
        raise OSError("truncated JPEG")
    photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if photo is None:
        raise OSError("not a readable image")
    return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)


class BoxDataset(Dataset[dict[str, Any]]):
    """Training samples of photos with boxes, numbered over all epochs.

    A photo that cannot be read never stops a run: the next item of the index takes its place, and a
    warning names the file, once per process.

    Args:
        root: Folder that the paths in the index start from.
        index: The index file, relative to `root`; see `load_index`.
        resolution: Side `R` of the images in pixels.
        exemplar_size: Side `S` of the exemplars in pixels.
        seed: Key of all randomness, at least 0.
        exemplar: Distortions of the exemplar.
        geometry: Shapes of holes and crops.
        geometry_variants: `None` draws a new hole and crop for every sample, as the paper does.
            `K` draws only K for each item and takes them in turn, epoch by epoch, so that their
            latents can be computed once: a bank of N * K rows, see `cache_key`. Exemplars are
            always drawn anew.
        with_image: Without it samples hold no image and mask, for training from such a bank.
        shuffle: Without it every epoch goes through the items in the order of the index.
        min_area: Smallest share of the photo's area that a box may cover.
        max_area: Largest share.

    Raises:
        ValueError: As `load_index`, or a negative seed or variant count.
    """

    def __init__(
        self,
        root: str | Path,
        index: str = "train/boxes.jsonl",
        *,
        resolution: int,
        exemplar_size: int,
        seed: int = 0,
        exemplar: ExemplarAugment | None = None,
        geometry: SampleGeometry | None = None,
        geometry_variants: int | None = None,
        with_image: bool = True,
        shuffle: bool = True,
        min_area: float = 0.02,
        max_area: float = 0.8,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if geometry_variants is not None and geometry_variants < 1:
            raise ValueError(f"geometry_variants must be at least 1, got {geometry_variants}")
        self.items = load_index(Path(root), index, min_area=min_area, max_area=max_area)
        self.resolution = resolution
        self.exemplar_size = exemplar_size
        self.seed = seed
        self.exemplar = exemplar or ExemplarAugment()
        self.geometry = geometry or SampleGeometry()
        self.geometry_variants = geometry_variants
        self.with_image = with_image
        self.shuffle = shuffle
        self.unreadable: set[Path] = set()
        """Photos skipped so far, in this process."""

    def __len__(self) -> int:
        """Number of items, that is of samples in an epoch."""
        return len(self.items)

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        """Same as `sample`; any number from 0 is valid, also beyond the first epoch."""
        return self.sample(sample_index)

    def order(self, epoch: int) -> np.ndarray:
        """Items `(N,)` in the order that an epoch shows them."""
        if not self.shuffle:
            return np.arange(len(self))
        return epoch_order(self.seed, epoch, len(self))

    def item_of(self, sample_index: int) -> int:
        """Number of the item that a sample shows."""
        epoch, position = divmod(sample_index, len(self))
        return int(self.order(epoch)[position])

    def sample(self, sample_index: int) -> dict[str, Any]:
        """Make one sample.

        Args:
            sample_index: Number of the sample, counted over all epochs.

        Returns:
            `image` (R, R, 3) uint8; `hole_mask` (R, R) uint8, 255 repaint, soft at the outline;
            `exemplar` (S, S, 3) uint8; `index`, the sample's number; and with `geometry_variants`
            `cache_key`, its row in the bank.
        """
        photo, box = self._read(self.item_of(sample_index))
        crop = exemplar_crop(photo, box, self.geometry)
        rng = keyed_rng(self.seed, sample_index, EXEMPLAR)
        sample: dict[str, Any] = {
            "exemplar": augment_exemplar(crop, self.exemplar_size, rng, self.exemplar),
            "index": sample_index,
        }
        key = sample_index
        if self.geometry_variants is not None:
            sample["cache_key"] = key = self.cache_key(sample_index)
        if self.with_image:
            sample["image"], sample["hole_mask"] = self._cut(photo, box, key)
        return sample

    @property
    def cache_rows(self) -> int:
        """Rows N * K of the bank of images and masks.

        Raises:
            ValueError: `geometry_variants` is not set, so that there are endlessly many.
        """
        if self.geometry_variants is None:
            raise ValueError("images can only be cached with geometry_variants set, got None")
        return len(self) * self.geometry_variants

    def cache_key(self, sample_index: int) -> int:
        """Row of the bank with the image and mask of a sample: item * K + epoch % K."""
        assert self.geometry_variants is not None, "no bank without geometry_variants"
        epoch = sample_index // len(self)
        return self.item_of(sample_index) * self.geometry_variants + epoch % self.geometry_variants

    def geometry_sample(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `(R, R, 3)` and hole mask `(R, R)` of a row of the bank; uint8 as in `sample`."""
        assert 0 <= row < self.cache_rows, row
        assert self.geometry_variants is not None
        photo, box = self._read(row // self.geometry_variants)
        return self._cut(photo, box, row)

    def _cut(self, photo: np.ndarray, box: Box, key: int) -> tuple[np.ndarray, np.ndarray]:
        rng = keyed_rng(self.seed, key, GEOMETRY)
        return training_geometry(photo, box, self.resolution, rng, self.geometry)

    def _read(self, number: int) -> tuple[np.ndarray, Box]:
        """Photo and box of an item, or of the next one that can be read."""
        for offset in range(len(self)):
            item = self.items[(number + offset) % len(self)]
            try:
                photo = read_photo(item.image)
                return photo, _clip(item.box, photo)
            except OSError as error:
                if item.image not in self.unreadable:
                    self.unreadable.add(item.image)
                    log.warning("skipping %s: %s; the next item takes its place", item.image, error)
        raise ValueError(f"none of the {len(self)} photos can be read, not even '{item.image}'")


def _clip(box: Box, photo: np.ndarray) -> Box:
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if x0 >= x1 or y0 >= y1:
        raise OSError(f"its box {box} is outside the {width} x {height} photo")
    return x0, y0, x1, y1


class StatelessBatchSampler(Sampler[list[int]]):
    """Endless batches of consecutive sample numbers; only the start has to be remembered.

    A batch is the same for any number of ranks: each rank takes its contiguous share of it.

    Args:
        batch_size: Samples in a batch, all ranks together.
        start_sample: Samples consumed before, all ranks together.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: The batch cannot be shared equally.
    """

    def __init__(
        self, batch_size: int, *, start_sample: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch size {batch_size} cannot be shared equally by {world_size} processes; "
                "choose a multiple"
            )
        assert 0 <= rank < world_size and start_sample >= 0, (rank, world_size, start_sample)
        self.batch_size = batch_size
        self.start_sample = start_sample
        self.share = batch_size // world_size
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's share of one batch after the other, forever."""
        first = self.start_sample + self.rank * self.share
        while True:
            yield list(range(first, first + self.share))
            first += self.batch_size


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples into tensors for the model.

    Returns:
        Those there are of `image` (B, 3, R, R) in [-1, 1], `hole_mask` (B, 1, R, R) in [0, 1] with
        1 = repaint, `exemplar` (B, 3, S, S) in [0, 1], all float32; `index` and `cache_key` (B,)
        int64.
    """
    batch = {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }
    if "image" in batch:
        batch["image"] = _channels_first(batch["image"]).div_(127.5).sub_(1)
        batch["hole_mask"] = batch["hole_mask"][:, None].float().div_(255)
    batch["exemplar"] = _channels_first(batch["exemplar"]).div_(255)
    return batch


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def data_loader(
    dataset: Dataset[dict[str, Any]],
    batch_sampler: StatelessBatchSampler,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[dict[str, torch.Tensor]]:
    """Endless loader of collated batches; the number of workers does not change what it yields."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=_one_thread,
        pin_memory=pin_memory,
    )


def _one_thread(worker: int) -> None:
    """Let workers share the cores instead of each starting a thread on every core."""
    cv2.setNumThreads(0)
