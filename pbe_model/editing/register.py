"""How far a painted crop has drifted from the photo, measured on what it keeps, and its undoing.

Models that edit a whole picture give back what they were to keep a few pixels to the side, or a few
percent larger. Pasted as it is, such a crop breaks every line that crosses the rim of the hole.

Shift and zoom are first searched for, by the normalised cross-correlation of the kept pixels alone
(Padfield, "Masked object registration in the Fourier domain", 2012), then refined by Gauss-Newton
steps from coarse to fine (Lucas and Kanade 1981), with Tukey's weights, as a model also changes
pixels that it was to keep. Both see a band of frequencies: its lower end takes away changes of
light, its upper end noise.

The kept pixels may not tell: they may be plain, show lines of one direction only, repeat
themselves, or be painted anew. Then there is no estimate, rather than a wrong one.

Images are (h, w, 3) in [0, 1], masks (h, w), 1 = repaint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import Tensor

from .region import resize

_SIDES = (128, 256, 512)
"""Longer side of the pictures that are compared, coarse to fine."""
_MOST_SHIFT = 1 / 32
"""Largest shift that is looked for, over the longer side."""
_ZOOMS = tuple(1 + percent / 100 for percent in range(-5, 6))
_FINE, _COARSE = 1.0, 4.0
"""Standard deviations in pixels of the two blurs between which the band lies."""
_ITERATIONS = 12
_CONVERGED = 1e-3  # pixels
_LEAST_KEPT = 0.01
"""Least share of the crop that has to be kept on all sides."""
_LEAST_CORRELATION = 0.3
_LEAST_LEAD = 1.25
"""How much worse than the best the second best place has to fit: the ratio of residuals."""
_LEAST_GAP = 0.02
"""The same as a difference, for pictures that fit perfectly."""
_PROMISED = (0.0005, 0.1, 0.1)
"""Largest errors of zoom and shift, in pixels of the finest level."""
_SURE = 0.99865
"""Probability with which neither end of an estimate's interval is passed: three standard errors."""
_BLOCK = 16
"""Side in pixels of the squares whose errors count as independent of each other."""
_OFF, _PLACE = 0.02, 64
"""Each place of the picture, a square of so many pixels, may be shown so many pixels off, by
interpolation alone: a single shape is never placed better than that."""
_CORRELATED = 3.5
"""Standard errors of independent noise grow so much by the finer of the two blurs: 2 sqrt(pi)."""
_LEVEL = 1 / 1024
"""Least noise of a picture, a quarter of a level of 8 bits: nothing is known better."""
_NOTHING = 0.1
"""Drift in pixels of the crop that is not worth another interpolation."""


@dataclass(frozen=True)
class Drift:
    """Where a painted crop shows what the photo shows: at `centre + zoom * (p - centre) + shift`.

    Attributes:
        zoom: Above 1 things came out larger.
        shift: To the right, in shares of the crop's width, and down, in shares of its height, so
            that it holds however the crop is scaled or stretched.
    """

    zoom: float
    shift: tuple[float, float]

    def farthest(self, size: tuple[int, int]) -> float:
        """Largest displacement in a crop of (h, w), in its pixels: that of a corner."""
        height, width = size
        x, y = abs(self.shift[0]) * width, abs(self.shift[1]) * height
        return math.hypot(
            x + abs(self.zoom - 1) * width / 2,
            y + abs(self.zoom - 1) * height / 2,
        )


def find_drift(painted: Tensor, original: Tensor, hole_mask: Tensor) -> Drift | None:
    """Estimates shift and zoom of a painted crop from the pixels that it was to keep.

    Args:
        painted: (h', w', 3), at any size.
        original: (h, w, 3), the crop before.
        hole_mask: (h, w), 1 = repaint; the hole is what lies above 0.5.

    Returns:
        The drift; None where the kept pixels do not tell. Found are shifts of up to 1/32 of the
        longer side and zooms of 0.95 to 1.05.
    """
    levels = [_Level.of(painted, original, hole_mask, side) for side in _SIDES]
    if any(level.kept.mean() < _LEAST_KEPT for level in levels):
        return None
    motion = _search(levels[0])
    errors = None
    for level, finer in pairwise([*levels, None]):
        assert level is not None
        motion, errors = _refine(level, motion)
        if finer is not None:
            motion = motion * motion.new_tensor([1, *[finer.side / level.side] * 2])
    finest = levels[-1]
    zoom, shift_x, shift_y = motion.tolist()
    inside = abs(zoom) < 0.06 and max(abs(shift_x), abs(shift_y)) < 1.25 * _reach(finest.side)
    if errors is None or not inside:
        return None
    certain = all(error <= most for error, most in zip(errors.tolist(), _PROMISED, strict=True))
    if not (certain and _is_unique(finest, motion)):
        return None
    height, width = finest.original.shape
    return Drift(1 + zoom, (shift_x / width, shift_y / height))


