"""Stitch: put a crop back that was retouched, refined or upscaled after the sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ..pbe_model.editing.region import Region, stitch_all
from .category import CATEGORY
from .convert import rgb

PBEStitchInfo = io.Custom("PBE_STITCH")


@dataclass(frozen=True, eq=False)
class StitchInfo:
    """The PBE_STITCH socket: for each result the photo, (H, W, 3), and where its crops lie."""

    photos: list[torch.Tensor]
    regions: list[list[Region]]

    def apply(self, crops: torch.Tensor) -> torch.Tensor:
        """Stitch crops, (N, h, w, 3) at any size, into the photos, (B, H, W, 3).

        With one photo the crops may be those of several results, as of several tries.

        Raises:
            ValueError: There are neither one, nor as many as the sampler gave.
        """
        if len(self.photos) == 1 and len(crops) % len(self.regions[0]) == 0:
            return stitch_all(self.photos[0][None], crops, self.regions[0])
        total = sum(map(len, self.regions))
        if len(crops) not in (1, total):
            raise ValueError(
                f"{len(crops)} crops and {len(self.photos)} photos with {total} regions do not "
                "match; give as many crops as the sampler gave, in the same order"
            )
        if len(crops) == 1:
            crops = crops.expand(total, -1, -1, -1)
        shares = crops.split([len(regions) for regions in self.regions])
        stitched = [
            stitch_all(photo[None], share, regions)
            for photo, share, regions in zip(self.photos, shares, self.regions, strict=True)
        ]
        return torch.cat(stitched)


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
                    tooltip=(
                        "The crop, at any size: it is scaled to where it belongs. If several, "
                        "as many as the sampler gave, in the same order."
                    ),
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
