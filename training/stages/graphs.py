"""Forward and backward pass of a loss as one CUDA graph.

A small network's kernels end sooner than Python starts the next ones. A graph starts all of them at
once (Nguyen et al., Accelerating PyTorch with CUDA Graphs, 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import RunConfig

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}

_WARM_UP = 3  # passes before recording, in which libraries choose kernels and compilers compile


def check(config: RunConfig, device: torch.device, processes: int) -> None:
    """Raise `ValueError` where a run asks for graphs that it cannot have."""
    for held, needed in (
        (device.type == "cuda", f"a CUDA card, and this is {device}"),
        (processes == 1, f"one process, and there are {processes}"),
        (config.accumulate == 1, f"accumulate = 1, and it is {config.accumulate}"),
        (config.precision in PRECISIONS, f"precision 'bf16' or 'no', not {config.precision!r}"),
    ):
        if not held:
            raise ValueError(f"cuda_graphs needs {needed}; set it to false")


class Graph:
    """Replays what it has recorded for one batch with the numbers of others.

    Args:
        module: The loss, in training, on a CUDA device. It may copy nothing from the CPU.
        batch: All later batches have its names, shapes and types.
        precision: Of the run, of `PRECISIONS`.
    """

    def __init__(self, module: nn.Module, batch: dict[str, Tensor], precision: str) -> None:
        self._module = module
        self._precision = precision
        self._batch = {name: tensor.clone() for name, tensor in batch.items()}
        trained = [p for p in module.parameters() if p.requires_grad]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._passes()
                for parameter in trained:
                    parameter.grad = None
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._values = self._passes()
        # Memory of the graph, which every replay writes anew.
        self._gradients = [(p, p.grad) for p in trained if p.grad is not None]

    def _passes(self) -> dict[str, Tensor]:
        dtype = PRECISIONS[self._precision]
        with torch.autocast("cuda", dtype, enabled=self._precision != "no", cache_enabled=False):
            values = self._module(self._batch)
        values["loss"].backward()
        return {name: value.detach() for name, value in values.items()}

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave the gradients of a batch in the parameters.

        Returns:
            What the loss gives, without gradients; valid until the next call.
        """
        for name, tensor in batch.items():
            self._batch[name].copy_(tensor)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return dict(self._values)
