"""The host's tensors as ours: channels, sizes and batches as people really connect them.

The host's IMAGE is (B, H, W, C) in [0, 1] with one to four channels, its MASK (B, H, W) with 1 =
repaint, at any size.
"""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor

from ..pbe_model.editing.batch import BatchEditor
from ..pbe_model.editing.crop_settings import CropSettings
from ..pbe_model.editing.mask import resize_mask
from ..pbe_model.editing.mask_reading import picture_mask
from ..pbe_model.editing.opacity import over_white
from ..pbe_model.editing.region import crop_mask
from .adapter import Conditioning

EMPTY_MASKS = ["error", "pass through"]
"""What a node does with a photo whose mask is empty."""


def rgb(image: Tensor) -> Tensor:
    """An IMAGE with three channels: grey is repeated, and what is transparent turns white.

    Raises:
        ValueError: No pixels, or a number of channels other than 1 to 4.
    """
    colour, alpha = colour_and_opacity(image)
    return over_white(colour, alpha)


def colour_and_opacity(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """An IMAGE's colours, (B, H, W, 3), and its opacity, (B, H, W); None where all is opaque.

    Raises:
        ValueError: No pixels, or a number of channels other than 1 to 4.
    """
    channels = image.shape[-1]
    if not image.numel() or channels not in (1, 2, 3, 4):
        raise ValueError(
            f"an image of shape {tuple(image.shape)} cannot be used; connect one with pixels and "
            "1 to 4 channels"
        )
    colour = image[..., :3] if channels >= 3 else image[..., :1].expand(*image.shape[:-1], 3)
    alpha = image[..., -1].float() if channels in (2, 4) else None
    return colour.float(), alpha if alpha is None or (alpha < 1).any() else None


def as_mask(picture: Tensor) -> Tensor:
    """A MASK as it is, or the mask that each picture of an IMAGE shows; (B, H, W)."""
    if picture.ndim < 4 or picture.shape[-1] > 4:
        return picture
    colour, alpha = colour_and_opacity(picture)
    opacities = [None] * len(colour) if alpha is None else list(alpha)
    return torch.stack([picture_mask(*one) for one in zip(colour, opacities, strict=True)])


def mask_like(mask: Tensor, image: Tensor) -> Tensor:
    """A MASK at the size of an IMAGE, (B, H, W); stretched where its aspect differs."""
    mask = mask.float().reshape(-1, *mask.shape[-2:])
    return resize_mask(mask, (image.shape[1], image.shape[2]))


def check_holes(masks: Tensor) -> None:
    """Refuse masks without a hole, as people get them by accident, before anything runs.

    Raises:
        ValueError: One of them is empty, or nowhere above 0.5.
    """
    for number, mask in enumerate(masks, start=1):
        if not (mask > 0.5).any():
            which = "the mask" if len(masks) == 1 else f"mask {number} of {len(masks)}"
            if strongest := float(mask.max()):
                raise ValueError(
                    f"{which} is too faint: it reaches {strongest / 0.5:.0%} of the value above "
                    "which a hole begins; paint it with an opacity of 1"
                )
            raise ValueError(
                f"{which} is empty: LoadImage makes its mask of what is transparent in the file, "
                "and a black one of a file without transparency; paint the hole in the mask "
                "editor, connect Load Image (as Mask) with channel red for a black and white "
                "picture, or set empty_mask to pass through"
            )


def cut_out(
    photos: Tensor,
    masks: Tensor,
    *,
    region: str,
    context: float,
    blend: int,
    context_mask: Tensor | None,
    blend_mask: Tensor | None,
    empty_mask: str,
    exemplars: Sized | None = None,
    numbered: bool = False,
    **sizes: int,
) -> BatchEditor:
    """Crops around the holes of a batch of photos, as the widgets of a node say.

    Args:
        photos: (B, H, W, 3), from `rgb`.
        masks: (B, H, W), from `mask_like`; where holes are numbered, those of one photo are the
            masks of its holes.
        region: One of `crop_plan.MODES`.
        context: As `CropSettings` has it.
        blend: Pixels, -1 for what suits the crop.
        context_mask: MASK of any size.
        blend_mask: MASK of any size.
        empty_mask: One of `EMPTY_MASKS`.
        exemplars: What else makes a result each.
        numbered: Each hole is painted by itself, with an exemplar of its own.
        sizes: Entries of `CropSettings`: resolution, width and height, multiple.

    Raises:
        ValueError: Batches that do not match, empty masks, or as `BatchEditor`.
    """
    context_masks = None if context_mask is None else mask_like(context_mask, photos)
    blend_masks = None if blend_mask is None else mask_like(blend_mask, photos)
    one_photo = numbered and len(photos) == 1 and len(masks) > 1
    count = batch_size(
        photos=photos,
        masks=None if one_photo else masks,
        exemplars=exemplars,
        context_masks=context_masks,
        blend_masks=blend_masks,
    )
    skip_empty = empty_mask != EMPTY_MASKS[0]
    if not skip_empty:
        check_holes(masks)
    settings = [
        CropSettings(
            context=context,
            blend=None if blend < 0 else blend,
            context_mask=None if context_masks is None else row(context_masks, i),
            blend_mask=None if blend_masks is None else row(blend_masks, i),
            **sizes,
        )
        for i in range(count)
    ]
    return BatchEditor(
        [row(photos, i) for i in range(count)],
        [masks if one_photo else row(masks, i) for i in range(count)],
        settings,
        mode=region,
        numbered=numbered,
        skip_empty=skip_empty,
    )


def batch_size(**batches: Sized | None) -> int:
    """How many results batches make together, by name for the error; `None` is not connected.

    Raises:
        ValueError: Two of them differ in length and neither has one row.
    """
    counts = {name: len(batch) for name, batch in batches.items() if batch is not None}
    count = max(counts.values())
    if any(n not in (1, count) for n in counts.values()):
        listed = ", ".join(f"{n} {name}" for name, n in counts.items())
        raise ValueError(f"{listed} do not match; give one of each, or equally many")
    return count


def row(batch: Tensor, index: int) -> Tensor:
    """Row `index` of a batch; a batch of one serves every index."""
    return batch[index if len(batch) > 1 else 0]


def rows(conditioning: Conditioning, indices: list[int]) -> Conditioning:
    """A CONDITIONING with these rows of its batch; shorter batches start again, as in the host."""
    return [(tokens[[i % len(tokens) for i in indices]], extra) for tokens, extra in conditioning]


def masks_in_crops(conditioning: Conditioning, photos: Tensor, editor: BatchEditor) -> Conditioning:
    """A CONDITIONING whose masks, drawn on the photos, are cut out as the crops to paint are.

    Raises:
        ValueError: There are several masks, but not as many as results.
    """
    placed = []
    for tokens, entries in conditioning:
        if "mask" in entries:
            masks = mask_like(entries["mask"], photos)
            if len(masks) not in (1, len(editor.photos)):
                raise ValueError(
                    f"a conditioning has {len(masks)} masks and there are {len(editor.photos)} "
                    "results; give ConditioningSetMask one mask, or one for each result"
                )
            cut = [
                crop_mask(row(masks, i)[None], region)
                for i, regions in enumerate(editor.regions)
                for region in regions
            ]
            entries = {**entries, "mask": torch.cat(cut)[editor.to_paint]}
        placed.append((tokens, entries))
    return placed
