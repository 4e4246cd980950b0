"""Crop for Editing: what lies around a hole, at the size that a model wants, for any model."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..pbe_model.editing.crop_plan import MODES
from ..pbe_model.editing.crop_settings import CONTEXT, nearest_multiple
from ..pbe_model.editing.mask import with_threshold
from .category import CATEGORY, SEARCHES
from .convert import EMPTY_MASKS, cut_out, mask_like, rgb
from .stitch import PBEStitchInfo


class PBECrop(io.ComfyNode):
    """Cuts out what a model has to see to repaint a hole; Stitch puts it back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBECrop",
            display_name="Crop for Editing",
            category=CATEGORY,
            description=(
                "Cuts a crop around the mask out of the photo, at the size that a model wants. Let "
                "any model paint it, such as Flux Fill, Qwen Edit or an SDXL inpainting model, and "
                "connect the result to Stitch."
            ),
            search_aliases=[*SEARCHES, "inpaint crop", "crop and stitch", "crop around mask"],
            inputs=[
                io.Image.Input("image", tooltip="The photo to change, of any size."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "Where to paint: white (1) is the hole. Stretched to the photo if its "
                        "size differs. Grey edges widen the blend."
                    ),
                ),
                io.Combo.Input(
                    "region",
                    options=list(MODES),
                    default="auto",
                    tooltip=(
                        "auto: one crop around the mask. whole: the whole photo, scaled. squash: "
                        "the same, stretched to the size below. each: one crop for each separate "
                        "hole."
                    ),
                ),
                io.Float.Input(
                    "context",
                    default=CONTEXT,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip=(
                        "Side of the crop over the longer side of the hole. More shows the model "
                        "more surroundings and leaves the object fewer pixels."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=8,
                    max=8192,
                    step=8,
                    tooltip=(
                        "Side in pixels of a square crop. 512 for SD 1.5, 1024 for SDXL, Flux and "
                        "Qwen."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Width in pixels of a crop that is not square; 0 is the resolution.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Height in pixels of a crop that is not square; 0 is the resolution.",
                ),
                io.Int.Input(
                    "multiple",
                    default=16,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip=(
                        "Both sides are taken to the nearest multiple of this. 8 for SD 1.5 and "
                        "SDXL, 16 for Flux and Qwen, 64 for Paint by Example."
                    ),
                ),
                io.Int.Input(
                    "blend",
                    default=-1,
                    min=-1,
                    max=512,
                    advanced=True,
                    tooltip=(
                        "Pixels of the photo over which the result fades out around the mask. "
                        "0 cuts at its edge, -1 chooses by the size of the crop."
                    ),
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=0.5,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    advanced=True,
                    tooltip="What is brighter than this in the mask is the hole.",
                ),
                io.Boolean.Input(
                    "invert_mask",
                    default=False,
                    advanced=True,
                    tooltip="Take what is black in the mask as the hole, for masks of what stays.",
                ),
                io.Combo.Input(
                    "empty_mask",
                    options=EMPTY_MASKS,
                    default=EMPTY_MASKS[0],
                    advanced=True,
                    tooltip=(
                        "A photo with an empty mask: stop with an error, or pass it through "
                        "unchanged, for long batches."
                    ),
                ),
                io.Mask.Input(
                    "context_mask",
                    optional=True,
                    tooltip="The crop also holds what is white here, for the model to see it.",
                ),
                io.Mask.Input(
                    "blend_mask",
                    optional=True,
                    tooltip=(
                        "Share of the result in each pixel of the photo, in place of blend. Where "
                        "it is 0, the photo stays as it is."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "cropped",
                    display_name="cropped",
                    tooltip="The crop, to be painted; one for each hole with region each.",
                ),
                io.Mask.Output(
                    "hole_mask",
                    display_name="mask",
                    tooltip="The hole in the crop, white (1): what the model is to paint.",
                ),
                PBEStitchInfo.Output(
                    "stitch", display_name="stitch", tooltip="For Stitch, to put the crop back."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor,
        region: str,
        context: float,
        resolution: int,
        width: int,
        height: int,
        multiple: int,
        blend: int,
        mask_threshold: float,
        invert_mask: bool,
        empty_mask: str,
        context_mask: torch.Tensor | None = None,
        blend_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        photos = rgb(image)
        masks = mask_like(mask, photos)
        masks = with_threshold(1 - masks if invert_mask else masks, mask_threshold)
        editor = cut_out(
            photos,
            masks,
            region=region,
            context=context,
            blend=blend,
            context_mask=context_mask,
            blend_mask=blend_mask,
            empty_mask=empty_mask,
            height=nearest_multiple(height or resolution, multiple),
            width=nearest_multiple(width or resolution, multiple),
            multiple=multiple,
        )
        return io.NodeOutput(editor.crops, editor.hole_masks, editor)
