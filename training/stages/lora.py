"""Training low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) instead of all weights.

An adapter is a child module of its layer, added to the layer's output by a forward hook. So the
layers keep their classes, names and weights: a checkpoint loads as before, and what is trained is
all that is called `.lora.`. (The `peft` library wraps the layers instead, which renames every
weight of the model.) Files of adapters, and merging, are in `pbe_model.lora`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbe_model.checkpoints.lora import ALPHA, DOWN, UP, adaptable, merge, names_in_file
from pbe_model.model import PaintByExample
from training.config import LoRAConfig

_CHILD = "lora"


class LowRank(nn.Module):
    """What an adapter adds to the output of its layer: `alpha / rank * up(down(dropout(x)))`.

    `down` starts as torch starts a layer of its shape, `up` at zero: at first nothing is added.

    Args:
        layer: Linear, or a convolution (without groups), whose shape it has.
        rank: Width between the halves.
        alpha: Over the rank, the factor of what is added.
        dropout: Probability of dropping an input, from torch's global generator.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        rows, *columns = layer.weight.shape
        self.down = nn.Parameter(torch.empty(rank, *columns, device=layer.weight.device))
        self.up = nn.Parameter(
            torch.zeros(rows, rank, *(1 for _ in columns[1:]), device=layer.weight.device)
        )
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.alpha = alpha
        self.scale = alpha / rank
        self.hook = layer.register_forward_hook(_add)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        x = self.dropout(x)
        if isinstance(layer, nn.Conv2d):
            h = F.conv2d(x, self.down, stride=layer.stride, padding=layer.padding)  # pyright: ignore[reportArgumentType]
            return self.scale * F.conv2d(h, self.up)
        return self.scale * F.linear(F.linear(x, self.down), self.up)


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + layer.get_submodule(_CHILD)(layer, inputs[0])


def add_lora(model: PaintByExample, config: LoRAConfig) -> list[str]:
    """Freeze the model and give layers of it adapters that are trained in its place.

    Args:
        model: Its output does not change.
        config: With a rank above 0. A target is a part of a layer's name, such as `attn1`,
            `attn2.to_v`, `ff`, `proj_in` or `middle_block` in the denoiser; `mapper` is the
            exemplar's.

    Returns:
        The adapted layers' names. Queries and keys of cross-attention are never among them where
        there is one token: they are without effect.

    Raises:
        ValueError: A target that is part of no layer's name.
    """
    assert config.rank > 0
    inert = set()
    if model.config.tokens == "class":
        inert = {name.removesuffix(".weight") for name, _ in model.unet.inert_parameters()}
    layers = {
        name: layer
        for name, layer in adaptable(model).items()
        if name.removeprefix("unet.") not in inert
    }
    chosen: set[str] = set()
    for target in config.targets:
        matching = {name for name in layers if f".{target}." in f".{name}."}
        if not matching:
            raise ValueError(
                f"lora.targets has {target!r}, which is part of no layer's name that an adapter "
                "could change; give some of attn1, attn2, ff, proj_in, proj_out, mapper"
            )
        chosen |= matching
    model.requires_grad_(False)
    names = [name for name in layers if name in chosen]
    for name in names:
        layer = layers[name]
        adapter = LowRank(layer, config.rank, config.alpha or config.rank, config.dropout)
        layer.add_module(_CHILD, adapter)
    return names


def _adapters(model: PaintByExample) -> dict[str, LowRank]:
    return {
        name: adapter
        for name, layer in adaptable(model).items()
        if isinstance(adapter := getattr(layer, _CHILD, None), LowRank)
    }


def lora_state(model: PaintByExample) -> dict[str, Tensor]:
    """The adapters as `pbe_model.lora.save_lora` takes them."""
    tensors, adapters = {}, _adapters(model)
    names = names_in_file(adapters, model.config)
    for path, adapter in adapters.items():
        name = names[path]
        tensors[name + DOWN] = adapter.down.detach()
        tensors[name + UP] = adapter.up.detach()
        tensors[name + ALPHA] = torch.tensor(adapter.alpha)
    return tensors


def merge_lora(model: PaintByExample) -> None:
    """Add the adapters to the weights and remove them: the same function without their cost.

    Raises:
        ValueError: A weight that is not finite afterwards.
    """
    layers = adaptable(model)
    for name, adapter in _adapters(model).items():
        layer = layers[name]
        merge(name, layer.weight, adapter.up, adapter.down, adapter.scale)
        adapter.hook.remove()
        delattr(layer, _CHILD)