def describe(drift: Drift | None, size: tuple[int, int]) -> str:
    """A drift in words, in the pixels of a crop of (h, w)."""
    if drift is None:
        return "what is kept around the hole does not tell, so the crop is left as it is"
    if drift.farthest(size) < _NOTHING:
        return "in its place"
    right, down = drift.shift[0] * size[1], drift.shift[1] * size[0]
    return (
        f"was {right:+.1f} pixels to the right, {down:+.1f} down and {drift.zoom - 1:+.2%} larger; "
        "undone"
    )


def undo_drift(painted: Tensor, drift: Drift) -> Tensor:
    """Moves what a crop shows back to where the photo shows it.

    Args:
        painted: (h, w, C), of the size it came in.
        drift: From `find_drift`.

    Returns:
        (h, w, C); the crop itself where it drifted by less than a tenth of its pixels. What the
        crop does not show repeats its edge.
    """
    height, width = painted.shape[:2]
    if drift.farthest((height, width)) < _NOTHING:
        return painted
    right, down = drift.shift
    motion = torch.tensor([drift.zoom - 1, right * width, down * height])
    moved = _warp(painted.movedim(-1, 0), motion.to(painted), "border")
    return moved.movedim(0, -1).clamp(painted.min(), painted.max())


def register(
    painted: Tensor, original: Tensor, hole_mask: Tensor
) -> tuple[Tensor, list[Drift | None]]:
    """Measures and undoes the drift of each of several crops.

    Args:
        painted: (N, h', w', 3), at any size.
        original: (N, h, w, 3).
        hole_mask: (N, h, w).

    Returns:
        The crops, those without an estimate as they came, and the estimates.
    """
    drifts = [find_drift(*rows) for rows in zip(painted, original, hole_mask, strict=True)]
    return undo_drifts(painted, drifts), drifts


def undo_drifts(painted: Tensor, drifts: Sequence[Drift | None]) -> Tensor:
    """`undo_drift` for each of several crops, (N, h, w, C); None leaves a crop as it is."""
    moved = [
        one if drift is None else undo_drift(one, drift)
        for one, drift in zip(painted, drifts, strict=True)
    ]
    return torch.stack(moved)


@dataclass(frozen=True)
class _Level:
    """Both pictures at one size, in one band of frequencies.

    Attributes:
        original: (h, w), 0 where it is not kept.
        painted: (h, w), 0 where the hole may have drifted to.
        kept: (h, w), 1 where the original is kept.
        surely_kept: (h, w), 1 where the painted picture is, however it drifted.
    """

    original: Tensor
    painted: Tensor
    kept: Tensor
    surely_kept: Tensor

    @property
    def side(self) -> int:
        return max(self.original.shape)

    @classmethod
    def of(cls, painted: Tensor, original: Tensor, hole_mask: Tensor, side: int) -> _Level:
        longer = max(original.shape[:2])
        height, width = (max(1, round(length * side / longer)) for length in original.shape[:2])
        size = (height, width)
        grey = (picture.float().mean(-1)[None, None] for picture in (painted, original))
        painted, original = (resize(picture, size)[0, 0] for picture in grey)
        hole = (hole_mask.to(original) > 0.5).to(original)[None, None]
        hole = F.adaptive_max_pool2d(hole, size)
        reach = math.ceil(_reach(side))
        grown = F.max_pool2d(hole, 2 * reach + 1, stride=1, padding=reach)
        kept, surely_kept = 1 - hole[0, 0], 1 - grown[0, 0]
        return cls(_band(original, kept), _band(painted, surely_kept), kept, surely_kept)


def _reach(side: int) -> float:
    return _MOST_SHIFT * side


def _band(picture: Tensor, kept: Tensor) -> Tensor:
    """The picture between two blurs over its kept pixels alone; 0 elsewhere."""
    fine, coarse = (
        _blur(picture * kept, deviation) / _blur(kept, deviation).clamp_min(1e-6)
        for deviation in (_FINE, _COARSE)
    )
    return (fine - coarse) * kept


