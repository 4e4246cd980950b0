"""Patches of other nodes that can have no effect on our network are named in the page.

The host's UNet calls every patch that is made for it. What is left are patches of places that other
architectures have, and patches that look for widths or sizes which a small model does not have.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from .conditioning import check_order, is_same
from .page import warn

WRAPPER = "paint_by_example"
"""Name of our own wrapper in a patcher of the host."""

Place = tuple[str, str | int] | tuple[str, int, int]

_WATCHED = {
    "attn1_patch",
    "attn1_output_patch",
    "attn2_patch",
    "attn2_output_patch",
    "middle_patch",
    "input_block_patch",
    "input_block_patch_after_skip",
    "output_block_patch",
}
"""Patches by tensors in, tensors out."""

PATCHES = _WATCHED | {"emb_patch", "middle_block_after_patch", "forward_timestep_embed_patch"}
"""All that the host's UNet calls."""


def attention_places(unet: UNetModel) -> set[Place]:
    """Where attentions can be replaced: (part, block), and (part, block, transformer block)."""
    parts = {"input": unet.input_blocks, "middle": [unet.middle_block]}
    places: set[Place] = set()
    for part, blocks in (parts | {"output": unet.output_blocks}).items():
        for number, block in enumerate(blocks):
            for layer in block:
                if isinstance(layer, SpatialTransformer):
                    places.add((part, number))
                    places |= {(part, number, i) for i in range(len(layer.transformer_blocks))}
    return places


def patches_in(options: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Kind, place (empty for kinds without one) and patch of all in `transformer_options`."""
    for kind, replaced in options.get("patches_replace", {}).items():
        for place, patch in replaced.items():
            yield kind, place, patch
    for kind, patches in options.get("patches", {}).items():
        for patch in patches:
            yield kind, (), patch


def warn_of_absent(options: dict[str, Any], places: set[Place]) -> None:
    """Name the nodes that are made for another network, by the places that they patch.

    A few absent places are no reason: patches for Stable Diffusion list one that not even the
    host's own network has.

    Args:
        options: The host's `transformer_options` of a call.
        places: From `attention_places`.
    """
    absent: dict[str, list[str]] = {}
    present: Counter[str] = Counter()
    for kind, place, patch in patches_in(options):
        if kind in PATCHES or (kind in ("attn1", "attn2") and place in places):
            present[owner_of(patch)] += 1
        else:
            where = map(str, place if isinstance(place, tuple) else (place,))
            absent.setdefault(owner_of(patch), []).append(" ".join([kind, *where]))
    for owner, where in absent.items():
        some = present[owner]
        if some >= len(where):
            continue
        found = "has no effect: this model's network has none of the places that it patches, such"
        found += f" as {where[0]}"
        if some:
            found = f"is made for another network: this model's has {some} of the"
            found += f" {some + len(where)} places that it patches, but not {where[0]}"
        warn(f"{owner} {found}; remove the node, or use it with the models that it is made for")


def warn_of_unmerged(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Name the weights that a merged model has in another shape; the host leaves them out."""
    left = [
        name
        for name, patches in patcher.patches.items()
        for _, merged, *_ in patches
        if isinstance(merged, list)
        and merged[0][0].shape != comfy.utils.get_attr(patcher.model, name).shape
    ]
    if left:
        warn(
            f"merging leaves out {', '.join(dict.fromkeys(left))}, whose shape differs in the "
            "other model; all other weights are merged"
        )


@contextlib.contextmanager
def patches_named(options: dict[str, Any]) -> Iterator[None]:
    """Name the patches in force where a call fails.

    Raises:
        ValueError: In place of torch's error, if there are patches and memory is not the reason.
    """
    try:
        yield
    except RuntimeError as error:
        owners = sorted({owner_of(patch) for *_, patch in patches_in(options)})
        if not owners or comfy.model_management.is_oom(error):
            raise
        raise ValueError(
            f"the model cannot run with the patches of {', '.join(owners)} ({error}); remove the "
            "node, or use it with a checkpoint of Stable Diffusion 1.5's sizes"
        ) from error


class Watched:
    """A patch that remembers whether it has ever changed anything."""

    def __init__(self, patch: Callable[..., Any]) -> None:
        self.patch = patch
        self.acted = False

    def __call__(self, *args: Any) -> Any:
        if self.acted or torch.compiler.is_compiling():
            self.acted = True
            return self.patch(*args)
        # Copies, because patches write into what they get.
        before = [argument.clone() for argument in args if isinstance(argument, Tensor)]
        result = self.patch(*args)
        after = result if isinstance(result, tuple) else (result,)
        found = [a for a in after if isinstance(a, Tensor)]
        self.acted = len(found) != len(before) or not all(map(torch.equal, before, found))
        return result


def sample_watched(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The host's sampling, after a look at its conditionings, and with an eye on its patches.

    A wrapper of the host for `WrappersMP.OUTER_SAMPLE`.

    Raises:
        ValueError: Positive and negative are swapped.
    """
    guider = executor.class_obj
    positive, negative = (guider.conds.get(name, []) for name in ("positive", "negative"))
    check_order(positive, negative)
    if is_same(positive, negative):
        warn(
            "positive and negative are the same, so similarity (cfg) changes nothing; connect the "
            "negative of Exemplar Encoder to negative"
        )
    warn_of_unmerged(guider.model_patcher)
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    options = guider.model_options["transformer_options"]
    patches = options.get("patches", {})
    for kind in patches.keys() & _WATCHED:
        # Those with weights of their own are moved by the host, which needs to see them.
        patches[kind] = [p if hasattr(p, "to") else Watched(p) for p in patches[kind]]
    try:
        output = executor(*args, **kwargs)
    finally:
        guider.model_options = before
    watched = [patch for *_, patch in patches_in(options) if isinstance(patch, Watched)]
    acted = {owner_of(patch.patch) for patch in watched if patch.acted}
    for owner in dict.fromkeys(owner_of(patch.patch) for patch in watched):
        if owner not in acted:
            warn(
                f"{owner} changed nothing: this model's network has none of the widths or sizes "
                "that it looks for, or it was off at every step; remove the node or change its "
                "settings"
            )
    return output


def owner_of(patch: Any) -> str:
    """The name of the node or class that a patch comes from, as its qualified name tells."""
    return getattr(patch, "__qualname__", type(patch).__qualname__).split(".")[0]
