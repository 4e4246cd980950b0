"""The parts of `SMALL` in diffusers, with weights of their own."""

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import (
    PaintByExampleImageEncoder,
)
from transformers import CLIPVisionConfig

from .small import SMALL


def peer_unet() -> UNet2DConditionModel:
    """Its denoiser."""
    unet = SMALL.unet
    return UNet2DConditionModel(
        sample_size=SMALL.resolution // SMALL.vae.downscale,
        in_channels=9,
        layers_per_block=unet.num_res_blocks,
        block_out_channels=tuple(unet.model_channels * m for m in unet.channel_mult),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=unet.context_dim,
        attention_head_dim=unet.num_heads,
    )


def peer_vae() -> AutoencoderKL:
    """Its first stage."""
    vae = SMALL.vae
    levels = len(vae.ch_mult)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(vae.ch * m for m in vae.ch_mult),
        layers_per_block=vae.num_res_blocks,
        latent_channels=vae.z_channels,
    )


def peer_encoder() -> PaintByExampleImageEncoder:
    """Its image condition; activation and epsilon are CLIP's by default."""
    tower = SMALL.exemplar
    return PaintByExampleImageEncoder(
        CLIPVisionConfig(
            hidden_size=tower.hidden_size,
            intermediate_size=4 * tower.hidden_size,
            num_hidden_layers=tower.num_layers,
            num_attention_heads=tower.num_heads,
            image_size=tower.image_size,
            patch_size=tower.patch_size,
        ),
        proj_size=SMALL.unet.context_dim,
    )
