"""PBE Inpaint Sampler: the whole edit of a photo in one node, on the host's samplers."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy_api.latest import io

from ..pbe_model.edit import initial_noise
from ..pbe_model.region import MODES, crop, plan_region
from .adapter import Conditioning, check_parts, encode_masked, pbe_config, sample
from .convert import batch_size, mask_like, rgb, row
from .stitch import PBEStitchInfo, StitchInfo

CATEGORY = "paint by example"


class PBEInpaintSampler(io.ComfyNode):
    """Crops around the mask, paints the exemplar into it, and stitches the result back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBEInpaintSampler",
            display_name="PBE Inpaint Sampler",
            category=CATEGORY,
            description=(
                "Paints the exemplar into the masked part of the photo. The photo may have any "
                "size: the model sees a crop around the mask, and outside the blend zone the "
                "photo comes back bit-identical."
            ),
            search_aliases=["inpaint", "exemplar inpainting", "object insertion", "ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Paint by Example; LoRAs may follow it."),
                io.Conditioning.Input("positive", tooltip="The exemplar, from Exemplar Encoder."),
                io.Conditioning.Input("negative", tooltip="From Exemplar Encoder as well."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.Image.Input("image", tooltip="The photo to change, of any size."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "Where to paint: white (1) is the hole. Stretched to the photo if its "
                        "size differs. Grey edges widen the blend."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Of the noise. Result number i of a batch has seed + i.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Denoising steps. 20 suffice with dpmpp_2m; euler and ddim want 50.",
                ),
                io.Float.Input(
                    "similarity",
                    default=5.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "How hard the result is pushed towards the exemplar (guidance scale). "
                        "1 is no push, 3 to 7 are usual; much more burns colours."
                    ),
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="dpmpp_2m",
                    tooltip="The host's sampling algorithm.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="karras",
                    tooltip="How the noise levels are spaced.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "1 paints from pure noise. Less starts from what the photo shows in the "
                        "hole, for a change rather than a replacement."
                    ),
                ),
                io.Combo.Input(
                    "region",
                    options=list(MODES),
                    default="auto",
                    tooltip=(
                        "auto: the model sees a square crop around the mask, which keeps small "
                        "objects sharp. whole: it sees the whole photo, scaled down. squash: the "
                        "same, stretched to a square, as the paper's own code does."
                    ),
                ),
                io.Float.Input(
                    "context",
                    default=1.8,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    advanced=True,
                    tooltip=(
                        "Side of the crop over the longer side of the hole. More shows the model "
                        "more surroundings and leaves the object fewer pixels."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Side in pixels at which the model works; 0 is what it was trained at.",
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
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="image", tooltip="The photo with the exemplar in it."
                ),
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="Latent of the painted crop, for latent nodes and further sampling.",
                ),
                io.Image.Output(
                    "cropped",
                    display_name="cropped",
                    tooltip="The painted crop at the model's resolution, before it is stitched in.",
                ),
                io.Mask.Output(
                    "blend_mask",
                    display_name="blend mask",
                    tooltip="Share of the result in each pixel; where it is 0 the photo is as was.",
                ),
                PBEStitchInfo.Output(
                    "stitch",
                    display_name="stitch",
                    tooltip="For Stitch, to put the crop back after working on it.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive: Conditioning,
        negative: Conditioning,
        vae,
        image: torch.Tensor,
        mask: torch.Tensor,
        seed: int,
        steps: int,
        similarity: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        region: str,
        context: float,
        resolution: int,
        blend: int,
    ) -> io.NodeOutput:
        config = pbe_config(model)
        check_parts(config, vae, positive, negative)
        photos = rgb(image)
        hole_masks = mask_like(mask, photos)
        count = batch_size(photos=len(photos), masks=len(hole_masks), exemplars=len(positive[0][0]))
        photos, hole_masks = (
            [row(batch, i) for i in range(count)] for batch in (photos, hole_masks)
        )
        regions = [
            plan_region(
                hole_mask[0],
                mode=region,
                resolution=resolution or config.resolution,
                size_multiple=config.size_multiple,
                context=context,
                blend=None if blend < 0 else blend,
            )
            for hole_mask in hole_masks
        ]
        pairs = [crop(*parts) for parts in zip(photos, hole_masks, regions, strict=True)]
        crops, hole_crops = (torch.cat(parts) for parts in zip(*pairs, strict=True))

        masked_latent = encode_masked(vae, crops, hole_crops)
        latent = sample(
            model,
            positive,
            negative,
            masked_latent=masked_latent,
            hole_mask=hole_crops,
            init_latent=vae.encode(crops) if denoise < 1 else None,
            noise=initial_noise(seed, tuple(masked_latent.shape[1:]), count),
            seed=seed,
            steps=steps,
            similarity=similarity,
            sampler=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
        )
        painted = vae.decode(latent)
        if not painted.isfinite().all():
            raise ValueError(
                "the result holds NaNs: half precision overflowed or the checkpoint is damaged; "
                "set the loader's weight_dtype to bf16 or fp32, or start ComfyUI with --fp32-vae"
            )
        info = StitchInfo(photos, regions)
        blend_masks = torch.stack([plan.photo_blend_mask for plan in regions])
        return io.NodeOutput(
            info.apply(painted.float()), {"samples": latent}, painted, blend_masks, info
        )
