"""The image condition: CLIP's vision tower, a mapper, a projection, and the learnable vector.

One token of 768 numbers is the paper's information bottleneck (arXiv 2211.13227, section 3.2):
the network cannot copy the exemplar, it has to understand it. Attribute names below
`ExemplarEncoder` are the keys of the official checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from .config import ExemplarConfig, Tokens

Fit = Literal["squash", "crop", "pad"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_NEUTRAL = 127  # grey of padding and of a masked-out background, 8 bit


def normalise(pixels: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation to `(B, 3, S, S)` in [0, 1]."""
    mean = pixels.new_tensor(CLIP_MEAN)[:, None, None]
    std = pixels.new_tensor(CLIP_STD)[:, None, None]
    return (pixels - mean) / std


def preprocess(
    exemplar: Tensor, size: int, *, fit: Fit = "squash", exemplar_mask: Tensor | None = None
) -> Tensor:
    """Bring an exemplar to the tower's input size, as 8-bit Pillow bicubic does.

    Args:
        exemplar: `(H, W, 3)` in [0, 1].
        size: Side in pixels of the tower's input.
        fit: `"squash"` ignores the aspect (official), `"crop"` cuts the centre square, `"pad"`
            adds grey to a square.
        exemplar_mask: `(H, W)` in [0, 1], 1 = belongs to the object: the exemplar is cut to the
            mask's bounding box and the rest is greyed.

    Returns:
        `(3, size, size)` in [0, 1]; `normalise` follows.

    Raises:
        ValueError: An exemplar, or what its mask marks, under 8 pixels; an unknown `fit`; an empty
            or ill-sized mask.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"unknown fit {fit!r}; choose from {list(get_args(Fit))}")
    array = (exemplar.float().clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
    if exemplar_mask is not None:
        array = _cut_out(array, exemplar_mask)
    height, width = array.shape[:2]
    if min(height, width) < 8:
        place = "" if exemplar_mask is None else "inside its mask "
        raise ValueError(
            f"the exemplar {place}is {width} x {height} pixels; give one of at least 8 x 8 pixels"
        )
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        array = array[top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        square = np.full((side, side, 3), _NEUTRAL, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = array
        array = square
    resized = Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255


def _cut_out(array: np.ndarray, exemplar_mask: Tensor) -> np.ndarray:
    mask = exemplar_mask.float().clamp(0, 1).cpu().numpy()
    if mask.shape != array.shape[:2]:
        raise ValueError(
            f"the exemplar mask is {mask.shape[1]} x {mask.shape[0]} pixels but the exemplar is "
            f"{array.shape[1]} x {array.shape[0]}; make them the same size"
        )
    rows, columns = np.nonzero((mask > 0.5).any(1))[0], np.nonzero((mask > 0.5).any(0))[0]
    if not len(rows):
        raise ValueError("the exemplar mask is empty; mark the object with white (values over 0.5)")
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = mask[box][..., None]
    return (array[box] * alpha + _NEUTRAL * (1 - alpha)).round().astype(np.uint8)


def weighted_mean(contexts: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One context of several exemplars.

    With one token, cross-attention is an affine map of it, so this is the mean of what the
    exemplars would each have added to the picture's features.

    Args:
        contexts: `(B, M, D)`, one exemplar a row.
        weights: B numbers of at least 0, which need not add up to 1; `None` counts all the same.

    Returns:
        `(1, M, D)`.

    Raises:
        ValueError: Too many weights or too few, a negative or infinite one, or nothing but zeros.
    """
    if weights is None:
        return contexts.mean(dim=0, keepdim=True)
    if len(weights) != len(contexts):
        raise ValueError(
            f"the number of weights is {len(weights)} and that of exemplars {len(contexts)}; give "
            "one weight for each, or none to count all the same"
        )
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"{weight:g} is no weight; give numbers of at least 0")
    largest = max(weights)
    if largest == 0:
        raise ValueError("all weights are 0; give at least one exemplar a weight above 0")
    shares = contexts.new_tensor([weight / largest for weight in weights])[:, None, None]
    return (contexts * (shares / shares.sum())).sum(dim=0, keepdim=True)


def parse_weights(text: str) -> list[float] | None:
    """Weights as people write them, `"1, 0.5, 2"`; `None` where nothing is written.

    Raises:
        ValueError: Something else than numbers between commas or blanks.
    """
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    weights = []
    for word in words:
        try:
            weights.append(float(word))
        except ValueError:
            raise ValueError(
                f"{word!r} is no weight; write one number for each exemplar, such as 1, 0.5"
            ) from None
    return weights or None


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
    """Two linear layers with a GELU, four times as wide inside."""

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
        from transformers import CLIPVisionConfig, CLIPVisionModel  # seconds: only where used

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
        context_dim: Width of the tokens that come out.
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
        """Tokens of a context."""
        patches = (self.config.image_size // self.config.patch_size) ** 2
        return 1 if self.cond_stage_model.tokens == "class" else 1 + patches

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, S, S)`, normalised (`preprocess`, `normalise`), to `(B, M, context_dim)`."""
        return self.proj_out(self.cond_stage_model(pixels))

    def unconditional(self, batch: int) -> Tensor:
        """The learnable vector as context, `(batch, M, context_dim)`."""
        return self.learnable_vector.expand(batch, self.num_tokens, -1)
