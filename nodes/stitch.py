"""Stitch: put crops back into their photos, whoever painted them."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..pbe_model.editing.batch import BatchEditor, EditResult
from ..pbe_model.editing.register import describe
from .category import CATEGORY, SEARCHES
from .convert import rgb

PBEStitchInfo = io.Custom("PBE_STITCH")  # a `BatchEditor`: the photos, and where their crops lie


class PBEStitch(io.ComfyNode):
    """Blends crops back into the photos that they were cut from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBEStitch",
            display_name="Stitch",
            category=CATEGORY,
            description=(
                "Puts a crop back into the photo after you have painted, retouched or upscaled it "
                "with any model. Outside the blend zone the photo comes back bit-identical."
            ),
            search_aliases=[
                *SEARCHES,
                "uncrop",
                "paste back",
                "crop and stitch",
                "align",
                "register",
            ],
            inputs=[
                PBEStitchInfo.Input(
                    "stitch", tooltip="From Crop for Editing or PBE Inpaint Sampler."
                ),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The crop, at any size: it is scaled to where it belongs. If several, "
                        "as many as were cut out, in the same order."
                    ),
                ),
                io.Boolean.Input(
                    "register",
                    optional=True,
                    default=False,
                    tooltip=(
                        "Measures how far the crop has shifted and zoomed, on what it keeps around "
                        "the hole, and undoes it. For models that redraw the whole picture, such "
                        "as Qwen Edit or Flux Kontext."
                    ),
                ),
                io.Boolean.Input(
                    "colour_match",
                    optional=True,
                    default=False,
                    tooltip=(
                        "Removes a colour cast from the crop, so that what it keeps around the "
                        "hole matches the photo."
                    ),
                ),
                io.Mask.Input(
                    "blend_mask",
                    optional=True,
                    tooltip=(
                        "Drawn on the crop: the share of it in each pixel, in place of the blend "
                        "around the hole. One for each crop, or one for all."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="image", tooltip="The photo with the crop in it."
                ),
                io.String.Output(
                    "drift",
                    display_name="drift",
                    tooltip=(
                        "What register found, a line for each crop: shift in pixels of the photo "
                        "and zoom, or that it cannot tell."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        stitch: BatchEditor,
        image: torch.Tensor,
        register: bool = False,
        colour_match: bool = False,
        blend_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        crops, total = rgb(image), len(stitch.crops)
        if len(crops) == 1:
            crops = crops.expand(total, -1, -1, -1)
        if len(stitch.photos) > 1 and len(crops) != total:
            raise ValueError(
                f"{len(crops)} crops and {len(stitch.photos)} photos with {total} regions do not "
                "match; connect as many crops as were cut out, in the same order"
            )
        shares = blend_mask
        if shares is not None:
            shares = shares.float().reshape(-1, *shares.shape[-2:])
        results = stitch.paste(crops, registered=register, colour_match=colour_match, shares=shares)
        report = _report(results) if register else "register is off"
        return io.NodeOutput(torch.cat([result.images for result in results]), report)


def _report(results: list[EditResult]) -> str:
    """What was found out about each crop, a line each."""
    lines = []
    for result in results:
        for drift, region in zip(result.drifts, result.regions * len(result.images), strict=True):
            x0, y0, x1, y1 = region.box
            found = describe(drift, (y1 - y0, x1 - x0))
            lines.append(f"crop {len(lines) + 1}: {found}")
    return "\n".join(lines)
