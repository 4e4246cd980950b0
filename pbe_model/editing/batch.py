"""Edits of several photos at once: plan crops, cut them out, have them painted, stitch them back.

The painting itself is a function that is passed in, so `edit`, the evaluation in training and the
ComfyUI node, which has the host's samplers, share everything around it. The crops of all photos
have one size, so they are one batch, however large the photos are and however many holes each of
them has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .checks import check_mask, check_picture
from .crop_plan import plan_regions
from .crop_settings import CropSettings
from .mask import resize_mask
from .region import Region, crop, match_colour, photo_blend_mask, stitch_all

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
    """

    images: Tensor
    crops: Tensor
    regions: list[Region]

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
        hole_masks: `(H, W)` for each photo, 1 = repaint, the hole is what lies above 0.5; a mask
            of another size is resized to its photo.
        settings: One for each photo; their masks are resized likewise.
        mode: One of `crop_plan.MODES`.

    Attributes:
        photos: As given.
        regions: The regions of each photo: one, or several with the mode "each".
        crops: `(B, h, w, 3)` in [0, 1], the crops of one photo side by side.
        hole_masks: `(B, h, w)`, their holes.

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
    ) -> None:
        self.photos = list(photos)
        self.regions: list[list[Region]] = []
        cut = []
        for photo, hole_mask, chosen in zip(photos, hole_masks, settings, strict=True):
            check_picture("image", photo)
            check_mask("hole_mask", hole_mask)
            size = (photo.shape[0], photo.shape[1])
            hole_mask = resize_mask(hole_mask, size)
            regions = plan_regions(hole_mask, chosen.resized(size), mode=mode)
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
            paint: Paints all crops.
            colour_match: Remove the colour cast that the first stage leaves on the crop's kept
                pixels; see `region.match_colour`.
            truncate: Round what is painted down to the 256 levels of 8 bits.
            paste_back: Stitch the crops into the photo; otherwise the results are the crops.

        Returns:
            A result for each photo, with its type and device.
        """
        # All crops of all photos are one batch; the painter repeats that batch as a whole for its N
        # variations. So variations are the outer index, then photos, then the crops of a photo.
        painted = paint(self.crops, self.hole_masks)  # (N * B, h, w, 3)
        if colour_match:
            crops, hole_masks = (
                repeat_rows(rows, len(painted)).to(painted)
                for rows in (self.crops, self.hole_masks)
            )
            painted = match_colour(painted, crops, hole_masks)
        if truncate:
            painted = (painted * 255).floor() / 255
        variations = painted.unflatten(0, (-1, len(self.crops)))  # (N, B, h, w, 3)
        shares = variations.split([len(regions) for regions in self.regions], dim=1)
        results = []
        # A photo's share is (N, K, h, w, 3): flattened, the crops of one variation are side by
        # side, as `stitch_all` takes them.
        for photo, regions, share in zip(self.photos, self.regions, shares, strict=True):
            crops = share.flatten(0, 1).to(photo)  # (N * K, h, w, 3)
            images = stitch_all(photo[None], crops, regions) if paste_back else crops
            results.append(EditResult(images=images, crops=crops, regions=regions))
        return results


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """Repeat the rows as a whole until there are `count`; a single row is expanded, not copied."""
    if len(rows) == 1:
        return rows.expand(count, *rows.shape[1:])
    assert count % len(rows) == 0, (len(rows), count)
    return rows.repeat(count // len(rows), *[1] * (rows.ndim - 1))
