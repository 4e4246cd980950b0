"""The denoiser: Stable Diffusion's UNet with nine input channels (arXiv 2211.13227, section 3).

Attribute names are the keys of the official checkpoint below `model.diffusion_model.`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import UNetConfig
from .attention import Attention, sdpa_attention
from .layers import (
    CrossAttention,
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    match_batch,
    timestep_embedding,
)


class UNet(nn.Module):
    """Predicts the noise in a latent from its neighbourhood and the exemplar's tokens.

    Args:
        config: Sizes.
        attention: Backend of self- and cross-attention.
    """

    def __init__(self, config: UNetConfig, *, attention: Attention = sdpa_attention) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        base, groups = config.model_channels, config.norm_groups
        emb = 4 * base

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(
                channels, config.context_dim, config.num_heads, groups, attention
            )

        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))

        channels, factor, skips = base, 1, [base]
        first = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                block = nn.ModuleList([ResBlock(channels, emb, base * mult, groups)])
                channels = base * mult
                if factor in config.attention_resolutions:
                    block.append(transformer(channels))
                self.input_blocks.append(block)
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
                factor *= 2

        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, emb, channels, groups),
                transformer(channels),
                ResBlock(channels, emb, channels, groups),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                block = nn.ModuleList([ResBlock(channels + skips.pop(), emb, base * mult, groups)])
                channels = base * mult
                if factor in config.attention_resolutions:
                    block.append(transformer(channels))
                if level > 0 and i == config.num_res_blocks:
                    block.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(block)

        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, config.out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict the noise, or v.

        Args:
            x: `(B, 9, h, w)`: noisy latent, scaled latent of the photo with the hole grey, keep
                mask (1 = keep), in this order.
            timesteps: `(B,)`, 0 to 999, integer or float.
            context: `(K * B, M, D)` exemplar tokens: row `i` conditions input row `i % B`.

        Returns:
            `(K * B, 4, h, w)`.
        """
        emb = timestep_embedding(timesteps, self.config.model_channels).to(x.dtype)
        emb = self.time_embed(emb)
        # With a context of K times as many rows, `h` grows from B to K * B rows at the first
        # cross-attention. Everything before runs once for both guidance branches, and the skips
        # from there still have B rows when they come back.
        h, skips = x, []
        for block in self.input_blocks:
            h = self._run(block, h, emb, context)
            skips.append(h)
        h = self._run(self.middle_block, h, emb, context)
        for block in self.output_blocks:
            skip = match_batch(skips.pop(), h.shape[0])
            # A block that upsamples has to meet the next skip, whose sides may be odd: doubling
            # `h` would miss them.
            size = skips[-1].shape[-2:] if skips else h.shape[-2:]
            h = self._run(block, h, emb, context, skip, size)
        return self.out(h)

    def _run(self, block: nn.Module, h: Tensor, *rest: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._run_block, block, h, *rest, use_reentrant=False)
        return self._run_block(block, h, *rest)

    @staticmethod
    def _run_block(
        block: nn.Module,
        h: Tensor,
        emb: Tensor,
        context: Tensor,
        skip: Tensor | None = None,
        size: torch.Size | tuple[int, ...] = (),
    ) -> Tensor:
        # Concatenated in here, so that gradient checkpointing keeps `h` and `skip`, which are in
        # memory anyway, and not a copy of both.
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        for layer in block.children():
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            elif isinstance(layer, Upsample):
                h = layer(h, (size[0], size[1]))
            else:
                h = layer(h)
        return h

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """In training, keep only each block's inputs and recompute the rest (arXiv 1604.06174).

        Gradients stay the same to the bit. Evaluation and `no_grad` are not affected.
        """
        self.gradient_checkpointing = enabled

    def set_attention(self, attention: Attention) -> None:
        """Replace the attention backend everywhere."""
        for module in self.modules():
            if isinstance(module, CrossAttention):
                module.attention = attention

    def inert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that have no effect, and so no gradient, where the context is one token.

        They are part of the checkpoint all the same; a trainer freezes them.
        """
        for name, parameter in self.named_parameters():
            if any(part in name for part in (".attn2.to_q.", ".attn2.to_k.", ".norm2.")):
                yield name, parameter
