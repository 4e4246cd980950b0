"""What a picture says as a mask: masks mean what people see.

Programs store the same mask in many ways: black and white; strokes on a transparent layer, of any
colour and opacity, with colours that may be multiplied by the opacity; or the photo itself, erased
where the hole is (ComfyUI's mask editor). One function tells them apart, for masks of all uses.

Colours are weighed by their opacity, so what nobody sees says nothing, and all decisions are by
shares of the picture, so that stray pixels change little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_OPAQUE = 250 / 255
_MOSTLY = 0.99  # share of opaque pixels from which opacity is an accident
_UNSEEN = 2.5 / 255  # opacity up to which nothing is seen
_ROUNDING = 1.5 / 255  # of 8-bit colours that were multiplied by the opacity
_SAME = 6 / 255  # colours that are the same
_TONE = 0.12  # brightness up to which something is black, and the same below white
_ALL = 0.995  # of the pixels, but for stray ones
_FLAT = 0.98  # share of the same colour
_TWO_TONED = 0.85  # share of black and white; the rest are the greys of soft edges
_COLOURFUL = 0.05  # share of colours that are not grey, from which a picture is not drawn in greys
_MANY_COLOURS = 64  # of 4,096; drawings in colour have fewer, photos more
_SAMPLE = 2**18  # pixels that are looked at to tell what a picture is
_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's L


def picture_mask(colour: Tensor, alpha: Tensor | None = None) -> Tensor:
    """The mask that a picture shows, 1 = white, drawn or erased.

    In this order:

    1. No transparency, or opacity of at least 250 of 255 in 99 % of the pixels: the brightness.
       Only a photo of many colours with a hole of less than 1 % is still a photo with a hole.
    2. What is drawn has one colour: the opacity over its largest value.
    3. What is drawn is black and white: the brightness, 0 where transparent.
    4. Else it is a photo with a hole: one minus the opacity.

    Colours count as they are stored or, where they may have been multiplied by the opacity, divided
    by it.

    Args:
        colour: (H, W, 3) in [0, 1].
        alpha: (H, W) in [0, 1], 1 = opaque; None where there is no transparency.

    Returns:
        (H, W) in [0, 1]; all 0 where the picture is transparent everywhere.
    """
    if alpha is None:
        return _brightness(colour)
    if (alpha >= _OPAQUE).float().mean() >= _MOSTLY:
        if _is_solid(alpha < 0.5) and _has_many_colours(colour):
            return 1 - alpha
        return _brightness(colour) * torch.where(alpha >= _OPAQUE, 1, alpha)
    largest = _largest(alpha)
    if largest < _UNSEEN:
        return torch.zeros_like(alpha)
    stored, opacity = _sample(colour, alpha)
    opacity = opacity.clamp(max=largest)
    if (stored.amax(-1) <= opacity + _ROUNDING).float().mean() >= _ALL:
        colour = (colour / alpha[..., None].clamp_min(1e-6)).clamp_(max=1)
    drawn, _ = _sample(colour, alpha)
    two_toned = _has_two_tones(drawn, opacity)
    flat = _is_flat(drawn, opacity) or _is_flat(stored, opacity)
    # A small white hole in black is more than stray pixels in one colour.
    if flat and not (two_toned and _has_solid_tones(colour, alpha)):
        return (alpha / largest).clamp(max=1)
    return _brightness(colour) * (alpha > _UNSEEN) if two_toned else 1 - alpha


def is_mostly_hole(hole_mask: Tensor) -> bool:
    """Whether more than nine tenths of a photo are hole: often a mask that means the opposite."""
    return bool((hole_mask > 0.5).float().mean() > 0.9)


def _brightness(colour: Tensor) -> Tensor:
    return colour @ colour.new_tensor(_WEIGHTS)


def _largest(alpha: Tensor) -> float:
    """The largest opacity that is not that of a few stray pixels: some others come near it."""
    opacities = alpha[alpha > 0]
    levels = (opacities * 255).round().clamp(0, 255).to(torch.int64)
    counts = torch.bincount(levels, minlength=256).cpu()
    enough = min(len(levels), 1 + len(levels) // 200)
    at_least = counts.flip(0).cumsum(0).flip(0).tolist()  # as opaque as each level, or more
    for level in range(255, 0, -1):
        if counts[level] and at_least[int(0.9 * level)] >= enough:
            return float(opacities[levels <= level].max())
    return 0.0


def _sample(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (N, 3) and opacities (N) of pixels that are seen, all or evenly spread."""
    places = (alpha > _UNSEEN).flatten().nonzero()[:, 0]
    if len(places) > _SAMPLE:
        places = places[torch.linspace(0, len(places) - 1, _SAMPLE, dtype=torch.float64).long()]
    return colour.reshape(-1, 3)[places], alpha.reshape(-1)[places]


def _share(these: Tensor, opacity: Tensor) -> float:
    """How much of all that is seen these pixels are."""
    return float((these * opacity).sum() / opacity.sum())


def _near(difference: Tensor, opacity: Tensor, tolerance: float) -> Tensor:
    """Where a difference of colours is small, but for the rounding of what is hardly seen."""
    return difference * opacity <= _ROUNDING + tolerance * opacity


def _is_flat(drawn: Tensor, opacity: Tensor) -> bool:
    seen_best = opacity >= opacity.median()
    typical = drawn[seen_best].median(0).values
    return _share(_near((drawn - typical).abs().amax(-1), opacity, _SAME), opacity) >= _FLAT


def _has_two_tones(drawn: Tensor, opacity: Tensor) -> bool:
    low, high = drawn.aminmax(dim=-1)
    grey = _share(_near(high - low, opacity, _TONE), opacity)
    black, white = (_share(_near(it, opacity, _TONE), opacity) for it in (high, 1 - low))
    return grey >= _FLAT and black + white >= _TWO_TONED and min(black, white) > 0


def _has_solid_tones(colour: Tensor, alpha: Tensor) -> bool:
    """Whether both black and white are there in more than stray pixels."""
    seen = alpha > 4 * _UNSEEN
    low, high = colour.aminmax(dim=-1)
    return all(_is_solid((it <= _TONE) & seen) for it in (high, 1 - low))


def _has_many_colours(colour: Tensor) -> bool:
    drawn, _ = _sample(colour, torch.ones_like(colour[..., 0]))
    low, high = drawn.aminmax(dim=-1)
    kinds = (drawn * 15).round().to(torch.int64) @ torch.tensor([256, 16, 1], device=drawn.device)
    colourful = float((high - low > _TONE).float().mean())
    return colourful >= _COLOURFUL and len(kinds.unique()) > _MANY_COLOURS


def _is_solid(these: Tensor) -> bool:
    """Whether pixels form more than specks: blocks of 3 x 3, some for each 10,000 pixels."""
    if min(these.shape) < 3:
        return bool(these.any())
    blocks = 1 - F.max_pool2d(1 - these.float()[None], 3, stride=1)
    return bool(blocks.sum() > these.numel() * 1e-5)
