"""Autocast without lasting copies of the weights.

`torch.autocast` copies every matrix and kernel to 16 bits, and keeps the copies for the backward
pass: half as much memory again as the float32 weights take, while the gradients build up beside
them. Casting anew when the backward pass comes to a layer gives the same bits, and costs next to
nothing compared with the layer's products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def lean_autocast(device_type: str) -> AbstractContextManager[None]:
    """`recast_weights` where it helps: in a forward pass under autocast that keeps a graph."""
    under_autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(
        device_type
    )
    if under_autocast and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return recast_weights(device_type)
    return nullcontext()


@contextmanager
def recast_weights(device_type: str) -> Iterator[None]:
    """A forward pass in here, under the autocast that is on, keeps no cast copies of weights.

    Gradients are to the bit those of plain autocast. Only trained weights are recognised; blocks
    under gradient checkpointing have hooks of their own and keep no copies anyway. Weights must
    not change between the two passes, which is checked.

    Args:
        device_type: Whose autocast is on.
    """
    dtype = torch.get_autocast_dtype(device_type)
    # Autocast's cache, which would hold the copies too, helps only weights that are used twice.
    with (
        torch.autocast(device_type, dtype, cache_enabled=False),
        saved_tensors_hooks(_pack, _unpack),
    ):
        yield


def _pack(tensor: Tensor) -> Any:
    """For a cast weight, or its transpose, how to cast it again; else the tensor itself.

    The graph tells the two apart: such a tensor comes out of a cast (`ToCopy`), directly or by way
    of a transpose (`T`, from linear layers), and what was cast is a leaf that holds a parameter.
    """
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
    # Shape and stride are those of the transpose, if it was one that was kept.
    weight, version, dtype, shape, stride = packed
    assert weight._version == version, "a weight was changed between forward and backward pass"
    return weight.detach().to(dtype).as_strided(shape, stride)