def _blur(picture: Tensor, deviation: float) -> Tensor:
    reach = math.ceil(3 * deviation)
    x = torch.arange(-reach, reach + 1, dtype=picture.dtype, device=picture.device)
    kernel = torch.exp(-((x / deviation) ** 2) / 2)
    kernel = kernel / kernel.sum()
    picture = F.conv2d(picture[None, None], kernel[None, None, None], padding=(0, reach))
    return F.conv2d(picture, kernel[None, None, :, None], padding=(reach, 0))[0, 0]


def _warp(pictures: Tensor, motion: Tensor, padding: str = "zeros") -> Tensor:
    """`(C, h, w)` sampled where a motion (zoom - 1, right, down, in pixels) leads each pixel."""
    height, width = pictures.shape[-2:]
    zoom, right, down = motion.tolist()
    # grid_sample counts from -1 to 1 from edge to edge, so the centre is 0.
    theta = motion.new_tensor([[1 + zoom, 0, 2 * right / width], [0, 1 + zoom, 2 * down / height]])
    grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
    return F.grid_sample(
        pictures[None], grid, mode="bicubic", padding_mode=padding, align_corners=False
    )[0]


def _both(level: _Level, motion: Tensor) -> tuple[Tensor, Tensor]:
    """The painted picture moved back, and where both it and the original are kept."""
    moved, weight = _warp(torch.stack([level.painted, level.surely_kept]), motion)
    return moved, level.kept * (weight > 0.99)


def _search(level: _Level) -> Tensor:
    """The motion with the highest correlation, to whole pixels and percents."""
    best, found = -math.inf, (1.0, 0, 0)
    for zoom in _ZOOMS:
        motion = level.painted.new_tensor([zoom - 1, 0, 0])
        surface = _correlations(level, motion, math.ceil(_reach(level.side)))
        if (highest := float(surface.max())) > best:
            best = highest
            row, column = divmod(int(surface.argmax()), surface.shape[1])
            middle = surface.shape[0] // 2
            found = zoom, column - middle, row - middle
    zoom, right, down = found
    # The surface moves the zoomed picture, the motion the one before.
    return level.painted.new_tensor([zoom - 1, zoom * right, zoom * down])


def _correlations(level: _Level, motion: Tensor, reach: int) -> Tensor:
    """Correlation coefficient of the kept pixels for all whole shifts on top of a motion.

    Returns:
        (2 reach + 1, 2 reach + 1), the unmoved one in the middle; 0 where too little overlaps.
    """
    moved, weight = _warp(torch.stack([level.painted, level.surely_kept]), motion)
    weight = (weight > 0.99).to(moved)
    moved = moved * weight
    height, width = moved.shape
    size = (height + 2 * reach, width + 2 * reach)

    def spectrum(picture: Tensor) -> Tensor:
        return torch.fft.rfft2(picture, s=size)

    f, w = spectrum(level.original), spectrum(level.kept)
    ff = spectrum(level.original**2)
    g, v, gg = spectrum(moved), spectrum(weight), spectrum(moved**2)

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        surface = torch.fft.irfft2(a.conj() * b, s=size)
        surface = surface.roll((reach, reach), (0, 1))
        return surface[: 2 * reach + 1, : 2 * reach + 1]

    count = correlate(w, v)
    enough = count > 0.25 * count.max()
    count = count.clamp_min(1)
    sum_f, sum_g = correlate(f, v), correlate(w, g)
    cross = correlate(f, g) - sum_f * sum_g / count
    of_f = correlate(ff, v) - sum_f**2 / count
    of_g = correlate(w, gg) - sum_g**2 / count
    scale = (of_f.clamp_min(0) * of_g.clamp_min(0)).sqrt()
    return torch.where(enough & (scale > 1e-9), cross / scale.clamp_min(1e-9), 0)


