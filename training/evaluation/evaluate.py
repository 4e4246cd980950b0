"""Does the model paint the exemplar it is given? Measured on held-out cut-outs.

A pair is a photo with a box, and an exemplar that shows the box's cut-out on another background, so
copying the background does not help. The exemplar is painted into the box at rising similarity.
Then a plain descriptor of the painted box, no learned network, has to tell the right exemplar from
seven of other groups: with colours, and again without them, since a patch of the right colour alone
is often enough for the first. Three rows say how to read the score: similarity 0 (the exemplar is
not seen), shuffled exemplars (another group's is painted), and the photo as it is, the most that
the descriptor can score. Beside it stand how like the exemplar the box is (in the shuffled row: the
one that is painted), how near to what the photo really shows there, how large the step across its
outline, and how sharp the box is. Likeness and nearness to the photo rise also with what is copied
of the exemplar's background, the step does not.

`evaluate_demo` makes the whole table from files, `evaluate_pairs` one row of it in memory, and
`evaluate_photos` the table of photos of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pbe_model import PaintByExample
from pbe_model.cli.demo import sheet
from pbe_model.editing.batch import BatchEditor, EditResult
from pbe_model.editing.checks import check_whole
from pbe_model.editing.crop_settings import DEFAULT_CROP
from pbe_model.editing.denoise import (
    SEEDS,
    encode_crops,
    encode_exemplar,
    initial_noise,
    paint_crops,
)
from training.evaluation.pairs import CANDIDATES, SPLIT, Pair, draw_candidates, load_pairs
from training.evaluation.photos import load_photos
from training.evaluation.table import TRUTH, Evaluation, Row, Scores

SIMILARITY = 3.0
"""Guidance scale of a single row, and of the control with shuffled exemplars."""

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Painting:
    """What is painted into every box for one row of the table.

    Attributes:
        similarity: Guidance scale.
        shuffled: Paint the exemplar of another group, as a control.
    """

    similarity: float
    shuffled: bool = False

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{'shuffled, ' if self.shuffled else ''}similarity {self.similarity:g}"


def _paintings(model: PaintByExample, *, control: bool) -> list[Painting]:
    """The rows of a table: rising similarities, the model's own among them, and the control."""
    similarities = sorted({0.0, 1.0, 3.0, 5.0, model.config.defaults.similarity})
    paintings = [Painting(similarity=similarity) for similarity in similarities]
    if control:
        paintings.append(Painting(similarity=SIMILARITY, shuffled=True))
    return paintings


def evaluate_demo(
    root: Path,
    model: PaintByExample,
    *,
    split: str = SPLIT,
    pairs: int = 256,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch: int = 16,
) -> Evaluation:
    """Paint the pairs of a demo set and count how often the exemplar is recognised.

    Args:
        root: Folder made by `pbe-train prepare demo`.
        model: What is measured.
        split: Folder in `root` with `pairs.jsonl`, the pictures that it names, and nothing that
            the model was trained on; or one of things it was trained on, to compare.
        pairs: The first so many of the set; cut-outs take turns in it.
        steps: Sampling steps; `None` takes the model's own.
        sampler: One of `pbe_model.sampling.samplers.SAMPLERS`, or `None` likewise.
        seed: Decides candidates and noise.
        batch: Pairs painted at once; does not change what is drawn.

    Raises:
        ValueError: No such set, fewer pairs or groups in it than needed, bad settings.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; give at least 1")
    settings = _settings(model, steps, sampler, seed, batch)
    return _evaluate(model, load_pairs(root, pairs, split), split, settings, CANDIDATES)


def evaluate_photos(
    root: Path,
    model: PaintByExample,
    *,
    split: str = SPLIT,
    pairs: int = 64,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch: int = 16,
) -> Evaluation:
    """Paint boxes of photos of one's own again, each with its own content as the exemplar.

    What is in the box is thus the truth, though not a hard question: the exemplar shows it in the
    same pose. Photos stand for groups of objects; with fewer than nine of them the retrieval is
    among fewer exemplars, and with one photo there is no control.

    Args:
        root: Folder that `pbe-train prepare` made.
        model: What is measured.
        split: The index in it, of photos that the model was not trained on.
        pairs: The most boxes; of every photo one, then of every photo another.
        steps: Sampling steps; `None` takes the model's own.
        sampler: One of `pbe_model.sampling.samplers.SAMPLERS`, or `None` likewise.
        seed: Decides candidates and noise.
        batch: Boxes painted at once; does not change what is drawn.

    Raises:
        ValueError: No such index, no photo that can be read, bad settings.
    """
    found = load_photos(root, split, pairs)
    others = len({pair.group for pair in found}) - 1
    settings = _settings(model, steps, sampler, seed, batch)
    return _evaluate(model, found, split, settings, min(CANDIDATES, others))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How boxes are painted and compared: see `evaluate_demo`."""

    steps: int
    sampler: str
    seed: int
    batch: int


