"""Edits of several photos at once: plan crops, cut them out, have them painted, stitch them back.

The painting itself is a function that is passed in, so `edit`, the evaluation in training and the
ComfyUI node, which has the host's samplers, share everything around it. The crops of all photos
have one size, so they are one batch, however large the photos are and however many holes each of
them has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from .checks import check_mask, check_picture
from .crop_plan import plan_numbered, plan_regions, untouched_region
from .crop_settings import CropSettings
from .hole_numbers import join_holes, number_holes
from .mask import resize_mask
from .region import Region, crop, match_colour, photo_blend_mask, stitch_all, with_share
from .register import Drift, register, undo_drifts

Paint: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`paint(crops, hole_masks)`: crops `(B, h, w, 3)` in [0, 1] and their holes `(B, h, w)`, 1 =
repaint. It returns N variations of all crops, one after another: `(N * B, h, w, 3)` in [0, 1]."""


@dataclass(frozen=True)
class EditResult:
    """The result of one photo.

    Attributes:
        images: `(N, H, W, 3)` in [0, 1]; outside the blend zone bit-identical to the photo.
            Without `paste_back`, the crops.
        crops: `(N * K, h, w, 3)` in [0, 1], what the model painted, before stitching: the K crops
            of one image side by side.
        regions: Where the K crops are and how they were blended, to stitch retouched or upscaled
            crops with `region.stitch_all`. K is 1 unless the region mode is `"each"`.
        drifts: What was found out about each crop by `paste(registered=True)`; None where nothing
            was, or it was not asked for.
    """

    images: Tensor
    crops: Tensor
    regions: list[Region]
    drifts: list[Drift | None] = field(default_factory=list)

    @property
    def region(self) -> Region:
        """The region, or the first of several."""
        return self.regions[0]

    @property
    def blend_mask(self) -> Tensor:
        """Share of what was painted in each pixel of the photo, `(H, W)`; 0 is untouched."""
        return photo_blend_mask(self.regions)


