"""The denoiser as a native MODEL: a `BaseModel` of the host with our UNet inside.

What is decided here:
- The layout of the nine input channels: noisy latent, masked photo, keep mask.
- The keep mask is resized as the official code does it; the host's core would round it.
- Where both guidance branches have equal inputs, the input is passed once and the UNet shares the
  work in front of the first cross-attention (see `pbe_model.networks.layers`).
"""

from __future__ import annotations

import functools
import logging
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...pbe_model.config import PBEConfig, UNetConfig
from ...pbe_model.networks.attention import Attention
from ...pbe_model.networks.masked_inputs import latent_keep_mask
from ...pbe_model.networks.unet import UNet
from .attention import HostAttention, attention_backend

# What the host's nodes change inside a UNet of its own; ours has no such places.
_UNSUPPORTED_PATCHES = ("patches", "patches_replace")


class HostUNet(UNet):
    """Our UNet behind the signature by which the host builds and calls its models."""

    def __init__(
        self,
        *,
        sizes: UNetConfig,
        attention: Attention,
        operations: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        **host_entries: Any,
    ) -> None:
        del host_entries  # for the host's LoRA key maps only
        super().__init__(
            sizes, operations=operations, attention=attention, dtype=dtype, device=device
        )
        self.dtype = dtype
        self.host_attention = attention if isinstance(attention, HostAttention) else None

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: dict[str, list[Tensor | None]] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """As `UNet.forward`, with branches of equal input merged into one."""
        options = transformer_options or {}
        _warn_of_patches(options)
        branches = len(options.get("cond_or_uncond", (0,)))
        # A compiled graph cannot branch on the values of tensors.
        may_look = not torch.compiler.is_compiling()
        if may_look and not control and branches > 1 and _all_equal(x.chunk(branches)):
            x, timesteps = x.chunk(branches)[0], timesteps.chunk(branches)[0]
        if self.host_attention is None:
            return super().forward(x, timesteps, context, control)
        with self.host_attention.using(options):
            return super().forward(x, timesteps, context, control)


