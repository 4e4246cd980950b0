"""Gradients between the backward pass and the update, in the bits that they have.

Under bf16 autocast the gradient of a layer's weight is computed in 16 bits, and only then widened
to the weight's float32. Kept in the 16 bits until the update it is the same number in half of the
memory. A sum over micro-batches or processes has more bits, so this is for updates of one backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from training.config import RunConfig
from training.optim.optimizer import optimizer_class

AT_ONCE = 2**28
"""Bytes of weights whose gradients are widened together."""


def have_sixteen_bits(config: RunConfig, processes: int) -> bool:
    """Whether the gradients of a run have no more bits than bfloat16 has."""
    return config.precision == "bf16" and config.accumulate == processes == 1


def layer_weights(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights that autocast casts."""
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    weights = (layer.get_parameter("weight") for layer in layers)
    return [weight for weight in weights if weight.requires_grad]


def takes_parts(optimizer: type[torch.optim.Optimizer]) -> bool:
    """Whether a step for some weights and one for the others are a step for all.

    True of torch's optimizers, which treat each weight by itself. Others may count their steps.
    """
    return optimizer.__module__.startswith("torch.optim")


def bytes_at_update(module: nn.Module, config: RunConfig, processes: int) -> int:
    """Most bytes of gradients while the update of a run is made."""
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    if not have_sixteen_bits(config, processes):
        return trained
    spared = sum(weight.nbytes for weight in layer_weights(module)) // 2
    widened = AT_ONCE // 2 if takes_parts(optimizer_class(config.optim.name)) else spared
    return trained - spared + min(spared, widened)


class SixteenBitGradients:
    """Takes a module's gradients from the backward pass to the update.

    Norm and update are to the bit those of `clip_grad_norm_` and the optimizer's own step. Biases,
    normalisations and whatever else autocast leaves in float32 keep their gradients.

    Args:
        module: Float32 weights, those of its layers each used once in a forward pass.
        optimizer: Of what is trained of them. One that `takes_parts` makes its step for a part of
            the weights at a time.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._kept: dict[nn.Parameter, Tensor] = {}
        self._factor = torch.ones(())
        for weight in layer_weights(module):
            weight.register_post_accumulate_grad_hook(self._keep)

    def _keep(self, weight: Tensor) -> None:
        assert isinstance(weight, nn.Parameter) and weight.grad is not None
        assert weight not in self._kept, "gradients of an earlier backward pass are still here"
        self._kept[weight] = weight.grad.bfloat16()
        weight.grad = None

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients of the next step to a norm of at most `largest`; the norm before."""
        gradients = (self._kept.get(p, p.grad) for p in self._trained)
        norms = [torch.linalg.vector_norm(g.float()) for g in gradients if g is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self._factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def step(self) -> None:
        """Make the update; no gradient is left."""
        for part in self._parts():
            for parameter in part:
                gradient = self._kept.pop(parameter)
                parameter.grad = gradient.to(parameter.dtype).mul_(self._factor)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _parts(self) -> Iterator[list[nn.Parameter]]:
        """All parameters with gradients; these are kept until their part comes."""
        for parameter in self._trained:
            if parameter.grad is not None:
                self._kept[parameter], parameter.grad = parameter.grad, None
        in_parts = takes_parts(type(self._optimizer))
        part, size = [], 0
        for parameter in self._trained:
            if parameter not in self._kept:
                continue
            part.append(parameter)
            size += parameter.nbytes
            if in_parts and size >= AT_ONCE:
                yield part
                part, size = [], 0
        if part:
            yield part

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._kept.clear()
        self._optimizer.zero_grad(set_to_none=True)
