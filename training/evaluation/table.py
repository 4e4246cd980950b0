"""The table of an evaluation: how a row is scored, what it says, how it is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from torch import Tensor

from pbe_model.editing.mask_shapes import Box
from training.demo.composite import MARGIN
from training.evaluation.measures import (
    cosine,
    descriptor,
    mean_laplacian,
    outline_step,
    psnr,
    wilson,
)
from training.evaluation.pairs import Pair

TRUTH = "the photo itself"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is in the boxes.
        hits: Pairs whose own exemplar was nearest of all candidates.
        hits_grey: The same with boxes and exemplars turned to grey.
        pairs: Pairs scored.
        likeness: Mean cosine between the descriptors of what is in the box and of the exemplar.
        psnr: Mean of the boxes' peak signal-to-noise ratios in dB against the photo as it is, which
            shows the exemplar's object in almost the same pose; `None` for that photo itself.
        seam: Mean step across the box's outline, over that of the photo as it is: 1 is as good as
            nature, more can be seen.
        sharpness: Mean absolute Laplacian of the boxes' lightness, over that of the photo as it is:
            less than 1 is blurred, more is noise or made-up detail.
        outside: Largest difference from the photo outside the blend zones; any but 0 is a defect.
    """

    name: str
    hits: int
    hits_grey: int
    pairs: int
    likeness: float
    psnr: float | None
    seam: float
    sharpness: float
    outside: float

    @property
    def retrieval(self) -> float:
        """Share of hits."""
        return self.hits / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence."""
        return wilson(self.hits, self.pairs)

    @property
    def retrieval_grey(self) -> float:
        """Share of hits in grey."""
        return self.hits_grey / self.pairs

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by name."""
        return {
            "retrieval": self.retrieval,
            "retrieval_grey": self.retrieval_grey,
            "likeness": self.likeness,
            **({} if self.psnr is None else {"psnr": self.psnr}),
            "seam": self.seam,
            "sharpness": self.sharpness,
            "outside": self.outside,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate_demo` measured.

    Attributes:
        rows: Similarities 0, 1, 3 and 5, shuffled exemplars, and the true photo.
        split: Folder of the set that the pairs are of.
        steps: Sampling steps.
        sampler: Name of the sampler.
        seed: Decided candidates and noise.
        candidates: Among how many exemplars each box was to be told.
        grid: Photo, hole, exemplar and results of the first pairs, `(H, W, 3)` in [0, 1].
    """

    rows: list[Row]
    split: str
    steps: int
    sampler: str
    seed: int
    candidates: int
    grid: Tensor

    def to_json(self) -> str:
        """The figures, without the pictures."""
        rows = [
            {"name": row.name, "pairs": row.pairs, "hits": row.hits, "interval_95": row.interval,
             "psnr": row.psnr, **row.figures}
            for row in self.rows
        ]  # fmt: skip
        settings = {"split": self.split, "steps": self.steps, "sampler": self.sampler,
                    "seed": self.seed, "chance": 1 / self.candidates}  # fmt: skip
        return json.dumps({**settings, "rows": rows}, indent=2)


class Scores:
    """Compares boxes with the exemplars, and adds up what a row is made of."""

    def __init__(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[int]]) -> None:
        margin = MARGIN / (1 + 2 * MARGIN)
        self.pairs, self.candidates = pairs, candidates
        self.exemplars = [descriptor(pair.exemplar, margin) for pair in pairs]
        self.grey_exemplars = [descriptor(pair.exemplar, margin, grey=True) for pair in pairs]
        self.sums: dict[str, _Sums] = {}

    def add(
        self, name: str, number: int, picture: Tensor, painted: int, outside: float = 0.0
    ) -> None:
        """Score one picture.

        Args:
            name: The row's name.
            number: The pair's number.
            picture: Like the pair's photo.
            painted: Number of the pair whose exemplar is in the box.
            outside: Largest difference from the photo outside the blend zone.
        """
        pair, sums = self.pairs[number], self.sums.setdefault(name, _Sums())
        box, truth = _boxed(picture, pair.box), _boxed(pair.photo, pair.box)
        described = descriptor(box)
        sums.hits += self._is_hit(number, described, self.exemplars)
        sums.hits_grey += self._is_hit(number, descriptor(box, grey=True), self.grey_exemplars)
        sums.likeness += cosine(described, self.exemplars[painted])
        sums.psnr += psnr(box, truth)
        sums.step += outline_step(picture, pair.box)
        sums.laplacian += mean_laplacian(picture, pair.box)
        sums.outside = max(sums.outside, outside)

    def _is_hit(self, number: int, described: np.ndarray, exemplars: list[np.ndarray]) -> bool:
        candidates = np.stack([exemplars[i] for i in self.candidates[number]])  # its own is first
        return int(np.square(candidates - described).sum(1).argmin()) == 0

    def row(self, name: str) -> Row:
        """What is known of a row, once every pair and the true photos are scored."""
        sums, truth, count = self.sums[name], self.sums[TRUTH], len(self.pairs)
        return Row(
            name=name,
            hits=sums.hits,
            hits_grey=sums.hits_grey,
            pairs=count,
            likeness=sums.likeness / count,
            psnr=None if name == TRUTH else sums.psnr / count,
            seam=_ratio(sums.step, truth.step),
            sharpness=_ratio(sums.laplacian, truth.laplacian),
            outside=sums.outside,
        )


@dataclass
class _Sums:
    """Over the pairs of a row; `outside` is the largest."""

    hits: int = 0
    hits_grey: int = 0
    likeness: float = 0.0
    psnr: float = 0.0
    step: float = 0.0
    laplacian: float = 0.0
    outside: float = 0.0


def _ratio(value: float, truth: float) -> float:
    return value / truth if truth else nan  # of photos without any edge


def _boxed(picture: Tensor, box: Box) -> Tensor:
    x0, y0, x1, y1 = box
    return picture[max(0, y0) : y1, max(0, x0) : x1]


def format_table(evaluation: Evaluation) -> str:
    """The rows as text, in percent."""
    rows = evaluation.rows
    width = max(len(row.name) for row in rows)
    lines = [
        f"Top-1 retrieval of the exemplar among {evaluation.candidates}, {rows[0].pairs} pairs of "
        f"{evaluation.split}, {evaluation.steps} steps of {evaluation.sampler} "
        f"(chance {1 / evaluation.candidates:.1%})",
        f"{'painted':<{width}}  top-1   95 % interval    in grey  likeness   psnr  seam  sharpness"
        "  error outside",
    ]
    for row in rows:
        low, high = row.interval
        error = f"{row.psnr:5.2f}" if row.psnr is not None else "    -"
        lines.append(
            f"{row.name:<{width}}  {row.retrieval:5.1%}   {low:5.1%} to {high:5.1%}   "
            f"{row.retrieval_grey:7.1%}  {row.likeness:8.3f}  {error}  {row.seam:4.2f}  "
            f"{row.sharpness:9.2f}  {row.outside:g}"
        )
    return "\n".join(lines)
