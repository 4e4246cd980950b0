"""Exemplar Encoder: the example picture as conditioning, as a text encoder makes it of a prompt."""

from __future__ import annotations

from typing import get_args

import torch
from comfy_api.latest import io

from ..pbe_model.editing.exemplar_image import (
    Fit,
    check_weights,
    parse_weights,
    preprocess,
    weighted_mean,
)
from ..pbe_model.networks.exemplar_encoder import normalise
from .adapter import HostEncoder, separate, tagged
from .category import CATEGORY, SEARCHES
from .convert import batch_size, colour_and_opacity, mask_like, rgb, row

EACH, AVERAGE, SEPARATE = MERGES = ["one each", "average", "separate"]

PBEEncoder = io.Custom("PBE_ENCODER")


class PBEExemplarEncoder(io.ComfyNode):
    """Turns example pictures into the positive and negative conditioning of an edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBEExemplarEncoder",
            display_name="Exemplar Encoder",
            category=CATEGORY,
            description=(
                "Looks at the example picture and sums it up in a single token: what it shows, "
                "not its pixels. Show the object large and on its own."
            ),
            search_aliases=[
                *SEARCHES,
                "reference image",
                "example image",
                "clip vision",
                "ip-adapter",
            ],
            inputs=[
                PBEEncoder.Input("encoder", tooltip="From Load Paint by Example."),
                io.Image.Input(
                    "exemplar",
                    tooltip="The object to paint. A batch gives one result each, or is averaged.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(get_args(Fit)),
                    default="squash",
                    tooltip=(
                        "How the picture becomes square. squash: stretched, as the model was "
                        "trained. crop: its centre. pad: grey bars, keeps the aspect."
                    ),
                ),
                io.Combo.Input(
                    "merge",
                    options=MERGES,
                    default=EACH,
                    tooltip=(
                        "What a batch of exemplars means. one each: as many results. average: one "
                        "result from several pictures of the same object. separate: one result "
                        "from a list of conditionings, as ConditioningCombine makes it."
                    ),
                ),
                io.Mask.Input(
                    "exemplar_mask",
                    optional=True,
                    tooltip=(
                        "White (1) on the object: the picture is cut to it and the rest greyed. "
                        "LoadImage's mask is white where a picture is transparent, so invert that."
                    ),
                ),
                io.String.Input(
                    "weights",
                    optional=True,
                    default="",
                    tooltip=(
                        "How much each exemplar counts, such as 1, 0.5. Empty: all the same. Used "
                        "by average and separate."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive",
                    display_name="positive",
                    tooltip="The exemplar. For PBE Inpaint Sampler or InpaintModelConditioning.",
                ),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip="The model's learned 'no exemplar', which similarity pushes away from.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        encoder: HostEncoder,
        exemplar: torch.Tensor,
        fit: Fit,
        merge: str,
        exemplar_mask: torch.Tensor | None = None,
        weights: str = "",
    ) -> io.NodeOutput:
        pictures = rgb(exemplar)
        masks = colour_and_opacity(exemplar)[1]  # a cut-out marks its object itself
        if exemplar_mask is not None:
            masks = mask_like(exemplar_mask, pictures)
        count = batch_size(exemplars=pictures, masks=masks)
        pixels = [
            preprocess(
                row(pictures, i),
                encoder.model.config.image_size,
                fit=fit,
                exemplar_mask=None if masks is None else row(masks, i),
            )
            for i in range(count)
        ]
        positive, negative = encoder.encode(normalise(torch.stack(pixels)))
        if merge == EACH:
            return io.NodeOutput(*tagged(positive, negative))
        shares = parse_weights(weights)
        if merge == AVERAGE:
            return io.NodeOutput(*tagged(weighted_mean(positive, shares), negative[:1]))
        if shares is not None:
            check_weights(shares, count)
        exemplars, no_exemplar = tagged(positive, negative[:1])
        return io.NodeOutput(separate(exemplars, shares), no_exemplar)