class PBEModel(comfy.model_base.BaseModel):
    """Paint by Example among the host's models."""

    def __init__(self, model_config: PBEModelConfig, device: torch.device | None = None) -> None:
        kinds = comfy.model_base.ModelType
        predicts_v = model_config.pbe_config.schedule.prediction == "v"
        super().__init__(
            model_config,
            kinds.V_PREDICTION if predicts_v else kinds.EPS,
            device=device,
            unet_model=HostUNet,
        )

    def concat_cond(
        self,
        *,
        noise: Tensor,
        device: torch.device,
        concat_latent_image: Tensor | None = None,
        concat_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The five channels after the noisy latent.

        Args:
            noise: (B, 4, h, w), for its shape.
            device: where the result goes.
            concat_latent_image: unscaled latent of the photo with the hole grey.
            concat_mask: hole mask at pixel size, (B, H, W) or (B, 1, H, W).

        Returns:
            (B, 5, h, w): scaled masked latent, keep mask (1 = keep).

        Raises:
            ValueError: a branch comes without them.
        """
        if concat_latent_image is None or concat_mask is None:
            raise ValueError(
                "Paint by Example has to see the photo and the mask: use PBE Inpaint Sampler, or "
                "pass both positive and negative through InpaintModelConditioning"
            )
        size = tuple(noise.shape[-2:])
        masked = self.process_latent_in(concat_latent_image.to(device, torch.float32))
        if tuple(masked.shape[-2:]) != size:
            masked = F.interpolate(masked, size=size, mode="bilinear")
        hole_mask = concat_mask.to(device, torch.float32).reshape(-1, 1, *concat_mask.shape[-2:])
        keep_mask = latent_keep_mask(hole_mask, size)
        rows = [comfy.utils.repeat_to_batch_size(t, noise.shape[0]) for t in (masked, keep_mask)]
        return torch.cat(rows, dim=1)


class PBEModelConfig(comfy.supported_models_base.BASE):
    """What the host needs to know about a model before it builds it.

    Args:
        config: the checkpoint's architecture.
        attention: backend of the denoiser's attentions.
        latent_format: scale and preview colours of the latents.
    """

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    memory_usage_factor = 1.0  # that of SD 1.5

    def __init__(
        self,
        config: PBEConfig,
        attention: Attention,
        latent_format: comfy.latent_formats.LatentFormat,
    ) -> None:
        self.pbe_config = config
        self.latent_format = lambda: latent_format  # the host calls it as if it were a class
        self.sampling_settings = {
            "beta_schedule": "linear",
            "linear_start": config.schedule.linear_start,
            "linear_end": config.schedule.linear_end,
            "timesteps": config.schedule.num_timesteps,
            "zsnr": config.schedule.zero_terminal_snr,
        }
        unet = config.unet
        super().__init__({"sizes": unet, "attention": attention, **_host_entries(unet)})


def _host_entries(unet: UNetConfig) -> dict[str, Any]:
    """The UNet's sizes under the host's names, from which it derives LoRA key maps."""
    levels = len(unet.channel_mult)
    depth = [int(2**level in unet.attention_resolutions) for level in range(levels)]
    return {
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.model_channels,
        "context_dim": unet.context_dim,
        "num_heads": unet.num_heads,
        "channel_mult": list(unet.channel_mult),
        "num_res_blocks": [unet.num_res_blocks] * levels,
        "transformer_depth": [d for d in depth for _ in range(unet.num_res_blocks)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [d for d in depth for _ in range(unet.num_res_blocks + 1)],
    }


def load_model(
    config: PBEConfig,
    state_dict: dict[str, Tensor],
    latent_format: comfy.latent_formats.LatentFormat,
    *,
    weight_dtype: torch.dtype | None = None,
    attention: str = "auto",
    dynamic: bool = True,
) -> comfy.model_patcher.ModelPatcher:
    """A native MODEL.

    Args:
        config: Architecture.
        state_dict: The denoiser's weights, names without prefix.
        latent_format: From `first_stage.latent_format`.
        weight_dtype: How weights are kept; None lets the host choose.
        attention: See `attention.attention_backend`.
        dynamic: Let the host stream weights where it can; compiled models must not.
    """
    management = comfy.model_management
    load_device = management.get_torch_device()
    model_config = PBEModelConfig(config, attention_backend(attention), latent_format)
    supported = model_config.supported_inference_dtypes
    if weight_dtype is None:
        weight_dtype = management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(state_dict),
        )
    compute_dtype = management.unet_manual_cast(weight_dtype, load_device, supported)
    model_config.set_inference_dtype(weight_dtype, compute_dtype)
    model = PBEModel(model_config, device=management.unet_offload_device())
    # The patcher's class is taken at call time: the host rebinds it at start-up.
    patchers = comfy.model_patcher
    patcher = (patchers.CoreModelPatcher if dynamic else patchers.ModelPatcher)(
        model, load_device=load_device, offload_device=management.unet_offload_device()
    )
    # A dynamic patcher streams from the file's own memory; copies would defeat it.
    model.diffusion_model.load_state_dict(state_dict, strict=True, assign=patcher.is_dynamic())
    return patcher


def pbe_config(model: comfy.model_patcher.ModelPatcher) -> PBEConfig:
    """The architecture of a MODEL.

    Raises:
        ValueError: It is not a Paint by Example model.
    """
    if not isinstance(model.model, PBEModel):
        raise ValueError(
            f"this node needs a Paint by Example model, not a {type(model.model).__name__}; "
            "connect the MODEL of Load Paint by Example"
        )
    return model.model.model_config.pbe_config


def _all_equal(parts: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(parts[0], part) for part in parts[1:])


def _warn_of_patches(options: dict[str, Any]) -> None:
    for kind in _UNSUPPORTED_PATCHES:
        if options.get(kind):
            _warn_once(f"Paint by Example ignores {kind} {sorted(options[kind])} of other nodes")


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning(message)