class BatchEditor:
    """Photos with their crops cut out, ready to be painted.

    Args:
        photos: `(H, W, 3)` in [0, 1] each, of any sizes.
        hole_masks: For each photo `(H, W)`, 1 = repaint, the hole is what lies above 0.5; a mask of
            another size is resized to its photo. With `numbered`, also `(K, H, W)`: a mask for each
            hole, in the order of their numbers.
        settings: One for each photo; their masks are resized likewise.
        mode: One of `crop_plan.MODES`.
        numbered: Each hole is painted by itself, for exemplars of their own: no two share a crop,
            and they come in the order of `number_holes`, or of their masks. For the mode "each".
        skip_empty: A photo with an empty mask is let through instead of refused: it has a crop, as
            the others, but nothing is painted or pasted.

    Attributes:
        photos: As given.
        regions: The regions of each photo: one, or several with the mode "each".
        crops: `(B, h, w, 3)` in [0, 1], the crops of one photo side by side.
        hole_masks: `(B, h, w)`, their holes.
        to_paint: Indices of the crops that have a hole.

    Raises:
        ValueError: Bad sizes or types, an empty mask, an unknown mode, or crops of several sizes.
    """

    def __init__(
        self,
        photos: Sequence[Tensor],
        hole_masks: Sequence[Tensor],
        settings: Sequence[CropSettings],
        *,
        mode: str = "auto",
        numbered: bool = False,
        skip_empty: bool = False,
    ) -> None:
        if numbered and mode != "each":
            raise ValueError(
                f"exemplars for single holes go with the region mode 'each', not {mode!r}; choose "
                "'each', or give one exemplar"
            )
        self.photos = list(photos)
        self.regions: list[list[Region]] = []
        self.to_paint: list[int] = []
        cut = []
        given = zip(self.photos, hole_masks, settings, strict=True)
        for number, (photo, hole_mask, chosen) in enumerate(given, start=1):
            try:
                regions, hole_mask = _planned(
                    photo, hole_mask, chosen, mode=mode, numbered=numbered, skip_empty=skip_empty
                )
            except ValueError as error:
                if len(self.photos) == 1:
                    raise
                raise ValueError(f"photo {number} of {len(self.photos)}: {error}") from error
            if hole_mask.any():
                self.to_paint += range(len(cut), len(cut) + len(regions))
            cut += [crop(photo[None], hole_mask[None], region) for region in regions]
            self.regions.append(regions)
        sizes = {region.size for regions in self.regions for region in regions}
        if len(sizes) > 1:
            raise ValueError(
                f"the photos lead to crops of {len(sizes)} sizes, which cannot be painted "
                "together; take the region mode 'auto', or edit one photo after another"
            )
        # Pairs of (1, h, w, 3) and (1, h, w) become a batch of crops and one of masks.
        self.crops, self.hole_masks = (torch.cat(parts) for parts in zip(*cut, strict=True))

    @property
    def owners(self) -> list[int]:
        """For each crop, the index of its photo."""
        return [i for i, regions in enumerate(self.regions) for _ in regions]

    @property
    def holes(self) -> list[int]:
        """For each crop, its index among those of its photo."""
        return [i for regions in self.regions for i, _ in enumerate(regions)]

    def edit(
        self,
        paint: Paint,
        *,
        colour_match: bool = False,
        truncate: bool = False,
        paste_back: bool = True,
    ) -> list[EditResult]:
        """Have the crops painted and put them back into their photos.

        Args:
            paint: Paints the crops that have a hole; it is not called if none has one.
            colour_match: Remove the colour cast that the first stage leaves on the crop's kept
                pixels; see `region.match_colour`.
            truncate: Round what is painted down to the 256 levels of 8 bits.
            paste_back: Stitch the crops into the photo; otherwise the results are the crops.

        Returns:
            A result for each photo, with its type and device.
        """
        if len(self.to_paint) == len(self.crops):
            painted = paint(self.crops, self.hole_masks)  # (N * B, h, w, 3)
        elif self.to_paint:
            some = paint(self.crops[self.to_paint], self.hole_masks[self.to_paint])
            some = some.unflatten(0, (-1, len(self.to_paint)))  # (N, of B, h, w, 3)
            every = self.crops.to(some).repeat(len(some), 1, 1, 1, 1)  # (N, B, h, w, 3)
            every[:, self.to_paint] = some
            painted = every.flatten(0, 1)
        else:
            painted = self.crops
        return self.paste(
            painted, colour_match=colour_match, truncate=truncate, paste_back=paste_back
        )

    def paste(
        self,
        painted: Tensor,
        *,
        registered: bool = False,
        colour_match: bool = False,
        truncate: bool = False,
        paste_back: bool = True,
        shares: Tensor | None = None,
    ) -> list[EditResult]:
        """Put painted crops back into their photos, whoever painted them, at any size.

        Args:
            painted: `(N * B, h', w', 3)` in [0, 1]: N variations of all crops, one after another.
            registered: Measure how far the crops have drifted, and undo it; see `register`.
            colour_match: As in `edit`.
            truncate: As in `edit`.
            paste_back: As in `edit`.
            shares: Blend masks drawn on the crops, `(N * B, h, w)` at any size or one for all, in
                place of those of the regions; they move with the crops.

        Returns:
            As `edit`.

        Raises:
            ValueError: The number of crops is no multiple of B, or there are other numbers of
                blend masks.
        """
        total = len(self.crops)
        if len(painted) % total or not len(painted):
            raise ValueError(
                f"{len(painted)} crops and {len(self.photos)} photos with {total} regions do not "
                "match; give as many crops as were cut out, in the same order"
            )
        if shares is not None and len(shares) not in (1, len(painted)):
            raise ValueError(
                f"{len(shares)} blend masks and {len(painted)} crops do not match; give one for "
                "all, or one for each"
            )
        drifts: list[Drift | None] = [None] * len(painted)
        if registered or colour_match:
            originals, hole_masks = (
                repeat_rows(rows, len(painted)).to(painted)
                for rows in (self.crops, self.hole_masks)
            )
            if registered:
                painted, drifts = register(painted, originals, hole_masks)
            if colour_match:
                painted = match_colour(painted, originals, hole_masks)
        if truncate:
            painted = (painted * 255).floor() / 255
        if shares is not None:
            shares = repeat_rows(shares, len(painted)).to(painted)
            shares = undo_drifts(shares[..., None], drifts)[..., 0]
        results, start = [], 0
        # Variations are the outer index, then photos, then the crops of a photo.
        for photo, regions in zip(self.photos, self.regions, strict=True):
            stop = start + len(regions)
            rows = [list(range(i + start, i + stop)) for i in range(0, len(painted), total)]
            start = stop
            # The crops of one variation side by side, as `stitch_all` takes them.
            together = [i for some in rows for i in some]
            crops = painted[together].to(photo)  # (N * K, h', w', 3)
            images = crops
            if paste_back and shares is None:
                images = stitch_all(photo[None], crops, regions)
            elif paste_back and shares is not None:
                stitched = []
                for some in rows:
                    drawn = [with_share(*pair) for pair in zip(regions, shares[some], strict=True)]
                    stitched.append(stitch_all(photo[None], painted[some].to(photo), drawn))
                images = torch.cat(stitched)
            found = [drifts[i] for i in together]
            results.append(EditResult(images=images, crops=crops, regions=regions, drifts=found))
        return results


