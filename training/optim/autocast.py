"""Autocast without lasting copies of the weights.

Under `torch.autocast` every matrix and kernel is copied to 16 bits, and the copies live to the
backward pass: half of the float32 weights' memory once more, on top of the gradients that grow
there. Casting again when the backward pass comes to a layer gives the same bits and costs next to
nothing beside the layer's products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def lean_autocast(device_type: str) -> AbstractContextManager[None]:
    """`recast_weights` where it is of use: in a forward pass under autocast that is trained."""
    under_autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(
        device_type
    )
    if under_autocast and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return recast_weights(device_type)
    return nullcontext()


@contextmanager
def recast_weights(device_type: str) -> Iterator[None]:
    """A forward pass in here, in the autocast of `device_type` that is on, keeps no copy.

    Gradients are those of plain autocast, to the bit. Only weights that are trained are found;
    blocks under gradient checkpointing have hooks of their own and keep no copies anyway.
    Weights must not change between the passes (checked).
    """
    dtype = torch.get_autocast_dtype(device_type)
    # The cache spares the second cast of a weight that is used twice. None is here.
    with (
        torch.autocast(device_type, dtype, cache_enabled=False),
        saved_tensors_hooks(_pack, _unpack),
    ):
        yield


def _pack(tensor: Tensor) -> Any:
    """For a cast weight, or its transpose, how to cast it again; else the tensor itself."""
    node = tensor.grad_fn
    if node is not None and node.name() == "TBackward0":
        node = node.next_functions[0][0]
    if node is None or node.name() != "ToCopyBackward0":
        return tensor
    weight = getattr(node.next_functions[0][0], "variable", None)
    if not isinstance(weight, nn.Parameter):
        return tensor
    return weight, weight._version, tensor.dtype, tensor.shape, tensor.stride()


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    weight, version, dtype, shape, stride = packed
    assert weight._version == version, "a weight was changed between forward and backward pass"
    return weight.detach().to(dtype).as_strided(shape, stride)