def _refine(level: _Level, motion: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gauss-Newton steps, and how far off zoom and shift may be; None where all is plain."""
    height, width = level.original.shape
    y = torch.arange(height).to(level.original)[:, None] + 0.5 - height / 2
    x = torch.arange(width).to(level.original)[None] + 0.5 - width / 2
    slopes_of_original = _slopes(level.original)

    def jacobian(slopes: tuple[Tensor, Tensor], use: Tensor) -> Tensor:
        along = (slopes[0] * x + slopes[1] * y, *slopes)  # zoom, right, down
        return torch.stack([slope[use] for slope in along], 1).double()

    iteration = 0
    while True:
        moved, both = _both(level, motion)
        use = both > 0
        f, g = level.original[use], moved[use]
        if len(f) < 64 or not (energy := float((g * g).sum())):
            return motion, None
        gain = float((f * g).sum()) / energy
        of_original = jacobian(slopes_of_original, use)
        of_painted = gain * jacobian(_slopes(moved), use)
        steepest = (of_original + of_painted) / 2
        residual = (f - gain * g).double()
        steepness = steepest[:, 1:].square().sum(1)
        scale = 1.4826 * _weighted_median(residual.abs(), steepness) + _LEVEL
        place = (residual / (4.685 * scale)).square()
        weight = (1 - place).clamp_min(0) ** 2  # Tukey's biweight
        normal = steepest.T @ (weight[:, None] * steepest)
        step = torch.linalg.lstsq(normal, steepest.T @ (weight * residual)).solution
        motion = motion + step.to(motion)
        iteration += 1
        if _displacement(step, width, height) < _CONVERGED or iteration == _ITERATIONS:
            break
    # Noise has slopes too, but other ones in each picture: what the slopes of both tell is in
    # their products alone. Without it, plain pictures would seem to tell everything.
    sensitivity = (1 - place).clamp_min(0) * (1 - 5 * place)  # of weight * residual
    common = of_original.T @ (sensitivity[:, None] * of_painted)
    common = (common + common.T) / 2
    if int(torch.linalg.cholesky_ex(common).info):
        return motion, None
    pulls = steepest * (weight * residual)[:, None]
    spread, freedom = _spread(pulls, steepness, _squares(use, _BLOCK))
    if freedom < 1:
        return motion, None
    # What a pixel to the right or down in one place would pull.
    moves = (weight[:, None, None] * steepest[:, :, None] * steepest[:, None, 1:]).flatten(1)
    moves = _OFF * _sums(moves, _squares(use, _PLACE)).view(-1, 3, 2).movedim(1, 0).flatten(1)
    floor = (_CORRELATED * _LEVEL) ** 2 * (steepest.T @ (weight[:, None] ** 2 * steepest))
    inverse = torch.linalg.inv(common)
    covariance = inverse @ (spread + floor + moves @ moves.T) @ inverse
    return motion, float(stdtrit(freedom, _SURE)) * covariance.diagonal().sqrt()


def _squares(use: Tensor, side: int) -> Tensor:
    """Numbers, from 0, of the squares in which the pixels that are used lie, (N,)."""
    height, width = use.shape
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    squares = (rows[:, None] * width + columns).to(use.device)[use]
    return squares.unique(return_inverse=True)[1]


def _sums(values: Tensor, squares: Tensor) -> Tensor:
    """Sums of values, (N, C), over the pixels of each square."""
    sums = values.new_zeros(int(squares.max()) + 1, values.shape[1])
    return sums.index_add_(0, squares, values)


def _weighted_median(values: Tensor, weights: Tensor) -> float:
    """Most of a plain picture fits at any place, so pixels count by how steep they are."""
    values, order = values.sort()
    share = weights[order].cumsum(0)
    return float(values[int((share < share[-1] / 2).sum())])


def _spread(pulls: Tensor, steepness: Tensor, squares: Tensor) -> tuple[Tensor, float]:
    """Covariance (3, 3) of the sum of all pulls at the estimate, and its degrees of freedom.

    Errors of neighbours are alike, whatever they come from (noise that was blurred, interpolation,
    repainted texture), so they are added up in squares, and the sums count as independent. The
    degrees of freedom are how many squares tell something, less the three that were estimated.
    """
    sums, shares = _sums(pulls, squares), _sums(steepness[:, None], squares)
    telling = float(shares.sum() ** 2 / shares.square().sum().clamp_min(1e-30))
    freedom = telling - 3
    return sums.T @ sums * (telling / max(freedom, 1.0)), freedom


def _slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences to the right and down."""
    padded = F.pad(picture[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    return (
        (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2,
        (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2,
    )


def _displacement(motion: Tensor, width: int, height: int) -> float:
    """Largest displacement of a corner."""
    zoom, right, down = motion.abs().tolist()
    return math.hypot(zoom * width / 2 + right, zoom * height / 2 + down)


def _is_unique(level: _Level, motion: Tensor) -> bool:
    """Whether the kept pixels fit here and clearly worse at any other place within reach."""
    reach = math.ceil(2 * _reach(level.side))
    surface = _correlations(level, motion, reach)
    best = float(surface[reach, reach])
    if best < _LEAST_CORRELATION:
        return False
    peaks = surface == F.max_pool2d(surface[None, None], 3, stride=1, padding=1)[0, 0]
    peaks[reach - 1 : reach + 2, reach - 1 : reach + 2] = False
    others = surface[peaks]
    second = float(others.max()) if len(others) else 0.0
    return 1 - second > _LEAST_LEAD * (1 - best) + _LEAST_GAP
