"""Training samples of photos with boxes, as a function of seed and sample number.

Nothing here has a state to save. Samples are numbered over the whole run: number `i` is position
`i % N` of epoch `i // N`, the order of an epoch is a permutation keyed by (seed, epoch), and all
randomness in a sample is keyed by (seed, number), with a counter-based generator (Philox). A run
resumed at sample `i` sees exactly what the uninterrupted run would have seen, with any number of
worker processes and ranks. (NVlabs/edm2 does the same for its order and noise.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pbe_model.editing.checks import check_whole
from pbe_model.editing.denoise import SEEDS
from pbe_model.editing.mask_shapes import Box
from training.data.augment import (
    ExemplarAugment,
    PhotoRecolour,
    SampleGeometry,
    augment_exemplar,
    exemplar_crop,
    recolour_photo,
    training_geometry,
)
from training.data.decode import decode_photo
from training.data.index import BoxIndex
from training.data.index_format import Photo
from training.data.shards import PhotoFiles
from training.data.unreadable import UnreadableList

log = logging.getLogger(__name__)

_PATIENCE = 100
"""Photos in a row that may be unreadable: more is no damage but a missing disk or a wrong path."""
_ROUNDS = 8
_WORD = 2**64 - 1


class Stream(IntEnum):
    """Independent randomness under the same seed and number.

    The numbers are part of what a run computes: a run that is resumed, or made again, needs the
    same ones.
    """

    ORDER = 0
    """Of samples in an epoch."""
    GEOMETRY = 1
    """Crop and hole."""
    EXEMPLAR = 2
    """Its distortions."""
    NOISE = 3
    """Timestep, dropped condition and noise of a training sample."""
    VALIDATION = 4
    """Noise of the validation loss."""
    PICTURES = 5
    """Noise that the pictures in the log start from."""
    CANDIDATES = 6
    """Whom the evaluation compares an exemplar with."""
    CHOICE = 16
    """Which box of a photo."""
    COLOURS = 17
    """Recolouring."""


def keyed_rng(seed: int, number: int, stream: Stream) -> np.random.Generator:
    """Generator that depends on its arguments only: the same in any process, in any order."""
    # Of Python integers of which some have 64 bits NumPy makes floats, which tell few seeds apart.
    key = np.array([seed, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def shuffled(position: int, seed: int, epoch: int, length: int) -> int:
    """What is at `position` of the permutation of `range(length)` that an epoch walks through.

    It is computed on the spot: a table of 14 million numbers would take each worker 1.4 seconds
    and 112 MB an epoch. `position = a * right + left` goes through a Feistel network, which is
    one-to-one whatever its round function; a result beyond `length` goes through it again. (Black
    and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, methods 2 and 3.)

    Args:
        position: 0 to `length - 1`.
        seed: Key, at least 0.
        epoch: Key, at least 0.
        length: At least 1.
    """
    assert 0 <= position < length, (position, length)
    a = isqrt(length - 1) + 1
    b = -(-length // a)  # a * b is at least the length, and not as much as one `a` more
    keys = _round_keys(seed, epoch)
    while True:
        right, left = divmod(position, a)
        for one, other in zip(keys[::2], keys[1::2], strict=True):
            left = (left + _mix(right + one)) % a
            right = (right + _mix(left + other)) % b
        position = a * right + left
        if position < length:
            return position


@lru_cache(maxsize=8)  # a batch may reach into the next epoch, and a validation set has its own
def _round_keys(seed: int, epoch: int) -> list[int]:
    return (
        keyed_rng(seed, epoch, Stream.ORDER).integers(2**64, size=_ROUNDS, dtype=np.uint64).tolist()
    )


def _mix(value: int) -> int:
    """Hash of 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value &= _WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)


