"""The host's tensors as ours: channels, sizes and batches as people really connect them.

The host's IMAGE is (B, H, W, C) in [0, 1] with one to four channels, its MASK (B, H, W) with 1 =
repaint, at any size.
"""

from __future__ import annotations

from collections.abc import Sized

from torch import Tensor

from ..pbe_model.editing.mask import resize_mask
from .adapter import Conditioning

EMPTY_MASKS = ["error", "pass through"]
"""What a node does with a photo whose mask is empty."""


def rgb(image: Tensor) -> Tensor:
    """An IMAGE with three channels: grey is repeated, opacity dropped.

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
    return colour.float()


def mask_like(mask: Tensor, image: Tensor) -> Tensor:
    """A MASK at the size of an IMAGE, (B, H, W); stretched where its aspect differs."""
    mask = mask.float().reshape(-1, *mask.shape[-2:])
    return resize_mask(mask, (image.shape[1], image.shape[2]))


def check_holes(masks: Tensor) -> None:
    """Refuse masks without a hole, as people get them by accident, before anything runs.

    Raises:
        ValueError: One of them is empty.
    """
    for number, mask in enumerate(masks, start=1):
        if not (mask > 0.5).any():
            which = "the mask" if len(masks) == 1 else f"mask {number} of {len(masks)}"
            raise ValueError(
                f"{which} is empty: LoadImage makes its mask of what is transparent in the file, "
                "and a black one of a file without transparency; paint the hole in the mask "
                "editor, connect Load Image (as Mask) with channel red for a black and white "
                "picture, or set empty_mask to pass through"
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
