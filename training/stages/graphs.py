"""CUDA graphs of the networks that are trained.

A small network's kernels end sooner than Python starts the next ones. A graph starts all kernels of
a forward or backward pass at once (Nguyen et al., Accelerating PyTorch with CUDA Graphs, 2021).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def capture(calls: Sequence[tuple[nn.Module, tuple[Tensor, ...]]], precision: str) -> None:
    """Record forward and backward passes of modules, which replay them from then on in training.

    In evaluation they run as before.

    Args:
        calls: Modules, in training, in the order in which they are called, each with arguments of
            the shapes that it will be given: on a CUDA device, requiring a gradient where what
            comes in will.
        precision: Of the run: `"no"`, `"bf16"` or `"fp16"`.

    Raises:
        ValueError: No CUDA device, or several processes, whose exchange a graph does not hold.
    """
    modules, arguments = zip(*calls, strict=True)
    device, processes = arguments[0][0].device, int(os.environ.get("WORLD_SIZE", 1))
    if device.type != "cuda" or processes > 1:
        raise ValueError(
            f"cuda_graphs needs a CUDA card and one process, and this is {device} and {processes}; "
            "set it to false"
        )
    dtype = PRECISIONS[precision]
    # Casts of the weights belong into the graph: the cache would keep those of its first run.
    with torch.autocast("cuda", dtype, enabled=precision != "no", cache_enabled=False):
        torch.cuda.make_graphed_callables(modules, arguments, allow_unused_input=True)
