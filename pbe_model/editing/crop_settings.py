"""What a caller may choose about a crop: how much it shows, at what size, how it is blended in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..untrusted import shown
from .checks import check_mask
from .mask import resize_mask

CONTEXT = 1.8
"""Side of the crop over the longer side of the hole: the hole takes 55 % of the crop's side,
about the middle of what training shows."""

_MOST = 10_000
"""Largest value of anything here: pixels or factors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CropSettings:
    """How `crop_plan` chooses a crop, and how `region.stitch` blends it back.

    Attributes:
        context: Side of the crop over the longer side of its hole, blend zone included; at least 1.
        blend: Pixels of the photo over which the result fades out around the hole; 0 cuts at its
            edge, `None` takes 1/64 of the crop's side, at least 2. A feathered mask widens it:
            values between 0.1 and 0.5 count as its soft edge.
        resolution: Side in pixels at which the model works, a multiple of `multiple`; `None` is
            what the model was trained at.
        height: Height in pixels of a crop that is not square, a multiple of `multiple`; `None` is
            `resolution`.
        width: Its width, likewise.
        multiple: What both sides of a crop must be multiples of; `None` is what the model needs.
        context_mask: `(H, W)`; the crop also holds what lies above 0.5 in it, which may be nothing.
        blend_mask: `(H, W)`, the share of the result in each pixel, in place of what `blend` and
            soft edges give. The crop holds all of it; what is repainted does not depend on it.

    Raises:
        ValueError: A value out of range, a resolution that is not a multiple of `multiple`, or a
            mask that is not `(H, W)`.
    """

    context: float = CONTEXT
    blend: float | None = None
    resolution: int | None = None
    height: int | None = None
    width: int | None = None
    multiple: int | None = None
    context_mask: Tensor | None = None
    blend_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.context <= _MOST:
            raise ValueError(
                f"context is {shown(self.context)}; the crop must hold the hole, so give 1 or "
                f"more, up to {_MOST}"
            )
        if self.blend is not None and not 0 <= self.blend <= _MOST:
            raise ValueError(
                f"blend is {shown(self.blend)}; give a number of pixels from 0 to {_MOST}"
            )
        if self.multiple is not None and not 1 <= self.multiple <= _MOST:
            raise ValueError(
                f"multiple is {shown(self.multiple)}; give a number of pixels from 1 to {_MOST}"
            )
        for name in ("resolution", "height", "width"):
            length = getattr(self, name)
            if length is not None and length > _MOST:
                raise ValueError(f"{name} is {shown(length)}; give at most {_MOST} pixels")
            if length is not None and self.multiple is not None:
                _check_length(name, length, self.multiple)
            elif length is not None and length < 1:  # of no model's multiple
                raise ValueError(f"{name} is {shown(length)}; give 1 or more pixels")
        for name, mask in (("context_mask", self.context_mask), ("blend_mask", self.blend_mask)):
            if mask is not None:
                check_mask(name, mask)

    @property
    def size(self) -> tuple[int, int]:
        """`(h, w)` at which the model works; `completed` settles what is left open."""
        height, width = (
            self.resolution if length is None else length for length in (self.height, self.width)
        )
        assert height is not None and width is not None
        return height, width

    def completed(self, resolution: int = 512, multiple: int = 64) -> CropSettings:
        """These settings with the sizes that are left open taken from a model.

        Args:
            resolution: Side in pixels that the model was trained at; by default that of the
                published weights.
            multiple: What its sides must be multiples of.

        Raises:
            ValueError: The resolution is not a multiple of it.
        """
        return replace(
            self,
            resolution=resolution if self.resolution is None else self.resolution,
            multiple=multiple if self.multiple is None else self.multiple,
        )

    def resized(self, size: tuple[int, int]) -> CropSettings:
        """These settings with both masks at the size `(H, W)` of the photo."""
        masks = (self.context_mask, self.blend_mask)
        context_mask, blend_mask = (m if m is None else resize_mask(m, size) for m in masks)
        return replace(self, context_mask=context_mask, blend_mask=blend_mask)

    def inside(self, area: Tensor) -> CropSettings:
        """These settings with both masks black outside an area, `(H, W)` of booleans."""
        masks = (self.context_mask, self.blend_mask)
        context_mask, blend_mask = (m if m is None else torch.where(area, m, 0) for m in masks)
        return replace(self, context_mask=context_mask, blend_mask=blend_mask)


DEFAULT_CROP = CropSettings()


def nearest_multiple(length: float, multiple: int) -> int:
    """The multiple nearest to a length in pixels, at least one of it."""
    return max(1, round(length / multiple)) * multiple


def _check_length(name: str, length: int, multiple: int) -> None:
    if length < multiple or length % multiple:
        raise ValueError(
            f"{name} {shown(length)} is not a multiple of {multiple}, as this model needs; "
            f"use {nearest_multiple(length, multiple)}"
        )
