"""Pad for Outpainting: a photo on a larger canvas, whose new rim is the hole."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..pbe_model.editing.outpaint import extend_canvas, padding_to_aspect
from .category import CATEGORY, SEARCHES
from .convert import batch_size, mask_like, rgb

AS_PADDED = "as padded"
ASPECTS = (AS_PADDED, "1:1", "5:4", "4:3", "3:2", "16:9", "21:9", "4:5", "3:4", "2:3", "9:16")
PLACES = {
    "centre": (0.5, 0.5),
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
}


class PBEOutpaint(io.ComfyNode):
    """Makes a photo larger by a rim that is to be painted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sides = [
            io.Int.Input(
                side,
                default=0,
                min=0,
                max=8192,
                tooltip=f"Pixels to add at the {where} of the photo.",
            )
            for side, where in (
                ("left", "left"),
                ("top", "top"),
                ("right", "right"),
                ("bottom", "bottom"),
            )
        ]
        return io.Schema(
            node_id="PBEOutpaint",
            display_name="Pad for Outpainting",
            category=CATEGORY,
            description=(
                "Puts the photo on a larger canvas, by pixels or to an aspect. The new rim is the "
                "mask, for PBE Inpaint Sampler or Crop for Editing to paint."
            ),
            search_aliases=[*SEARCHES, "outpaint", "extend image", "uncrop", "aspect ratio"],
            inputs=[
                io.Image.Input("image", tooltip="The photo to extend."),
                *sides,
                io.Combo.Input(
                    "aspect",
                    options=list(ASPECTS),
                    default=AS_PADDED,
                    tooltip=(
                        "Width to height of the result. The canvas grows further to reach it; "
                        "nothing is cut off."
                    ),
                ),
                io.Combo.Input(
                    "place",
                    options=list(PLACES),
                    default="centre",
                    tooltip="Where the photo lies on what is added to reach the aspect.",
                ),
                io.Int.Input(
                    "overlap",
                    default=8,
                    min=0,
                    max=512,
                    tooltip=(
                        "Pixels of the photo beside the new rim that are painted again, so that "
                        "the seam does not show."
                    ),
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="A hole inside the photo, painted as well."
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="image",
                    tooltip="The larger picture; its rim repeats the photo's edge.",
                ),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="White (1) on the new rim: the hole."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        left: int,
        top: int,
        right: int,
        bottom: int,
        aspect: str,
        place: str,
        overlap: int,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        photos = rgb(image)
        holes = None
        if mask is not None:
            holes = mask_like(mask, photos)
            count = batch_size(photos=photos, masks=holes)
            photos, holes = photos.expand(count, -1, -1, -1), holes.expand(count, -1, -1)
        padding = (left, top, right, bottom)
        if aspect != AS_PADDED:
            across, down = map(int, aspect.split(":"))
            size = (photos.shape[1] + top + bottom, photos.shape[2] + left + right)
            more = padding_to_aspect(size, across / down, PLACES[place])
            padding = tuple(map(sum, zip(padding, more, strict=True)))
        return io.NodeOutput(*extend_canvas(photos, padding, overlap=overlap, hole_mask=holes))
