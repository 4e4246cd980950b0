"""Attention backends with one signature, and the choice between them.

Every backend maps `(q, k, v, heads)` to the attended values: `q` is `(B, N, C)`, `k` and `v` are
`(B, M, C)`, the result is `(B, N, C)`, and `C` is split into `heads` equal parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def reference_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention written out: slow, what the backends are compared with."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, H, N, M)
    return rearrange(weights @ v, "b h n d -> b n (h d)")


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's `scaled_dot_product_attention`, layout `(B, H, N, D)`."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """xformers' memory-efficient attention, layout `(B, N, H, D)`; CUDA only."""
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    q, k, v = (rearrange(x, "b n (h d) -> b n h d", h=heads).contiguous() for x in (q, k, v))
    return rearrange(memory_efficient_attention(q, k, v), "b n h d -> b n (h d)")


def xformers_works(device: torch.device | str, dtype: torch.dtype = torch.float16) -> bool:
    """Whether xformers works on this device.

    Importing it proves nothing: a build for another torch imports and then finds no kernel. So one
    small call is made.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return False  # xformers has no CPU kernel
    x = torch.zeros(1, 8, 64, device=device, dtype=dtype)
    try:
        xformers_attention(x, x, x, 1)
    except (ImportError, OSError, AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


BACKENDS: dict[str, Attention] = {
    "sdpa": sdpa_attention,
    "xformers": xformers_attention,
}


def select_attention(
    name: str = "auto", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float16
) -> Attention:
    """The backend of a name; `"auto"` takes xformers where it works, else SDPA.

    Args:
        name: `"auto"` or a key of `BACKENDS`.
        device: Device that the model will run on.
        dtype: Type that it will compute in.

    Raises:
        ValueError: Unknown name, or xformers by name where it does not work.
    """
    if name == "auto":
        return xformers_attention if xformers_works(device, dtype) else sdpa_attention
    if name not in BACKENDS:
        raise ValueError(f"unknown attention {name!r}; choose from {['auto', *BACKENDS]}")
    if name == "xformers" and not xformers_works(device, dtype):
        raise ValueError(
            f"xformers attention does not work on {device} here (not installed, or built for "
            "another torch or device); use 'auto' or 'sdpa', or install a matching xformers"
        )
    return BACKENDS[name]
