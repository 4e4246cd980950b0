"""From gradients to an update: clip, step, forget; with gradients in float32 or in bfloat16.

Under bf16 autocast the gradient of a layer's weight is computed in bfloat16, and only then widened
to the weight's float32. Kept in bfloat16 until the update it is the same number in half of the
memory. A sum over micro-batches or processes needs more bits, so `Bf16GradOptimizer` is for updates
of a single backward pass, and `PreparedOptimizer` for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from training.config import RunConfig
from training.optim.optimizer import optimizer_class

CHUNK_BYTES = 2**28
"""Bytes of float32 weights whose gradients are widened together."""
AT_ONCE_BYTES = 2**25
"""Bytes of weights whose gradients are widened by the same few kernels: one for each of a small
network's weights would take longer to start than to run."""


class ClippingOptimizer(Protocol):
    """What the loop asks of an optimizer after the backward pass, in this order.

    None of it makes the CPU wait for the device: the norm stays there until the loop reads it
    together with its other figures.
    """

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients to a norm of at most `max_norm`; returns the norm before, `()`."""
        ...

    def step(self) -> None:
        """Make the update; only for gradients whose norm is finite."""
        ...

    def zero_grad(self) -> None:
        """Drop all gradients, whether or not an update was made of them."""
        ...


class PreparedOptimizer:
    """The optimizer that `Accelerator.prepare` gives, with the scaler of fp16 where there is one.

    Args:
        accelerator: Knows the scaler.
        optimizer: The prepared one.
        parameters: Those that it trains.
    """

    def __init__(
        self, accelerator: Accelerator, optimizer: Any, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._accelerator = accelerator
        self._optimizer = optimizer
        self._parameters = parameters

    def clip(self, max_norm: float) -> Tensor:
        """As `ClippingOptimizer.clip`; in fp16 the gradients are unscaled first."""
        norm = self._accelerator.clip_grad_norm_(self._parameters, max_norm)
        assert isinstance(norm, Tensor)
        if self._accelerator.scaler is not None:
            # Unscaling has looked for an overflow, on the device: after one the scale falls, after
            # many updates without one it rises.
            self._accelerator.scaler.update()
        return norm

    def step(self) -> None:
        """As `ClippingOptimizer.step`."""
        if self._accelerator.scaler is None:
            self._optimizer.step()
        else:
            # By way of the scaler, optimizers without fused kernels would ask the device again
            # whether the gradients are finite. Here the caller has seen it in their norm.
            self._optimizer.optimizer.step()

    def zero_grad(self) -> None:
        """As `ClippingOptimizer.zero_grad`."""
        self._optimizer.zero_grad()


class Bf16GradOptimizer:
    """Keeps gradients of layers in bfloat16 from the backward pass to the update.

    Norm and update are to the bit those of `clip_grad_norm_` and the optimizer's own step. Biases,
    normalisations and whatever else autocast leaves in float32 keep their gradients as they are.

    Args:
        module: Its weights are float32, and each layer is used once in a forward pass.
        optimizer: Trains them. If `can_step_in_chunks`, it steps for one chunk of the weights
            after another, so that only one chunk's gradients are widened at a time.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._factor = torch.ones(())
        for weight in autocast_weights(module):
            weight.register_post_accumulate_grad_hook(self._take)

    def _take(self, weight: Tensor) -> None:
        """Take a gradient from autograd in the bits that it was computed in.

        It runs as soon as the weight's gradient is complete, so the float32 gradients of two layers
        are never there at the same time.
        """
        assert isinstance(weight, nn.Parameter) and weight.grad is not None
        assert weight not in self._gradients, "gradients of an earlier backward pass are still here"
        self._gradients[weight] = weight.grad.bfloat16()
        weight.grad = None

    def clip(self, max_norm: float) -> Tensor:
        """As `ClippingOptimizer.clip`, but the gradients are only scaled in `step`.

        In bfloat16 the scaled ones would be rounded.
        """
        left = {p: p.grad for p in self._trained if p.grad is not None}
        norms: dict[nn.Parameter, Tensor] = {}
        for group in (self._gradients, left):  # of one type each: few kernels do for all of them
            if group:
                found = torch._foreach_norm(list(group.values()), 2, dtype=torch.float32)  # pyright: ignore[reportPrivateImportUsage]
                norms |= zip(group, found, strict=True)
        # In the order of `clip_grad_norm_`, so that the sum has the same bits.
        in_order = [norms[p] for p in self._trained if p in norms]
        norm = torch.linalg.vector_norm(torch.stack(in_order))
        self._factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ has it
        return norm

    def step(self) -> None:
        """As `ClippingOptimizer.step`; leaves no gradients."""
        for chunk in self._chunks():
            narrow = [p for p in chunk if self._gradients[p].dtype != p.dtype]
            for part in _grouped(narrow, AT_ONCE_BYTES):
                widened = [torch.empty_like(parameter) for parameter in part]
                torch._foreach_copy_(widened, [self._gradients[p] for p in part])  # pyright: ignore[reportPrivateImportUsage]
                self._gradients |= zip(part, widened, strict=True)
            gradients = [self._gradients.pop(p) for p in chunk]
            torch._foreach_mul_(gradients, self._factor)  # pyright: ignore[reportPrivateImportUsage]
            for parameter, gradient in zip(chunk, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()  # passes over parameters without a gradient
            self._optimizer.zero_grad(set_to_none=True)

    def _chunks(self) -> list[list[nn.Parameter]]:
        """Parameters with gradients, in groups that are updated together.

        All gradients are taken from the parameters first: whatever has one is part of a step.
        """
        for parameter in self._trained:
            if parameter.grad is not None:
                self._gradients[parameter], parameter.grad = parameter.grad, None
        having = [parameter for parameter in self._trained if parameter in self._gradients]
        if can_step_in_chunks(type(self._optimizer)):
            return list(_grouped(having, CHUNK_BYTES))
        return [having] if having else []

    def zero_grad(self) -> None:
        """As `ClippingOptimizer.zero_grad`."""
        self._gradients.clear()
        self._optimizer.zero_grad(set_to_none=True)


def _grouped(parameters: list[nn.Parameter], size: int) -> Iterator[list[nn.Parameter]]:
    """The parameters in their order, in groups that end where they reach `size` bytes."""
    group: list[nn.Parameter] = []
    for parameter in parameters:
        group.append(parameter)
        if sum(p.nbytes for p in group) >= size:
            yield group
            group = []
    if group:
        yield group


def clipping_optimizer(
    config: RunConfig,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    prepared: Any,
) -> ClippingOptimizer:
    """The one of the two that suits a run.

    Args:
        config: The run.
        accelerator: Devices, processes and precision.
        module: What is trained.
        optimizer: As it was built.
        prepared: The same as `accelerator.prepare` gives it.
    """
    # torchrun wraps the module even for one process, and the wrapper fills in gradients that a
    # hook takes away.
    wrapped = accelerator.distributed_type != DistributedType.NO
    if keeps_bf16_grads(config, accelerator.num_processes) and not wrapped:
        return Bf16GradOptimizer(module, optimizer)
    trained = [p for p in module.parameters() if p.requires_grad]
    return PreparedOptimizer(accelerator, prepared, trained)


def keeps_bf16_grads(config: RunConfig, processes: int) -> bool:
    """Whether a run's gradients have no more bits than bfloat16: computed in it, and no sums.

    Those of a CUDA graph stay where it writes them, and are of a small network.
    """
    single = config.accumulate == processes == 1 and not config.cuda_graphs
    return config.precision == "bf16" and single


def autocast_weights(module: nn.Module) -> list[nn.Parameter]:
    """Trained weights that autocast casts: those of linear layers and convolutions."""
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    weights = (layer.get_parameter("weight") for layer in layers)
    return [weight for weight in weights if weight.requires_grad]


def can_step_in_chunks(optimizer: type[torch.optim.Optimizer]) -> bool:
    """Whether a step for some weights and one for the others are a step for all.

    True of torch's optimizers, which treat each weight by itself. Others may count their steps.
    """
    return optimizer.__module__.startswith("torch.optim")


def grad_bytes_at_update(module: nn.Module, config: RunConfig, processes: int) -> int:
    """Most bytes of gradients that live at once while a run makes an update."""
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    if not keeps_bf16_grads(config, processes):
        return trained
    saved = sum(weight.nbytes for weight in autocast_weights(module)) // 2
    chunked = can_step_in_chunks(optimizer_class(config.optim.name))
    widened = CHUNK_BYTES // 2 if chunked else saved
    return trained - saved + min(saved, widened)
