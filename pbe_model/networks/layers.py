"""Building blocks of the denoiser: embedding, residual and transformer blocks.

The architecture is that of latent diffusion (Rombach et al., arXiv 2112.10752), attribute names
are the keys of the official checkpoint.

Guidance runs two branches that differ only in their context. Callers may pass `x` once and a
context whose batch is a multiple of it: the branches then share all work up to the first
cross-attention, where the batch grows (`match_batch`).
"""

from __future__ import annotations

import math

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
        self, channels: int, emb_channels: int, out_channels: int, norm_groups: int = 32
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the official dropout of 0; keeps the key `out_layers.3`
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + match_batch(self.emb_layers(emb), h.shape[0])[:, :, None, None].to(h.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halve the sides with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Grow to the given sides (nearest), then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class GEGLU(nn.Module):
    """Linear layer gated by the GELU of its second half (arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """The transformer block's MLP, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, 4 * dim),
            nn.Identity(),  # the official dropout of 0; keeps the key `net.2`
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def one_token_attention(to_v: nn.Module, to_out: nn.Module, context: Tensor) -> Tensor:
    """Cross-attention to a context of one token: `(B, 1, D)` to `(B, 1, C)`, for every query.

    The softmax over one key is 1 whatever the query is, so the attended value is the token's.
    """
    assert context.shape[1] == 1, context.shape
    return to_out(to_v(context))


class CrossAttention(nn.Module):
    """Multi-head attention of `x` over a context, or over itself."""

    def __init__(
        self, dim: int, context_dim: int, heads: int, attention: Attention = sdpa_attention
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`(B, N, C)` and `(B, M, D)` to `(B, N, C)`."""
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(self.attention(q, k, v, self.heads))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each on a normalised residual branch."""

    def __init__(self, dim: int, context_dim: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads, attention)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, attention)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        # Here the guidance branches part: `x` may have one row for both, the context has two.
        x = match_batch(x + self.attn1(h, h), context.shape[0])
        if context.shape[1] == 1:
            # Exact, and `norm2`, query and key are not needed; see `UNet.inert_parameters`.
            x = x + one_token_attention(self.attn2.to_v, self.attn2.to_out, context)
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
        norm_groups: int = 32,
        attention: Attention = sdpa_attention,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [BasicTransformerBlock(channels, context_dim, heads, attention)]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`(B, C, H, W)` and `(K * B, M, D)` to `(K * B, C, H, W)`."""
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height).contiguous())
        return match_batch(x, h.shape[0]) + h