def _settings(
    model: PaintByExample, steps: int | None, sampler: str | None, seed: int, batch: int
) -> Settings:
    own = model.config.defaults
    return Settings(
        steps=own.steps if steps is None else steps,
        sampler=own.sampler if sampler is None else sampler,
        seed=seed,
        batch=batch,
    )


def _evaluate(
    model: PaintByExample, pairs: Sequence[Pair], split: str, settings: Settings, candidates: int
) -> Evaluation:
    shown = [_given(pair) for pair in pairs[:_SHOWN]]

    def show(name: str, number: int, picture: Tensor) -> None:
        if number < len(shown):
            shown[number].append((name, picture))

    paintings = _paintings(model, control=candidates > 0)
    rows = score_pairs(model, pairs, paintings, **vars(settings), show=show, candidates=candidates)
    return Evaluation(
        rows=rows,
        split=split,
        steps=settings.steps,
        sampler=settings.sampler,
        seed=settings.seed,
        candidates=max(1, candidates),
        grid=sheet(shown),
    )


def evaluate_pairs(
    model: PaintByExample,
    pairs: Sequence[Pair],
    *,
    similarity: float = SIMILARITY,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch: int = 16,
) -> dict[str, float]:
    """One row of the table as figures by name, for a program that has model and pairs in memory.

    The model may be on any device and of any type; the pairs stay on the CPU.

    Args:
        model: What is measured.
        pairs: From `load_pairs`; they show nine groups of objects or more.
        similarity: Guidance scale.
        steps: Sampling steps; `None` takes the model's own.
        sampler: One of `pbe_model.sampling.samplers.SAMPLERS`, or `None` likewise.
        seed: Decides candidates and noise.
        batch: Pairs painted at once; does not change what is drawn.

    Returns:
        `retrieval`, `retrieval_grey`, `likeness`, `psnr`, `seam`, `sharpness` and `outside`, as
        `Row` explains them.

    Raises:
        ValueError: Too few groups, bad settings, or a result that is not finite.
    """
    painting = Painting(similarity=similarity)
    settings = _settings(model, steps, sampler, seed, batch)
    row, _ = score_pairs(model, pairs, [painting], **vars(settings))
    return row.figures


