"""The exemplar encoder under the host's memory management."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
from torch import Tensor

from ...pbe_model.networks.exemplar_encoder import ExemplarEncoder


@dataclass(frozen=True, eq=False)
class HostEncoder:
    """The PBE_ENCODER socket: our exemplar encoder under the host's memory management.

    The tower is transformers' own, without the host's casting layers, so it moves as one unit and
    stays in float32: it runs once an edit, and its one token decides the picture.
    """

    model: ExemplarEncoder
    patcher: comfy.model_patcher.ModelPatcher

    @classmethod
    def wrap(cls, model: ExemplarEncoder) -> HostEncoder:
        """Take over a loaded encoder."""
        management = comfy.model_management
        patcher = comfy.model_patcher.ModelPatcher(
            model.float().eval().requires_grad_(False),
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        return cls(model, patcher)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts of exemplars, and the learnable vector as context.

        Args:
            pixels: (B, 3, S, S), normalised.

        Returns:
            (B, M, D) twice, on the host's device for intermediate results.
        """
        comfy.model_management.load_models_gpu([self.patcher])
        result = comfy.model_management.intermediate_device()
        context = self.model(pixels.to(self.patcher.load_device)).to(result)
        return context, self.model.unconditional(len(context)).to(result)
