"""Does the model paint the exemplar it is given? Measured on held-out cut-outs.

A pair is a photo with a box, and an exemplar that shows the box's cut-out on another background, so
copying the background does not help. The exemplar is painted into the box at rising similarity.
Then a plain descriptor of the painted box, no learned network, has to tell the right exemplar from
seven of other groups. Three rows say how to read the score: similarity 0 (the exemplar is not
seen), shuffled exemplars (another group's is painted), and the photo as it is, the most that the
descriptor can score. Beside it stand how like the exemplar the box is (in the shuffled row: the one
that is painted), how near to what the photo really shows there, and how large the step across its
outline. The first two rise also with what is copied of the exemplar's background, the third does
not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pbe_model import PaintByExample
from pbe_model.cli.demo import sheet
from pbe_model.editing.crop_plan import plan_region
from pbe_model.editing.edit import (
    Condition,
    encode_condition,
    encode_exemplar,
    guided,
    initial_noise,
)
from pbe_model.editing.mask_shapes import Box, box_mask
from pbe_model.editing.region import Region, crop, stitch
from pbe_model.image_io import read_image
from pbe_model.sampling.samplers import sample
from pbe_model.untrusted import numbered_lines, parse_json, shown
from training.data.dataset import Stream, keyed_rng
from training.data.decode import photo_size
from training.data.index import numbers
from training.evaluation.measures import cosine, descriptor, outline_step, psnr, wilson

INDEX = "val/pairs.jsonl"
SIMILARITIES = (0.0, 1.0, 3.0, 5.0)
SHUFFLED = 3.0
"""Similarity of the control with shuffled exemplars."""
CANDIDATES = 8
MARGIN = 0.1
"""Of the object's box, that exemplars show around it (`training.demo.composite.Pair`)."""

TRUTH = "the photo itself"

_SHOWN = 12
_MAX_PIXELS = 2**27  # of all pairs together, 12 bytes each


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A held-out object twice: in a photo, and alone as the exemplar.

    Attributes:
        photo: `(H, W, 3)` in [0, 1].
        exemplar: `(h, w, 3)` in [0, 1].
        box: Of the object, in pixels of the photo.
        group: Shared by near-duplicates.
    """

    photo: Tensor
    exemplar: Tensor
    box: Box
    group: str

    @property
    def hole_mask(self) -> Tensor:
        """`(H, W)`, 1 inside the box."""
        height, width = self.photo.shape[:2]
        return torch.from_numpy(box_mask(height, width, self.box)).float()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is in the boxes.
        hits: Pairs whose own exemplar was nearest of all candidates.
        pairs: Pairs scored.
        likeness: Mean cosine between the descriptors of what is in the box and of the exemplar.
        psnr: Mean of the boxes' peak signal-to-noise ratios in dB against the photo as it is, which
            shows the exemplar's object in almost the same pose; `None` for that photo itself.
        seam: Mean step across the box's outline, over that of the photo as it is: 1 is as good as
            nature, more can be seen.
        outside: Largest difference from the photo outside the blend zones; any but 0 is a defect.
    """

    name: str
    hits: int
    pairs: int
    likeness: float
    psnr: float | None
    seam: float
    outside: float

    @property
    def top1(self) -> float:
        """Share of hits."""
        return self.hits / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence."""
        return wilson(self.hits, self.pairs)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate_demo` measured.

    Attributes:
        rows: Similarities 0, 1, 3 and 5, shuffled exemplars, and the true photo.
        steps: Sampling steps.
        sampler: Name of the sampler.
        seed: Of candidates and noise.
        grid: Photo, hole, exemplar and results of the first pairs, `(H, W, 3)` in [0, 1].
    """

    rows: list[Row]
    steps: int
    sampler: str
    seed: int
    grid: Tensor

    def to_json(self) -> str:
        """The figures, without the pictures."""
        rows = [
            {"name": r.name, "hits": r.hits, "pairs": r.pairs, "top1": r.top1,
             "interval_95": r.interval, "likeness": r.likeness, "psnr": r.psnr, "seam": r.seam,
             "outside": r.outside}
            for r in self.rows
        ]  # fmt: skip
        settings = {"steps": self.steps, "sampler": self.sampler, "seed": self.seed}
        return json.dumps({**settings, "chance": 1 / CANDIDATES, "rows": rows}, indent=2)


@dataclass
class _Score:
    """Sums and means of a row in the making."""

    hits: int = 0
    likeness: float = 0.0
    psnr: float = 0.0
    step: float = 0.0
    outside: float = 0.0


