"""The image condition: CLIP's vision tower, a mapper, a projection, and the learnable vector.

One token of 768 numbers is the paper's information bottleneck (arXiv 2211.13227, section 3.2):
the network cannot copy the exemplar, it has to understand it. Attribute names below
`ExemplarEncoder` are the keys of the official checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import ExemplarConfig, Tokens

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(pixels: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation to `(B, 3, S, S)` in [0, 1]."""
    # Filled in on the device: a copy from the CPU would wait for it.
    mean, std = (
        torch.stack([pixels.new_full((1, 1), x) for x in t]) for t in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels - mean) / std


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that computes in float32 whatever the weights' type."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class MapperAttention(nn.Module):
    """Self-attention whose one linear layer gives each head its query, key and value in turn."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.c_qkv(x), "b n (h k d) -> k b h n d", h=self.heads, k=3)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(rearrange(h, "b h n d -> b n (h d)"))


class MapperMLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class MapperBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = MapperAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MapperMLP(width)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Mapper(nn.Module):
    """The stack of transformer blocks after the tower."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(MapperBlock(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class ImageEmbedder(nn.Module):
    """Tower, mapper and LayerNorm: pixels to tokens of the tower's width."""

    def __init__(self, config: ExemplarConfig, tokens: Tokens) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel  # takes seconds to import

        self.tokens = tokens
        self.transformer = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act="quick_gelu",
            )
        )
        self.final_ln = LayerNorm(config.hidden_size)
        self.mapper = Mapper(config.hidden_size, config.mapper_layers, config.mapper_heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, S, S)`, normalised, to `(B, M, hidden_size)`."""
        output = self.transformer(pixel_values=pixels)
        if self.tokens == "class":
            # After the last LayerNorm, not projected into CLIP's joint space.
            hidden = output.pooler_output[:, None]  # (B, 1, C)
        else:
            tower = getattr(self.transformer, "vision_model", self.transformer)
            hidden = tower.post_layernorm(output.last_hidden_state)  # (B, 1 + patches, C)
        return self.final_ln(self.mapper(hidden))


class ExemplarEncoder(nn.Module):
    """Exemplar pixels to the tokens that the denoiser's cross-attention sees.

    Args:
        config: Sizes of tower and mapper.
        context_dim: Width of the resulting tokens.
        tokens: `"class"` for one token, `"all"` for the class token and every patch.
    """

    learnable_vector: nn.Parameter

    def __init__(self, config: ExemplarConfig, context_dim: int, tokens: Tokens = "class") -> None:
        super().__init__()
        self.config = config
        self.cond_stage_model = ImageEmbedder(config, tokens)
        self.proj_out = nn.Linear(config.hidden_size, context_dim)
        self.learnable_vector = nn.Parameter(torch.randn(1, 1, context_dim))

    @property
    def num_tokens(self) -> int:
        """Number of tokens in a context."""
        patches = (self.config.image_size // self.config.patch_size) ** 2
        return 1 if self.cond_stage_model.tokens == "class" else 1 + patches

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, S, S)`, normalised (`preprocess`, `normalise`), to `(B, M, context_dim)`."""
        return self.proj_out(self.cond_stage_model(pixels))

    def unconditional(self, batch: int) -> Tensor:
        """The learnable vector as context, `(batch, M, context_dim)`."""
        return self.learnable_vector.expand(batch, self.num_tokens, -1)
