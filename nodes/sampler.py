"""PBE Inpaint Sampler: the whole edit of a photo in one node, on the host's samplers."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy_api.latest import io

from ..pbe_model.config import EditDefaults
from ..pbe_model.editing.batch import check_exemplars
from ..pbe_model.editing.crop_plan import MODES
from ..pbe_model.editing.crop_settings import CONTEXT, nearest_multiple
from ..pbe_model.editing.denoise import initial_noise
from ..pbe_model.editing.edit import check_guidance_interval
from .adapter import Conditioning, check_parts, encode_masked, pbe_config, sample
from .adapter.guidance import limit_guidance
from .category import CATEGORY, SEARCHES
from .convert import EMPTY_MASKS, cut_out, mask_like, masks_in_crops, rgb, rows
from .preview import outlined
from .stitch import PBEStitchInfo

OWN_STEPS, OWN_SIMILARITY, OWN_SAMPLER = 0, -1.0, "auto"
"""What says that the model's own settings count, `PBEConfig.defaults`."""
EACH_RESULT, EACH_HOLE = "one for each result", "one for each hole"


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
            search_aliases=[
                *SEARCHES,
                "inpaint",
                "exemplar inpainting",
                "object insertion",
                "ksampler",
            ],
            has_intermediate_output=True,  # it shows the result also when that comes from the cache
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
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip=(
                        "Seed of the noise. Result i of a batch uses seed + i, for all its holes."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=OWN_STEPS,
                    min=OWN_STEPS,
                    max=1000,
                    tooltip=(
                        "Denoising steps; 0 is as many as the model's file asks for, 20 if it says "
                        "nothing. 20 are enough with dpmpp_2m; euler and ddim need 50."
                    ),
                ),
                io.Float.Input(
                    "similarity",
                    default=OWN_SIMILARITY,
                    min=OWN_SIMILARITY,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "How hard the result is pushed towards the exemplar (guidance scale). "
                        "1 is no push, 3 to 7 is usual; much more burns colours. -1 is what the "
                        "model's file asks for, 5 if it says nothing."
                    ),
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=[OWN_SAMPLER, *host_samplers()],
                    default=OWN_SAMPLER,
                    tooltip=(
                        "The host's sampling algorithm; auto is what the model's file asks for, "
                        "dpmpp_2m if it says nothing or the host has no such sampler."
                    ),
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
                        "hole, to change it rather than replace it."
                    ),
                ),
                io.Combo.Input(
                    "region",
                    options=list(MODES),
                    default="auto",
                    tooltip=(
                        "auto: the model sees a square crop around the mask, which keeps small "
                        "objects sharp. whole: it sees the whole photo, scaled down. squash: the "
                        "same, stretched to a square, as the paper's own code does. each: one crop "
                        "for each separate hole, all painted at once."
                    ),
                ),
                io.Float.Input(
                    "context",
                    default=CONTEXT,
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
                    tooltip=(
                        "Side in pixels of what the model sees; 0 is what it was trained at. Taken "
                        "to the nearest size that the model can have."
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
                io.Mask.Input(
                    "context_mask",
                    optional=True,
                    tooltip=(
                        "The crop also holds what is white here, for the model to see it: a "
                        "person's legs, say, when the shoes are painted."
                    ),
                ),
                io.Mask.Input(
                    "blend_mask",
                    optional=True,
                    tooltip=(
                        "Share of the result in each pixel, in place of blend. What is repainted "
                        "depends on the mask alone; where this is 0, the photo stays as it is."
                    ),
                ),
                io.Boolean.Input(
                    "colour_match",
                    optional=True,
                    default=False,
                    tooltip=(
                        "Removes a colour cast from the painted crop, so that what it keeps around "
                        "the hole matches the photo. Turn it on if the rim shows a step in tone."
                    ),
                ),
                io.Combo.Input(
                    "exemplars",
                    options=[EACH_RESULT, EACH_HOLE],
                    default=EACH_RESULT,
                    optional=True,
                    tooltip=(
                        "What a batch of exemplars is for. one for each hole goes with region "
                        "each: the first into the first hole, left to right and row after row, or "
                        "into the first of a batch of masks for one photo."
                    ),
                ),
                io.Combo.Input(
                    "empty_mask",
                    options=EMPTY_MASKS,
                    default=EMPTY_MASKS[0],
                    optional=True,
                    tooltip=(
                        "A photo with an empty mask: stop with an error, or pass it through "
                        "unchanged, for long batches."
                    ),
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip=(
                        "Noise levels from a scheduler node, such as AlignYourStepsScheduler. They "
                        "take the place of steps, scheduler and denoise."
                    ),
                ),
                io.Float.Input(
                    "guidance_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the schedule before which similarity does not count yet.",
                ),
                io.Float.Input(
                    "guidance_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Share of the schedule after which similarity does not count any more. "
                        "Steps without it take half the time."
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
                    tooltip=(
                        "The painted crop at the model's resolution, before it is stitched in; "
                        "one for each hole with region each."
                    ),
                ),
                io.Mask.Output(
                    "blend_mask",
                    display_name="blend mask",
                    tooltip="Share of the result in each pixel; 0 where the photo is unchanged.",
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
        context_mask: torch.Tensor | None = None,
        blend_mask: torch.Tensor | None = None,
        colour_match: bool = False,
        exemplars: str = EACH_RESULT,
        empty_mask: str = EMPTY_MASKS[0],
        sigmas: torch.Tensor | None = None,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
    ) -> io.NodeOutput:
        config = pbe_config(model)
        check_parts(config, vae, positive, negative)
        steps = config.defaults.steps if steps == OWN_STEPS else steps
        similarity = config.defaults.similarity if similarity < 0 else similarity
        if sampler_name == OWN_SAMPLER:
            sampler_name = config.defaults.sampler
            if sampler_name not in host_samplers():  # the host has no plms
                sampler_name = EditDefaults.sampler
        check_guidance_interval(guidance_start, guidance_end)
        if (guidance_start, guidance_end) != (0, 1):
            model = limit_guidance(model, guidance_start, guidance_end)
        photos = rgb(image)
        tokens = max((tokens for tokens, _ in positive), key=len)
        for_holes = exemplars == EACH_HOLE
        if for_holes and len(positive) > 1:
            raise ValueError(
                f"positive holds {len(positive)} separate conditionings, and {EACH_HOLE!r} takes "
                "its exemplars from one batch; set merge to one each in Exemplar Encoder, or "
                f"exemplars to {EACH_RESULT!r}"
            )
        for_holes = for_holes and len(tokens) > 1
        multiple = config.size_multiple
        masks = mask_like(mask, photos)
        editor = cut_out(
            photos,
            masks,
            region=region,
            context=context,
            blend=blend,
            context_mask=context_mask,
            blend_mask=blend_mask,
            empty_mask=empty_mask,
            exemplars=None if for_holes else tokens,
            numbered=for_holes,
            resolution=nearest_multiple(resolution or config.resolution, multiple),
            multiple=multiple,
        )
        if for_holes:
            check_exemplars(len(tokens), editor)
        whose = editor.holes if for_holes else editor.owners
        chosen = [whose[i] for i in editor.to_paint]
        if chosen != list(range(len(editor.photos))):
            positive, negative = rows(positive, chosen), rows(negative, chosen)
        positive, negative = (
            masks_in_crops(conditioning, photos, editor) for conditioning in (positive, negative)
        )
        latents = None

        def paint(crops: torch.Tensor, hole_masks: torch.Tensor) -> torch.Tensor:
            nonlocal latents
            masked_latent = encode_masked(vae, crops, hole_masks)
            shape = tuple(masked_latent.shape[1:])
            noises = [
                initial_noise(seed + i, shape, num_crops=len(regions))
                for i, regions in enumerate(editor.regions)
            ]
            latents = sample(
                model,
                positive,
                negative,
                masked_latent=masked_latent,
                hole_mask=hole_masks,
                init_latent=vae.encode(crops) if denoise < 1 or sigmas is not None else None,
                noise=torch.cat(noises)[editor.to_paint],
                seed=seed,
                steps=steps,
                similarity=similarity,
                sampler=sampler_name,
                scheduler=scheduler,
                denoise=denoise,
                sigmas=sigmas,
            )
            painted = vae.decode(latents)
            if not painted.isfinite().all():
                raise ValueError(
                    "the result holds NaNs: half precision overflowed or the checkpoint is "
                    "damaged; set the loader's weight_dtype to bf16 or fp32, or start ComfyUI "
                    "with --fp32-vae"
                )
            return painted

        results = editor.edit(paint, colour_match=colour_match)
        if len(editor.to_paint) < len(editor.crops):  # those that pass through are encoded as is
            every = vae.encode(editor.crops)
            if latents is not None:
                every[editor.to_paint] = latents.to(every)
            latents = every
        return io.NodeOutput(
            torch.cat([result.images for result in results]),
            {"samples": latents},
            torch.cat([result.crops for result in results]),
            torch.stack([result.blend_mask for result in results]),
            editor,
            ui=outlined(results, masks),
        )


def host_samplers() -> list[str]:
    """Names of the host's sampling algorithms."""
    return comfy.samplers.KSampler.SAMPLERS
