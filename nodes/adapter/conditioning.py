"""Conditionings that come from our encoder, told from others by a tag.

A text prompt has the width of the published model's tokens, so nothing else would notice it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...pbe_model.config import PBEConfig

Conditioning = list[tuple[Tensor, dict[str, Any]]]

EXEMPLAR, NO_EXEMPLAR = "exemplar", "no exemplar"
_TAG = "paint_by_example"


def tagged(positive: Tensor, negative: Tensor) -> tuple[list, list]:
    """The host's CONDITIONING of an exemplar and of the learnable vector, (B, M, D) each."""
    return [[positive, {_TAG: EXEMPLAR}]], [[negative, {_TAG: NO_EXEMPLAR}]]


def separate(conditioning: list, weights: Sequence[float] | None = None) -> list:
    """A conditioning for each row of the batch of the only one, in one list.

    The host's nodes and samplers treat them as those that its ConditioningCombine puts together.

    Args:
        conditioning: From `tagged`.
        weights: Strength of each; None leaves all the same, and one of 0 is left out.
    """
    ((tokens, entries),) = conditioning
    if weights is None:
        return [[row, dict(entries)] for row in tokens.split(1)]
    pairs = zip(tokens.split(1), weights, strict=True)
    return [[row, {**entries, "strength": weight}] for row, weight in pairs if weight]


def check_tagged(name: str, tokens: Tensor | None, entries: dict[str, Any]) -> None:
    """Refuse what no Exemplar Encoder has made.

    Args:
        name: Of the socket, for the error.
        tokens: (B, M, D).
        entries: What else the conditioning holds.

    Raises:
        ValueError: It has no tag.
    """
    if tokens is None or _TAG not in entries:
        shape = "no tokens" if tokens is None else f"{tokens.shape[1]} tokens"
        raise ValueError(
            f"{name} is not an exemplar but another conditioning, such as a text prompt ({shape}); "
            f"Paint by Example was trained on pictures alone, so connect the {name} of an Exemplar "
            "Encoder"
        )


def check_tokens(
    config: PBEConfig, name: str, tokens: Tensor | None, entries: dict[str, Any]
) -> None:
    """Refuse a conditioning that the model cannot use.

    Raises:
        ValueError: It is not of an Exemplar Encoder, or of one of another checkpoint, or zeroed.
    """
    check_tagged(name, tokens, entries)
    if tokens is not None and not tokens.any():
        raise ValueError(
            f"{name} holds zeros, as ConditioningZeroOut makes them, which mean nothing to this "
            f"model; connect the {name} of an Exemplar Encoder"
        )
    if tokens is not None and tokens.shape[-1] != config.unet.context_dim:
        raise ValueError(
            f"{name} has tokens of {tokens.shape[-1]} numbers, but the model takes "
            f"{config.unet.context_dim}; connect an Exemplar Encoder of the same checkpoint"
        )


def check_order(positive: list[dict[str, Any]], negative: list[dict[str, Any]]) -> None:
    """Refuse the two sockets of an Exemplar Encoder the wrong way round.

    Args:
        positive: What the conditionings of that name hold beside their tokens.
        negative: The same of the other name.

    Raises:
        ValueError: The exemplar is the negative, and its absence the positive.
    """
    positives = {entries.get(_TAG) for entries in positive}
    negatives = {entries.get(_TAG) for entries in negative}
    if (positives, negatives) == ({NO_EXEMPLAR}, {EXEMPLAR}):
        raise ValueError(
            "positive and negative are swapped, which would push the result away from the "
            "exemplar; connect the positive of Exemplar Encoder to positive and its negative to "
            "negative"
        )


def is_same(positive: list[dict[str, Any]], negative: list[dict[str, Any]]) -> bool:
    """Whether the exemplar is guided from as well as to, so that guidance changes nothing.

    Args:
        positive: The host's conditionings of that name, their tokens among the entries.
        negative: The same of the other name.
    """
    return len(positive) == len(negative) > 0 and all(
        one.get(_TAG) == EXEMPLAR and torch.equal(one["cross_attn"], other["cross_attn"])
        for one, other in zip(positive, negative, strict=True)
    )