def evaluate_demo(
    root: Path,
    model: PaintByExample,
    *,
    pairs: int = 256,
    steps: int = 20,
    sampler: str = "dpmpp_2m",
    seed: int = 0,
    batch: int = 16,
) -> Evaluation:
    """Paint the held-out pairs of a demo set and count how often the exemplar is recognised.

    All rows of a pair start from the same noise, so they differ in what is painted alone.

    Args:
        root: Folder made by `pbe-train prepare demo`.
        model: To be measured.
        pairs: The first so many of the set; cut-outs take turns in it.
        steps: Sampling steps.
        sampler: One of `pbe_model.samplers.SAMPLERS`.
        seed: Of candidates and noise.
        batch: Pairs painted at once; does not change what is drawn.

    Raises:
        ValueError: No such set, fewer pairs or groups in it than needed, bad settings.
    """
    for name, value in (("pairs", pairs), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give at least 0")
    found = load_pairs(root, pairs)
    groups = [pair.group for pair in found]
    draws = [draw_candidates(groups, number, seed) for number in range(pairs)]
    descriptors = [descriptor(p.exemplar, margin=MARGIN / (1 + 2 * MARGIN)) for p in found]

    scores: dict[str, _Score] = {}

    def score(name: str, number: int, picture: Tensor, given: int, outside: float = 0.0) -> None:
        pair = found[number]
        box, truth = _boxed(picture, pair.box), _boxed(pair.photo, pair.box)
        painted = descriptor(box)
        candidates = np.stack([descriptors[i] for i in draws[number][0]])
        so_far = scores.setdefault(name, _Score())
        so_far.hits += int(np.square(candidates - painted).sum(1).argmin()) == 0
        so_far.likeness += cosine(painted, descriptors[given]) / pairs
        so_far.psnr += psnr(box, truth) / pairs
        so_far.step += outline_step(picture, pair.box) / pairs
        so_far.outside = max(so_far.outside, outside)

    own, shuffled = list(range(pairs)), [other for _, other in draws]
    plan = [(f"similarity {s:g}", s, False) for s in SIMILARITIES]
    plan.append((f"shuffled, similarity {SHUFFLED:g}", SHUFFLED, True))
    shown = [_given(pair) for pair in found[:_SHOWN]]
    with tqdm(total=pairs * len(plan), desc="evaluate", unit="edit", dynamic_ncols=True) as bar:
        for first in range(0, pairs, batch):
            numbers = range(first, min(first + batch, pairs))
            painter = Painter(model, [found[i] for i in numbers], seed + first)
            contexts = [
                painter.encode([found[given[i]].exemplar for i in numbers])
                for given in (own, shuffled)
            ]
            for name, similarity, is_shuffled in plan:
                given, context = (own, shuffled)[is_shuffled], contexts[is_shuffled]
                results = painter.paint(context, similarity, steps=steps, sampler=sampler)
                for i, result, region in zip(numbers, results, painter.regions, strict=True):
                    kept = (region.photo_blend_mask == 0)[..., None]
                    difference = ((result - found[i].photo) * kept).abs().max().item()
                    score(name, i, result, given[i], difference)
                    if i < len(shown):
                        shown[i].append((name, result))
                bar.update(len(numbers))
    for number, pair in enumerate(found):
        score(TRUTH, number, pair.photo, number)
    rows = [
        Row(
            name=name,
            hits=score.hits,
            pairs=pairs,
            likeness=score.likeness,
            psnr=None if name == TRUTH else score.psnr,
            seam=score.step / scores[TRUTH].step,
            outside=score.outside,
        )
        for name, score in scores.items()
    ]
    return Evaluation(rows=rows, steps=steps, sampler=sampler, seed=seed, grid=sheet(shown))


def _given(pair: Pair) -> list[tuple[str, Tensor]]:
    hole = torch.where(pair.hole_mask[..., None] > 0.5, 0.5, pair.photo)
    return [("photo", pair.photo), ("hole", hole), ("exemplar", pair.exemplar)]


class Painter:
    """Edits of several photos at once, as `pbe_model.edit` does them one by one.

    Args:
        model: Paints.
        pairs: Photos and holes; all crops have the model's resolution.
        seed: Of the first picture's noise; picture `i` has `seed + i`.
    """

    def __init__(self, model: PaintByExample, pairs: Sequence[Pair], seed: int) -> None:
        self.model = model
        self.photos = [pair.photo for pair in pairs]
        config = model.config
        self.regions: list[Region] = [
            plan_region(
                p.hole_mask, resolution=config.resolution, size_multiple=config.size_multiple
            )
            for p in pairs
        ]
        cropped = [
            crop(pair.photo[None], pair.hole_mask[None], region)
            for pair, region in zip(pairs, self.regions, strict=True)
        ]
        images, hole_masks = (torch.cat(parts) for parts in zip(*cropped, strict=True))
        with torch.inference_mode():
            self.condition: Condition = encode_condition(model, images, hole_masks)
        channels, height, width = self.condition.latent.shape[1:]
        self.noise = initial_noise(seed, (channels, height, width), len(pairs))

    @torch.inference_mode()
    def encode(self, exemplars: Sequence[Tensor]) -> Tensor:
        """Context of one exemplar `(h, w, 3)` in [0, 1] for each photo."""
        return torch.cat([encode_exemplar(self.model, exemplar) for exemplar in exemplars])

    @torch.inference_mode()
    def paint(
        self,
        context: Tensor,
        similarity: float,
        *,
        steps: int = 20,
        sampler: str = "dpmpp_2m",
    ) -> list[Tensor]:
        """Paint what `encode` gave into the photos; photos like them come back."""
        model = self.model
        latent = sample(
            sampler,
            guided(model, self.condition, context, similarity),
            self.noise.to(model.device),
            model.schedule,
            steps,
            init_latent=self.condition.latent.float(),
        )
        crops = (model.decode(latent.to(model.dtype)).float().cpu() + 1) / 2  # (B, 3, h, w)
        if not torch.isfinite(crops).all():
            raise ValueError(
                "the model paints values that are not finite; check its training run, or load it "
                "as float32"
            )
        return [
            stitch(photo[None], painted[None], region)[0]
            for photo, painted, region in zip(
                self.photos, crops.movedim(1, -1), self.regions, strict=True
            )
        ]


def load_pairs(root: Path, count: int) -> list[Pair]:
    """The first `count` held-out pairs of a demo set.

    Raises:
        ValueError: No index, a malformed line, too few pairs, or pictures that cannot be read or
            are too many pixels together.
    """
    path = Path(root) / INDEX
    if not path.is_file():
        raise ValueError(f"no held-out pairs at {path}; make them with `pbe-train prepare demo`")
    lines = list(islice(numbered_lines(path), count))
    if len(lines) < count:
        raise ValueError(f"{path} holds {len(lines)} pairs, not {count}; ask for fewer")
    entries: list[tuple[list[Path], Box, str]] = []
    for number, line in lines:
        try:
            names, box, group = _parse_pair(line)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is no pair ({shown(line, 80)}); make the set again"
            ) from error
        entries.append(([Path(root) / name for name in names], box, group))
    pixels = sum(_pixels(file) for files, _, _ in entries for file in files)
    if pixels > _MAX_PIXELS:  # they are all in memory at once
        raise ValueError(
            f"the {count} pairs of {path} have {pixels:,} pixels, and {_MAX_PIXELS:,} are the "
            "most; evaluate fewer"
        )
    pairs = []
    for (number, _), (files, box, group) in zip(lines, entries, strict=True):
        photo, exemplar = map(read_image, files)
        height, width = photo.shape[:2]
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"line {number} of {path} has the box {shown(box, 80)} in a photo of {width} x "
                f"{height} pixels; make the set again"
            )
        pairs.append(Pair(photo=photo, exemplar=exemplar, box=box, group=group))
    return pairs


