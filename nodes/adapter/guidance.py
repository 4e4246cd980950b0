"""Guidance in a part of the schedule only (Kynkäänniemi et al., arXiv 2404.07724)."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor


def limit_guidance(
    model: comfy.model_patcher.ModelPatcher, start: float, end: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that is guided in a part of its schedule; elsewhere the scale is 1.

    The host leaves out the negative's branch at a scale of 1, so such a step costs half.

    Args:
        model: Any model of the host.
        start: Share of the schedule from which on there is guidance; 0 is pure noise.
        end: Share of the schedule up to which there is.
    """
    levels = model.get_model_object("model_sampling")
    highest, lowest = levels.percent_to_sigma(start), levels.percent_to_sigma(end)

    def predict(
        executor: WrapperExecutor, x: Tensor, sigma: Tensor, options: dict[str, Any], seed: Any
    ) -> Tensor:
        guider = executor.class_obj
        scale = guider.cfg
        if not lowest <= float(sigma.max()) <= highest:
            guider.cfg = 1.0
        try:
            return executor(x, sigma, options, seed)
        finally:
            guider.cfg = scale

    limited = model.clone()
    limited.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "pbe_guidance_interval", predict)
    return limited
