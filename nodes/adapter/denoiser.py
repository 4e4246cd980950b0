"""The denoiser as a native MODEL: a `BaseModel` of the host with the host's own UNet inside.

So patches, wrappers, LoRAs and ControlNets find the places they are made for. What is ours:
- The layout of the nine input channels: noisy latent, masked photo, keep mask.
- The keep mask is resized as the official code does it; the host's core would round it.
- The cross-attention to one token, and the group sizes of narrow models.
- What is refused or named in the page, because it would silently do nothing or harm.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...pbe_model.config import PBEConfig, UNetConfig
from ...pbe_model.networks.masked_inputs import latent_keep_mask, photo_channels
from .adapters import checking
from .attention import OVERRIDE, CrossAttention, attention_override
from .conditioning import check_tokens
from .control import check_control_net, check_residuals, skip_widths
from .patches import WRAPPER, attention_places, patches_named, sample_watched, warn_of_absent


def build_unet(norm_groups: int, *, operations: Any, **sizes: Any) -> UNetModel:
    """The host's UNet with groups and cross-attentions of ours.

    Args:
        norm_groups: Groups of the group normalisations; the host's are always 32.
        operations: The host's layers.
        sizes: Arguments of the host's UNet, from `host_sizes`.
    """

    class Operations(operations):
        class GroupNorm(operations.GroupNorm):
            def __init__(self, num_groups: int, num_channels: int, **kwargs: Any) -> None:
                del num_groups
                super().__init__(norm_groups, num_channels, **kwargs)

    unet = UNetModel(operations=Operations, **sizes)
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.attn2.__class__ = CrossAttention
    if sizes["channel_mult"][0] != 1:  # the host takes the last width to be that of the first layer
        norm, _, last = unet.out
        unet.out[2] = Operations.Conv2d(
            norm.num_channels, last.out_channels, 3, padding=1,
            dtype=sizes["dtype"], device=sizes["device"],
        )  # fmt: skip
    return unet


class PBEModel(comfy.model_base.BaseModel):
    """Paint by Example among the host's models."""

    def __init__(self, model_config: PBEModelConfig, device: torch.device | None = None) -> None:
        kinds = comfy.model_base.ModelType
        predicts_v = model_config.pbe_config.schedule.prediction == "v"
        super().__init__(
            model_config,
            kinds.V_PREDICTION if predicts_v else kinds.EPS,
            device=device,
            unet_model=functools.partial(build_unet, model_config.pbe_config.unet.norm_groups),
        )
        self.attention_places = attention_places(self.diffusion_model)
        self.widths = skip_widths(self.diffusion_model)

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, **conditions: Any) -> Tensor:
        """As the host's; patches of places that are not there are named in the page.

        Raises:
            ValueError: A patch or control is made for a network of other widths.
        """
        options = conditions.get("transformer_options", {})
        warn_of_absent(options, self.attention_places)
        check_residuals(conditions.get("control"), self.widths)
        with patches_named(options):
            return super().apply_model(x, t, *args, **conditions)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The host's conditions of one conditioning, which must be an exemplar's.

        Raises:
            ValueError: It is a text prompt, or of another checkpoint, or without photo and mask, or
                comes with a ControlNet for other latents.
        """
        config = self.model_config.pbe_config
        check_tokens(
            config, kwargs.get("prompt_type", "positive"), kwargs.get("cross_attn"), kwargs
        )
        check_control_net(kwargs.get("control"), config.unet.out_channels)
        return super().extra_conds(**kwargs)

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
            masked = comfy.utils.common_upscale(masked, size[1], size[0], "bilinear", "disabled")
        hole_mask = concat_mask.to(device, torch.float32).reshape(-1, 1, *concat_mask.shape[-2:])
        keep_mask = latent_keep_mask(hole_mask, size)
        rows = [comfy.utils.repeat_to_batch_size(t, noise.shape[0]) for t in (masked, keep_mask)]
        return photo_channels(*rows)


class PBEModelConfig(comfy.supported_models_base.BASE):
    """What the host needs to know about a model before it builds it.

    Args:
        config: the checkpoint's architecture.
        latent_format: scale and preview colours of the latents.
    """

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    memory_usage_factor = 1.0  # that of SD 1.5

    def __init__(self, config: PBEConfig, latent_format: comfy.latent_formats.LatentFormat) -> None:
        self.pbe_config = config
        self.latent_format = lambda: latent_format  # the host calls it as if it were a class
        self.sampling_settings = {
            "beta_schedule": "linear",
            "linear_start": config.schedule.linear_start,
            "linear_end": config.schedule.linear_end,
            "timesteps": config.schedule.num_timesteps,
            "zsnr": config.schedule.zero_terminal_snr,
        }
        super().__init__(host_sizes(config.unet))


def host_sizes(unet: UNetConfig) -> dict[str, Any]:
    """The UNet's sizes under the host's names, with all that it detects for SD 1.5."""
    levels = len(unet.channel_mult)
    depth = [int(2**level in unet.attention_resolutions) for level in range(levels)]
    return {
        "image_size": 32,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.model_channels,
        "num_res_blocks": [unet.num_res_blocks] * levels,
        "channel_mult": list(unet.channel_mult),
        "num_heads": unet.num_heads,
        "num_head_channels": -1,
        "context_dim": unet.context_dim,
        "transformer_depth": [d for d in depth for _ in range(unet.num_res_blocks)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [d for d in depth for _ in range(unet.num_res_blocks + 1)],
        "use_checkpoint": False,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "adm_in_channels": None,
        "legacy": False,
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
        attention: See `attention.attention_override`.
        dynamic: Let the host stream weights where it can; compiled models must not.
    """
    override = attention_override(attention)
    management = comfy.model_management
    load_device = management.get_torch_device()
    model_config = PBEModelConfig(config, latent_format)
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
    # The patcher's class is taken at call time: the host rebinds it at start-up. On a CPU its
    # dynamic one makes plain ones, whatever class is asked for.
    patchers = comfy.model_patcher
    dynamic = dynamic and not management.is_device_cpu(load_device)
    patcher = checking(patchers.CoreModelPatcher if dynamic else patchers.ModelPatcher)(
        model, load_device=load_device, offload_device=management.unet_offload_device()
    )
    # A dynamic patcher streams from the file's own memory; copies would defeat it.
    model.diffusion_model.load_state_dict(state_dict, strict=True, assign=patcher.is_dynamic())
    if override is not None:
        patcher.model_options["transformer_options"][OVERRIDE] = override
    wrappers = comfy.patcher_extension.WrappersMP
    patcher.add_wrapper_with_key(wrappers.OUTER_SAMPLE, WRAPPER, sample_watched)
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