def _parse_pair(line: str) -> tuple[list[str], Box, str]:
    """Names of photo and exemplar, the box, the group."""
    match parse_json(line):
        case {"photo": str(photo), "exemplar": str(exemplar), "group": str(group), "box": box}:
            x0, y0, x1, y1 = numbers(box, 4)
            if all(map(isfinite, (x0, y0, x1, y1))):
                return [photo, exemplar], (int(x0), int(y0), int(x1), int(y1)), group
    raise ValueError("it lacks a part")


def _pixels(file: Path) -> int:
    try:
        width, height = photo_size(file)
    except OSError:  # for which `read_image` has a sentence
        return 0
    return width * height


def draw_candidates(groups: Sequence[str], number: int, seed: int) -> tuple[list[int], int]:
    """Whom the exemplar of a pair is compared with, drawn for that pair alone.

    Args:
        groups: Of all pairs.
        number: Of the pair.
        seed: Key of the draw.

    Returns:
        The pair's own number and one each of seven other groups, then one of yet another group,
        whose exemplar the control paints.

    Raises:
        ValueError: There are not that many groups.
    """
    others = sorted(set(groups) - {groups[number]})
    if len(others) < CANDIDATES:
        raise ValueError(
            f"the pairs show {len(others) + 1} groups of objects, but the comparison needs "
            f"{CANDIDATES + 1}; evaluate more pairs"
        )
    rng = keyed_rng(seed, number, Stream.CANDIDATES)
    *drawn, shuffled = (
        int(rng.choice([i for i, group in enumerate(groups) if group == name]))
        for name in rng.choice(others, CANDIDATES, replace=False)
    )
    return [number, *drawn], shuffled


def _boxed(picture: Tensor, box: Box) -> Tensor:
    x0, y0, x1, y1 = box
    return picture[max(0, y0) : y1, max(0, x0) : x1]


def format_table(evaluation: Evaluation) -> str:
    """The rows as text, in percent."""
    rows = evaluation.rows
    width = max(len(row.name) for row in rows)
    lines = [
        f"Top-1 retrieval of the exemplar among {CANDIDATES}, {rows[0].pairs} held-out pairs, "
        f"{evaluation.steps} steps of {evaluation.sampler} (chance {1 / CANDIDATES:.1%})",
        f"{'painted':<{width}}  top-1   95 % interval    likeness   psnr  seam  error outside",
    ]
    for row in rows:
        low, high = row.interval
        error = f"{row.psnr:5.2f}" if row.psnr is not None else "    -"
        lines.append(
            f"{row.name:<{width}}  {row.top1:5.1%}   {low:5.1%} to {high:5.1%}   "
            f"{row.likeness:8.3f}  {error}  {row.seam:4.2f}  {row.outside:g}"
        )
    return "\n".join(lines)
