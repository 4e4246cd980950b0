"""The host's attention behind the signature of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
from torch import Tensor

from ...pbe_model.networks.attention import Attention, sdpa_attention, select_attention


class HostAttention:
    """The host's own choice of attention; other packs override it in the options of a call."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    @contextlib.contextmanager
    def using(self, options: dict[str, Any]) -> Iterator[None]:
        """Pass on the options of the call in progress, and drop them after it."""
        self.options = options
        try:
            yield
        finally:
            self.options = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        # Looked up at call time: other packs replace it.
        attend = comfy.ldm.modules.attention.optimized_attention
        return attend(q, k, v, heads, transformer_options=self.options)


def attention_backend(name: str) -> Attention:
    """The attention of that name in the loader's list.

    Raises:
        ValueError: xformers was asked for and does not work here.
    """
    if name == "auto":
        return HostAttention()
    if name == "pytorch":
        return sdpa_attention
    return select_attention(name, comfy.model_management.get_torch_device())
