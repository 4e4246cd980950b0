"""Exponential moving average of the weights, for sampling and export."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's trainable parameters, with a short memory while training is young.

    Args:
        module: Its parameters are averaged; frozen ones are left out.
        decay: Weight of the old average in each update, in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {
            name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after update number `step` (from 1)."""
        decay = min(self.decay, step / (step + 9))
        parameters = dict(module.named_parameters())
        for name, average in self.average.items():
            average.lerp_(parameters[name], 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange average and parameters; a second call takes it back."""
        parameters = dict(module.named_parameters())
        for name, average in self.average.items():
            held = average.clone()
            average.copy_(parameters[name])
            parameters[name].copy_(held)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved averages; the names must agree."""
        assert state.keys() == self.average.keys()
        for name, value in state.items():
            self.average[name].copy_(value)
