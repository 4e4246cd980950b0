"""Mask Augmenter: the mask shapes of training, for masks drawn by hand or by a segmenter."""

import torch
from comfy_api.latest import io

from ..pbe_model.editing.mask import SHAPES, augment
from .category import CATEGORY, SEARCHES
from .convert import as_mask


class PBEMaskAugmenter(io.ComfyNode):
    """Turns a mask into its box, hull or random Bezier shapes, then grows and feathers it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBEMaskAugmenter",
            display_name="Mask Augmenter",
            category=CATEGORY,
            description=(
                "Reshapes a mask the way Paint by Example was trained: a tight outline tells the "
                "model the object's silhouette, a box or a loose Bezier shape leaves it free."
            ),
            search_aliases=[
                *SEARCHES,
                "grow mask",
                "bezier mask",
                "bounding box mask",
                "feather mask",
                "remove specks",
            ],
            inputs=[
                io.MultiType.Input(
                    io.Mask.Input(
                        "mask",
                        tooltip=(
                            "Where to repaint: white (1) is the hole. A picture works as well: "
                            "black and white, strokes on transparency, or a photo with the hole "
                            "erased."
                        ),
                    ),
                    [io.Image],
                ),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="as is",
                    tooltip=(
                        "as is: the mask itself. box: its bounding box. bezier: a random blob "
                        "around the box, as in training. hull: the convex hull."
                    ),
                ),
                io.Int.Input(
                    "expand",
                    default=0,
                    min=-1024,
                    max=1024,
                    tooltip="Pixels to grow the shape by; negative values shrink it.",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip=(
                        "Pixels of soft edge on either side. It widens the blend into the photo; "
                        "what is repainted stays the same."
                    ),
                ),
                io.Boolean.Input(
                    "fill_holes",
                    default=False,
                    tooltip="First of all, fill islands that the mask encloses.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the random Bezier shapes; the other shapes ignore it.",
                ),
                io.Int.Input(
                    "variations",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Masks to make from each input mask; they differ only with bezier.",
                ),
                io.Int.Input(
                    "drop_specks",
                    optional=True,
                    default=0,
                    min=0,
                    max=1024 * 1024,
                    tooltip=(
                        "Removes parts of the mask with fewer pixels than this, such as a "
                        "segmenter's stray dots; the largest part always stays. 0 keeps all."
                    ),
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "masks",
                    display_name="mask",
                    tooltip="One mask for each input mask and variation, variations side by side.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        mask: torch.Tensor,
        shape: str,
        expand: int,
        feather: int,
        fill_holes: bool,
        seed: int,
        variations: int,
        drop_specks: int = 0,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            augment(
                as_mask(mask),
                shape,
                expand=expand,
                feather=feather,
                fill_holes=fill_holes,
                drop_specks=drop_specks,
                seed=seed,
                variations=variations,
            )
        )
