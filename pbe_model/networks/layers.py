"""Building blocks of the denoiser: embedding, residual and transformer blocks.

The architecture is that of latent diffusion (Rombach et al., arXiv 2112.10752), attribute names
are the keys of the official checkpoint. Layers come from an `operations` namespace: `torch.nn`
here, a host's own (with casting and offloading) there.

Guidance runs two branches that differ only in their context. Callers may pass `x` once and a
context whose batch is a multiple of it: the branches then share all work up to the first
cross-attention, where the batch grows (`match_batch`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Attention, sdpa_attention


def match_batch(x: Tensor, batch: int) -> Tensor:
    """Repeat `x` as a whole until it has `batch` rows; `batch` is a multiple of its own."""
    if x.shape[0] == batch:
        return x
    assert batch % x.shape[0] == 0, (batch, x.shape[0])
    return x.repeat(batch // x.shape[0], *(1 for _ in x.shape[1:]))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding, cosines first: `(B,)` timesteps to float32 `(B, dim)`."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, dim)


class ResBlock(nn.Module):
    """Two convolutions with the timestep embedding added between them."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        *,
        norm_groups: int = 32,
        operations: Any,
        **kw: Any,
    ) -> None:
        super().__init__()
        ops = operations
        self.in_layers = nn.Sequential(
            ops.GroupNorm(norm_groups, channels, **kw),
            nn.SiLU(),
            ops.Conv2d(channels, out_channels, 3, padding=1, **kw),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.Linear(emb_channels, out_channels, **kw))
        self.out_layers = nn.Sequential(
            ops.GroupNorm(norm_groups, out_channels, **kw),
            nn.SiLU(),
            nn.Identity(),  # the official dropout of 0; keeps the key `out_layers.3`
            ops.Conv2d(out_channels, out_channels, 3, padding=1, **kw),
        )
        self.skip_connection = (
            nn.Identity()
            if channels == out_channels
            else ops.Conv2d(channels, out_channels, 1, **kw)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + match_batch(self.emb_layers(emb), h.shape[0])[:, :, None, None].to(h.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halve the sides with a strided convolution."""

    def __init__(self, channels: int, *, operations: Any, **kw: Any) -> None:
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Grow to the given sides (nearest), then convolve."""

    def __init__(self, channels: int, *, operations: Any, **kw: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **kw)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class GEGLU(nn.Module):
    """Linear layer gated by the GELU of its second half (arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int, *, operations: Any, **kw: Any) -> None:
        super().__init__()
        self.proj = operations.Linear(dim_in, dim_out * 2, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """The transformer block's MLP, four times as wide inside."""

    def __init__(self, dim: int, *, operations: Any, **kw: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, 4 * dim, operations=operations, **kw),
            nn.Identity(),  # the official dropout of 0; keeps the key `net.2`
            operations.Linear(4 * dim, dim, **kw),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    """Multi-head attention of `x` over a context, or over itself."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        *,
        attention: Attention = sdpa_attention,
        operations: Any,
        **kw: Any,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.to_q = operations.Linear(dim, dim, bias=False, **kw)
        self.to_k = operations.Linear(context_dim, dim, bias=False, **kw)
        self.to_v = operations.Linear(context_dim, dim, bias=False, **kw)
        self.to_out = nn.Sequential(operations.Linear(dim, dim, **kw), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`(B, N, C)` and `(B, M, D)` to `(B, N, C)`."""
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(self.attention(q, k, v, self.heads))

    def of_one_token(self, context: Tensor) -> Tensor:
        """`forward` for a context of one token: `(B, 1, D)` to `(B, 1, C)`, for every query.

        The softmax over one key is 1 whatever the query is, so the attended value is the token's.
        """
        return self.to_out(self.to_v(context))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each on a normalised residual branch."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        *,
        attention: Attention = sdpa_attention,
        operations: Any,
        **kw: Any,
    ) -> None:
        super().__init__()
        shared = {"attention": attention, "operations": operations, **kw}
        self.attn1 = CrossAttention(dim, dim, heads, **shared)
        self.ff = FeedForward(dim, operations=operations, **kw)
        self.attn2 = CrossAttention(dim, context_dim, heads, **shared)
        self.norm1 = operations.LayerNorm(dim, **kw)
        self.norm2 = operations.LayerNorm(dim, **kw)
        self.norm3 = operations.LayerNorm(dim, **kw)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        # Here the guidance branches part: `x` may have one row for both, the context has two.
        x = match_batch(x + self.attn1(h, h), context.shape[0])
        if context.shape[1] == 1:
            # Exact, and `norm2`, query and key are not needed; see `UNet.inert_parameters`.
            x = x + self.attn2.of_one_token(context)
        else:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a feature map, as a residual."""

    def __init__(
        self,
        channels: int,
        context_dim: int,
        heads: int,
        *,
        norm_groups: int = 32,
        attention: Attention = sdpa_attention,
        operations: Any,
        **kw: Any,
    ) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(norm_groups, channels, eps=1e-6, **kw)
        self.proj_in = operations.Conv2d(channels, channels, 1, **kw)
        self.transformer_blocks = nn.ModuleList(
            [
                BasicTransformerBlock(
                    channels,
                    context_dim,
                    heads,
                    attention=attention,
                    operations=operations,
                    **kw,
                )
            ]
        )
        self.proj_out = operations.Conv2d(channels, channels, 1, **kw)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`(B, C, H, W)` and `(K * B, M, D)` to `(K * B, C, H, W)`."""
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height).contiguous())
        return match_batch(x, h.shape[0]) + h