class BoxDataset(Dataset[dict[str, Any]]):
    """Training samples of photos with boxes, numbered over all epochs.

    A photo that cannot be read never stops a run: the next one of the index takes its place. It is
    listed, warned of once, and every sample says how many were passed over for it.

    Args:
        root: Folder of the data set.
        index: The index in it: a folder or a text file, see `BoxIndex.open`.
        resolution: Side `R` of the images in pixels.
        exemplar_size: Side `S` of the exemplars in pixels.
        seed: Key of all randomness, 0 to 2**64 - 1.
        sample: What an epoch goes through once. `"box"`: every box. `"photo"`: every photo with one
            of its boxes drawn at random, as in the paper.
        exemplar: Distortions of the exemplar.
        geometry: Shapes of holes and crops.
        recolour: Changes of a photo's colours.
        geometry_variants: `None` draws a new hole and crop for every sample, as the paper does.
            `K` draws only K for each item and takes them in turn, epoch by epoch, so that their
            latents can be computed once: a bank of N * K rows, see `cache_key`. (Of a photo, each
            may show another box; each has its colours.) Exemplars are always drawn anew.
        with_image: Without it samples hold no image and mask, for training from such a bank.
        shuffle: Without it every epoch goes through the items in the order of the index.
        report: Text file that unreadable photos are added to, by all processes of a run.
        min_area: Smallest share of the photo's area that a box may cover, for text indexes.
        max_area: Largest share.

    Raises:
        ValueError: As `BoxIndex.open` and `PhotoFiles`, or a seed or variant count out of range.
    """

    def __init__(
        self,
        root: str | Path,
        index: str = "train/boxes.jsonl",
        *,
        resolution: int,
        exemplar_size: int,
        seed: int = 0,
        sample: Literal["box", "photo"] = "box",
        exemplar: ExemplarAugment | None = None,
        geometry: SampleGeometry | None = None,
        recolour: PhotoRecolour | None = None,
        geometry_variants: int | None = None,
        with_image: bool = True,
        shuffle: bool = True,
        report: Path | None = None,
        min_area: float = 0.02,
        max_area: float = 0.8,
    ) -> None:
        check_whole("seed", seed, 0, SEEDS - 1)
        if geometry_variants is not None and geometry_variants < 1:
            raise ValueError(f"geometry_variants must be at least 1, got {geometry_variants}")
        self.index = BoxIndex.open(Path(root) / index, root, min_area=min_area, max_area=max_area)
        self.files = PhotoFiles(self.index, root)
        self.resolution = resolution
        self.exemplar_size = exemplar_size
        self.seed = seed
        self.by_photo = sample == "photo"
        self.exemplar = exemplar or ExemplarAugment()
        self.geometry = geometry or SampleGeometry()
        self.recolour = recolour or PhotoRecolour()
        self.geometry_variants = geometry_variants
        self.with_image = with_image
        self.shuffle = shuffle
        self.unreadable = UnreadableList(report)

    def __len__(self) -> int:
        """Number of items (boxes or photos), that is of samples in an epoch."""
        return self.index.num_photos if self.by_photo else self.index.num_boxes

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        """Same as `sample`; any number from 0 is valid, also beyond the first epoch."""
        return self.sample(sample_index)

    def item_of(self, sample_index: int) -> int:
        """Number of the item that a sample shows."""
        epoch, position = divmod(sample_index, len(self))
        return shuffled(position, self.seed, epoch, len(self)) if self.shuffle else position

    def sample(self, sample_index: int) -> dict[str, Any]:
        """Make one sample.

        Args:
            sample_index: Number of the sample, counted over all epochs.

        Returns:
            `image` (R, R, 3) uint8; `hole_mask` (R, R) uint8, 255 repaint, soft at the outline;
            `exemplar` (S, S, 3) uint8; `index`, the sample's number; `skipped`, the number of
            unreadable photos passed over; and with `geometry_variants` `cache_key`, its row in the
            bank.

        Raises:
            ValueError: No photo can be read, or a remote shard not be reached.
        """
        item = self.item_of(sample_index)
        key = sample_index if self.geometry_variants is None else self._row(item, sample_index)
        photo, box, skipped = self._read(item, key)
        crop = exemplar_crop(photo, box, self.geometry)
        rng = keyed_rng(self.seed, sample_index, Stream.EXEMPLAR)
        sample: dict[str, Any] = {
            "exemplar": augment_exemplar(crop, self.exemplar_size, rng, self.exemplar),
            "index": sample_index,
            "skipped": skipped,
        }
        if self.geometry_variants is not None:
            sample["cache_key"] = key
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
        return self._row(self.item_of(sample_index), sample_index)

    def _row(self, item: int, sample_index: int) -> int:
        assert self.geometry_variants is not None, "no bank without geometry_variants"
        epoch = sample_index // len(self)
        return item * self.geometry_variants + epoch % self.geometry_variants

    def geometry_sample(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `(R, R, 3)` and hole mask `(R, R)` of a row of the bank; uint8 as in `sample`."""
        assert 0 <= row < self.cache_rows, row
        assert self.geometry_variants is not None
        photo, box, _ = self._read(row // self.geometry_variants, row)
        return self._cut(photo, box, row)

    def _cut(self, photo: np.ndarray, box: Box, key: int) -> tuple[np.ndarray, np.ndarray]:
        rng = keyed_rng(self.seed, key, Stream.GEOMETRY)
        return training_geometry(photo, box, self.resolution, rng, self.geometry)

    def _read(self, item: int, key: int) -> tuple[np.ndarray, Box, int]:
        """Photo and box of an item, or of the next that can be read, and how many could not."""
        number = item if self.by_photo else self.index.photo_of(item)
        photo = self.index.photo(number)
        box = self._pick(photo, key) if self.by_photo else item
        patience = min(self.index.num_photos, _PATIENCE)
        for skipped in range(patience):
            try:
                pixels = self._decode(photo)
                area = _clip(self.index.box(box), pixels)
            except OSError as error:
                reason = error.strerror or str(error)
                if self.unreadable.note(photo.path, reason):
                    log.warning("skipping %s: %s; the next takes its place", photo.path, reason)
            else:
                return self._recoloured(pixels, key), area, skipped
            number = (number + 1) % self.index.num_photos
            photo = self.index.photo(number)
            box = self._pick(photo, key) if self.by_photo else photo.boxes[0]
        raise ValueError(
            f"{patience} photos in a row cannot be read, such as '{photo.path}'; check that "
            "data.root is the folder that the index was made for"
        )

    def _recoloured(self, pixels: np.ndarray, key: int) -> np.ndarray:
        if not self.recolour.probability:  # the usual case saves making a generator
            return pixels
        return recolour_photo(pixels, keyed_rng(self.seed, key, Stream.COLOURS), self.recolour)

    def _pick(self, photo: Photo, key: int) -> int:
        return photo.boxes[int(keyed_rng(self.seed, key, Stream.CHOICE).integers(len(photo.boxes)))]

    def _decode(self, photo: Photo) -> np.ndarray:
        pixels = decode_photo(self.files.read(photo))
        height, width = pixels.shape[:2]
        if photo.size not in (None, (width, height)):  # then its boxes are not where they should be
            indexed = f"{photo.size[0]} x {photo.size[1]}"
            raise OSError(f"is {width} x {height} pixels, not {indexed} as in the index")
        return pixels


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
        1 = repaint, `exemplar` (B, 3, S, S) in [0, 1], all float32; `index`, `skipped` (unreadable
        photos passed over) and `cache_key` (B,) int64; others as they are.
    """
    batch = {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }
    if "image" in batch:
        batch["image"] = _channels_first(batch["image"]).div_(127.5).sub_(1)
        batch["hole_mask"] = batch["hole_mask"][:, None].float().div_(255)
    if "exemplar" in batch:
        batch["exemplar"] = _channels_first(batch["exemplar"]).div_(255)
    return batch


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
