"""Optimizers by their import path, and the learning rate as a function of the update."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training.config import OptimConfig


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Rate of update number `update` (from 0): linear warm-up, then constant or a half cosine."""
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    progress = (update - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class at an import path such as `torch.optim.AdamW`.

    Raises:
        ValueError: No such module or class, or a class that is not an optimizer.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(
            f"optim.name {name!r} cannot be imported ({error}); give the path of an optimizer's "
            "class, such as torch.optim.AdamW, and install its package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"optim.name {name!r} is not an optimizer; give the path of its class")
    return found


def build_optimizer(
    config: OptimConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The configured optimizer over these parameters.

    Betas and weight decay are passed to classes that take them, and so is `fused`, which asks for
    torch's fused kernels. `options` are passed as they are, and override all of these.

    Raises:
        ValueError: As `optimizer_class`, or options that the class does not take.
    """
    cls = optimizer_class(config.name)
    try:
        return cls(list(parameters), **_arguments(config, cls))
    except (TypeError, ValueError, RuntimeError) as error:
        known = ", ".join(list(inspect.signature(cls).parameters)[1:])
        raise ValueError(
            f"{config.name} does not accept optim.options ({error}); its arguments are {known}"
        ) from error


def _arguments(config: OptimConfig, cls: type) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    known = inspect.signature(cls).parameters
    return {name: value for name, value in defaults.items() if name in known} | config.options


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any], config: OptimConfig) -> None:
    """Load saved moments; arguments stay as configured, which may differ from the saved ones."""
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        group |= {n: v for n, v in _arguments(config, type(optimizer)).items() if n in group}
