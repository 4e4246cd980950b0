"""Stitch: put a crop back that was retouched, refined or upscaled after the sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ..pbe_model.region import Region, stitch
from .convert import batch_size, rgb, row

CATEGORY = "paint by example"

PBEStitchInfo = io.Custom("PBE_STITCH")


@dataclass(frozen=True, eq=False)
class StitchInfo:
    """The PBE_STITCH socket: for each result the photo, (1, H, W, 3), and where its crop lies."""

    photos: list[torch.Tensor]
    regions: list[Region]

    def apply(self, crops: torch.Tensor) -> torch.Tensor:
        """Stitch crops, (B, h, w, 3) at any size, into the photos, (B, H, W, 3).

        Raises:
            ValueError: Their number fits neither one nor that of the photos.
        """
        count = batch_size(crops=len(crops), photos=len(self.photos))
        last = len(self.photos) - 1
        return torch.cat(
            [
                stitch(self.photos[min(i, last)], row(crops, i), self.regions[min(i, last)])
                for i in range(count)
            ]
        )


class PBEStitch(io.ComfyNode):
    """Blends a crop back into the photo it was cut from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBEStitch",
            display_name="Stitch",
            category=CATEGORY,
            description=(
                "Puts the sampler's crop back into the photo after you have retouched, refined or "
                "upscaled it. Outside the blend zone the photo comes back bit-identical."
            ),
            search_aliases=["uncrop", "paste back", "crop and stitch"],
            inputs=[
                PBEStitchInfo.Input("stitch", tooltip="From PBE Inpaint Sampler."),
                io.Image.Input(
                    "image",
                    tooltip="The crop, at any size: it is scaled to where it belongs.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="image", tooltip="The photo with the crop in it."
                )
            ],
        )

    @classmethod
    def execute(cls, stitch: StitchInfo, image: torch.Tensor) -> io.NodeOutput:
        return io.NodeOutput(stitch.apply(rgb(image)))