def score_pairs(
    model: PaintByExample,
    pairs: Sequence[Pair],
    paintings: Sequence[Painting],
    *,
    steps: int,
    sampler: str,
    seed: int,
    batch: int,
    show: Callable[[str, int, Tensor], None] | None = None,
    candidates: int = CANDIDATES,
) -> list[Row]:
    """Paint all pairs in several ways and measure the boxes.

    All paintings of a pair start from the same noise, so they differ in what is painted alone.

    Args:
        model: What is measured.
        pairs: They show nine groups of objects or more.
        paintings: A row each.
        steps: Sampling steps.
        sampler: One of `pbe_model.sampling.samplers.SAMPLERS`.
        seed: Decides candidates and noise.
        batch: Pairs painted at once; does not change what is drawn.
        show: Called with the row's name, the pair's number and the result, as they are painted.
        candidates: Among how many exemplars each is to be told; 0 compares it with none.

    Returns:
        A row for each painting and one for the true photos.

    Raises:
        ValueError: Too few groups, bad settings, or a result that is not finite.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; give at least 1")
    check_whole("seed", seed, 0, SEEDS - 1)
    groups = [pair.group for pair in pairs]
    draws = [([number], number) for number in range(len(pairs))]
    if candidates:
        draws = [draw_candidates(groups, n, seed, candidates) for n in range(len(pairs))]
    scores = Scores(pairs, [drawn for drawn, _ in draws])
    shuffled = [other for _, other in draws]

    total = len(pairs) * len(paintings)
    with tqdm(total=total, desc="evaluate", unit="edit", dynamic_ncols=True) as bar:
        for first in range(0, len(pairs), batch):
            numbers = range(first, min(first + batch, len(pairs)))
            results = _paint(
                model,
                [pairs[i] for i in numbers],
                [pairs[shuffled[i]].exemplar for i in numbers],
                paintings,
                steps=steps,
                sampler=sampler,
                seed=seed + first,
                progress=bar,
            )
            for i, result in zip(numbers, results, strict=True):
                kept = (result.blend_mask == 0)[..., None]
                for painting, picture in zip(paintings, result.images, strict=True):
                    difference = ((picture - pairs[i].photo) * kept).abs().max().item()
                    painted = shuffled[i] if painting.shuffled else i
                    scores.add(painting.name, i, picture, painted, difference)
                    if show is not None:
                        show(painting.name, i, picture)
    for number, pair in enumerate(pairs):
        scores.add(TRUTH, number, pair.photo, number)
    return [scores.row(name) for name in (*(painting.name for painting in paintings), TRUTH)]


def _given(pair: Pair) -> list[tuple[str, Tensor]]:
    hole = torch.where(pair.hole_mask[..., None] > 0.5, 0.5, pair.photo)
    return [("photo", pair.photo), ("hole", hole), ("exemplar", pair.exemplar)]


@torch.inference_mode()
def _paint(
    model: PaintByExample,
    pairs: Sequence[Pair],
    others: Sequence[Tensor],
    paintings: Sequence[Painting],
    *,
    steps: int,
    sampler: str,
    seed: int,
    progress: tqdm,
) -> list[EditResult]:
    """Paint several pairs at once, in several ways.

    Args:
        model: Paints.
        pairs: Photos and holes.
        others: An exemplar of another group for each pair, for what is painted shuffled.
        paintings: The ways.
        steps: Sampling steps.
        sampler: One of `pbe_model.sampling.samplers.SAMPLERS`.
        seed: Photo number i starts from the noise of `seed + i`.
        progress: Counts edits.

    Returns:
        For each pair a result with an image for each way.
    """
    crop = DEFAULT_CROP.completed(model.config.resolution, model.config.size_multiple)
    editor = BatchEditor(
        [pair.photo for pair in pairs], [pair.hole_mask for pair in pairs], [crop] * len(pairs)
    )

    def encode(exemplars: Sequence[Tensor]) -> Tensor:
        return torch.cat([encode_exemplar(model, exemplar) for exemplar in exemplars])

    own = encode([pair.exemplar for pair in pairs])
    shuffled = encode(others) if any(painting.shuffled for painting in paintings) else own

    def paint(crops: Tensor, hole_masks: Tensor) -> Tensor:
        inputs = encode_crops(model, crops, hole_masks)
        channels, height, width = inputs.latent.shape[1:]
        noise = initial_noise(seed, (channels, height, width), len(crops))
        painted = []
        for painting in paintings:
            painted.append(
                paint_crops(
                    model,
                    inputs,
                    shuffled if painting.shuffled else own,
                    noise,
                    similarity=painting.similarity,
                    steps=steps,
                    sampler=sampler,
                )
            )
            progress.update(len(crops))
        return torch.cat(painted)

    return editor.edit(paint)
