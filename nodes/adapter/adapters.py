"""LoRAs on our MODEL: what would change nothing, or only a part, is refused where it is loaded.

The host notes names that fit nothing, and shapes that fit no layer, in its log alone. Its loaders
end in a patcher's `add_patches`, so that is the place to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.utils
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor

from ...pbe_model.checkpoints.adapter_math import fits

_ROLES = {
    LoRAAdapter: ("up", "down", "alpha", "mid", "dora_scale"),
    LoHaAdapter: (
        "hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "dora_scale",
    ),
    LoKrAdapter: (
        "lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b",
        "lokr_t2", "dora_scale",
    ),
}  # fmt: skip
"""What the host's adapters hold, in their order."""

_CONVERT = "load it with Load LoRA (Paint by Example)"
_REMEDY = (
    "give a LoRA for Stable Diffusion 1.x with a checkpoint of its sizes, or one that was trained "
    "on this checkpoint"
)


@lru_cache(maxsize=4)
def checking(
    patcher: type[comfy.model_patcher.ModelPatcher],
) -> type[comfy.model_patcher.ModelPatcher]:
    """A class of the host's patchers that looks at what it is given."""

    class Checking(patcher):
        def add_patches(
            self, patches: Mapping[Any, Any], strength_patch: float = 1.0, *args: Any, **kwargs: Any
        ) -> list[Any]:
            check_patches(self.model, patches)
            return super().add_patches(patches, strength_patch, *args, **kwargs)

    Checking.__name__ = Checking.__qualname__ = patcher.__name__
    return Checking


def with_adapter(
    model: comfy.model_patcher.ModelPatcher, tensors: Mapping[str, Tensor], strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, int, list[str]]:
    """A MODEL with an adapter.

    Args:
        model: Left as it is.
        tensors: Under the names of kohya's trainers.
        strength: Factor of the change.

    Returns:
        The MODEL, how many of its layers change, and the names of layers that it does not have.

    Raises:
        ValueError: As `check_patches`.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    layers = dict.fromkeys(name.partition(".")[0] for name in tensors)
    patches = comfy.lora.load_lora(dict(tensors), known, log_missing=False)
    patched = model.clone()
    patched.add_patches(patches, strength)
    unknown = [layer for layer in layers if layer not in known]
    return patched, len(layers) - len(unknown), unknown


def check_patches(model: Any, patches: Mapping[Any, Any]) -> None:
    """Refuse patches of weights that are none, or that the host would leave out.

    Args:
        model: The host's, whose weights are patched.
        patches: By names of weights, as a patcher takes them.

    Raises:
        ValueError: There are none, or one does not fit its weight.
    """
    if not patches:
        raise ValueError(
            "this LoRA changes nothing: none of its names is that of a layer of this model as "
            "ComfyUI knows them; give one for Stable Diffusion 1.x, and if PEFT or diffusers wrote "
            f"it, {_CONVERT}"
        )
    if any(isinstance(p, LoKrAdapter) and p.weights[7] is not None for p in patches.values()):
        raise ValueError(
            "this LoRA is a Kronecker product with cores (LoKr, lokr_t2), which ComfyUI cannot "
            f"apply; {_CONVERT}"
        )
    bad = [
        name
        for name, patch in patches.items()
        if isinstance(name, str) and not _fits(comfy.utils.get_attr(model, name), patch)
    ]
    if bad:
        shape = tuple(comfy.utils.get_attr(model, bad[0]).shape)
        raise ValueError(
            f"this LoRA is made for another model: {len(bad)} of its {len(patches)} changes do not "
            f"fit, such as that of {bad[0]}, which is {shape} here; {_REMEDY}"
        )


def _fits(weight: Tensor, patch: Any) -> bool:
    """Whether a patch goes with a weight; kinds that are not known here are left to the host."""
    if roles := _ROLES.get(type(patch)):
        held = zip(roles, patch.weights, strict=False)
        return fits({role: part for role, part in held if isinstance(part, Tensor)}, weight, None)
    match patch:
        case ("diff", (Tensor() as difference,)):
            return difference.shape == weight.shape
    return True