def _planned(
    photo: Tensor,
    hole_mask: Tensor,
    settings: CropSettings,
    *,
    mode: str,
    numbered: bool,
    skip_empty: bool,
) -> tuple[list[Region], Tensor]:
    """The regions of a photo, and its mask at its size; of zeros where it is empty and skipped."""
    check_picture("image", photo)
    size = (photo.shape[0], photo.shape[1])
    settings = settings.resized(size)
    several = numbered and hole_mask.ndim == 3
    masks = hole_mask if several else hole_mask[None]
    for single in masks:
        check_mask("hole_mask", single)
    masks = resize_mask(masks, size)
    filled = [bool((single > 0.5).any()) for single in masks]
    if skip_empty and not any(filled):
        return [untouched_region(size, settings, mode=mode)], hole_mask.new_zeros(size)
    if several:
        if not all(filled):
            raise ValueError(
                f"mask {filled.index(False) + 1} of {len(filled)} is empty: nothing in it is above "
                "0.5; paint white where its exemplar should go, or leave both out"
            )
        if not filled:
            raise ValueError("there are no hole masks; give one for each exemplar")
        hole_mask, numbers = join_holes(masks)
        return plan_numbered(hole_mask, numbers, settings), hole_mask
    hole_mask = masks[0]
    if numbered and filled[0]:
        return plan_numbered(hole_mask, number_holes(hole_mask), settings), hole_mask
    return plan_regions(hole_mask, settings, mode=mode), hole_mask  # which refuses an empty mask


def check_exemplars(count: int, editor: BatchEditor) -> None:
    """Raise `ValueError` unless several exemplars are as many as the holes of every photo."""
    for regions in editor.regions:
        if count > 1 and len(regions) != count:
            raise ValueError(
                f"{count} exemplars and {len(regions)} holes do not match; give one exemplar for "
                "all holes or one for each, and clean stray specks out of the mask or give a mask "
                "for each exemplar"
            )


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """Repeat the rows as a whole until there are `count`; a single row is expanded, not copied."""
    if len(rows) == 1:
        return rows.expand(count, *rows.shape[1:])
    assert count % len(rows) == 0, (len(rows), count)
    return rows.repeat(count // len(rows), *[1] * (rows.ndim - 1))
