"""Attention inside the host's UNet: the loader's choice, and the cross-attention to one token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
from torch import Tensor

from ...pbe_model.networks.attention import Attention, select_attention
from ...pbe_model.networks.layers import one_token_attention

OVERRIDE = "optimized_attention_override"
"""Entry of the host's `transformer_options` for an attention in place of its own."""

_NO_CHANGE = {"attn_precision", "transformer_options", "_inside_attn_wrapper"}


class AttentionOverride:
    """A backend of the package in place of the host's attention, for calls of the plain kind."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def __call__(
        self,
        host_attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """As the host calls overrides; masks and other layouts are left to the host."""
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        if given - _NO_CHANGE or any(argument is not None for argument in args):
            return host_attention(q, k, v, heads, *args, **kwargs)
        return self.attention(q, k, v, heads)


def attention_override(name: str) -> AttentionOverride | None:
    """What the name in the loader's list means; None leaves the choice to the host.

    Raises:
        ValueError: xformers was asked for and does not work here.
    """
    if name == "auto":
        return None
    device = comfy.model_management.get_torch_device()
    return AttentionOverride(select_attention({"pytorch": "sdpa"}.get(name, name), device))


class CrossAttention(comfy.ldm.modules.attention.CrossAttention):
    """The host's cross-attention, with the package's shortcut for a single token.

    Patches that add tokens get the general way, and so do attentions that other nodes put in place
    of the host's: they need not be a softmax.
    """

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Tensor:
        """`(B, N, C)` and `(B, M, D)` to `(B, N, C)`."""
        options = transformer_options or {}
        plain = isinstance(options.get(OVERRIDE), AttentionOverride | None)
        tokens = [t for t in (context, value) if t is not None]
        if tokens and plain and mask is None and all(t.shape[1] == 1 for t in tokens):
            # Repeated and not expanded, because patches write into it.
            token = one_token_attention(self.to_v, self.to_out, tokens[-1])
            return token.repeat(1, x.shape[1], 1)
        return super().forward(x, context, value, mask, options)
