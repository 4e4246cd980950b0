"""ControlNets and T2I adapters that do not fit, which the host only notes in its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from torch import Tensor

_REMEDY = "remove it, or use it with a checkpoint of Stable Diffusion 1.5's sizes"


def skip_widths(unet: UNetModel) -> dict[str, list[int]]:
    """Channels at the places that residuals are added to, first place first."""
    widths = [unet.model_channels]
    for block in unet.input_blocks[1:]:
        layer = block[0]
        widths.append(layer.channels if isinstance(layer, Downsample) else layer.out_channels)
    return {"input": widths, "middle": widths[-1:], "output": widths[::-1]}


def check_residuals(
    control: Mapping[str, Sequence[Tensor | None]] | None, widths: dict[str, list[int]]
) -> None:
    """Refuse residuals for a network of other widths.

    Args:
        control: By part of the network, the first place's residual last in its list.
        widths: From `skip_widths`.

    Raises:
        ValueError: One of them does not fit.
    """
    for part, residuals in (control or {}).items():
        for residual, width in zip(reversed(residuals), widths.get(part, []), strict=False):
            if residual is not None and residual.shape[1] != width:
                raise ValueError(
                    f"a ControlNet or T2I adapter gives {residual.shape[1]} channels where this "
                    f"model has {width}; {_REMEDY}"
                )


def check_control_net(control: Any, latent_channels: int) -> None:
    """Refuse ControlNets for other latents.

    Args:
        control: The host's first control of a conditioning; it leads to those before it.
        latent_channels: Of the model.

    Raises:
        ValueError: One of them takes another number of channels.
    """
    while control is not None:
        network = getattr(control, "control_model", None)
        channels = getattr(network, "in_channels", None)
        if isinstance(channels, int) and channels != latent_channels:
            raise ValueError(
                f"a ControlNet takes latents of {channels} channels, but this model has "
                f"{latent_channels}; {_REMEDY}"
            )
        control = control.previous_controlnet
