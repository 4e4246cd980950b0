"""What an adapter adds to a weight: LoRA and its relatives.

- LoRA (arXiv 2106.09685): `up @ down`; of convolutions also with a core in between (LoCon, Tucker).
- LoHa (arXiv 2108.06098): the elementwise product of two such products, each with a core or none.
- LoKr (arXiv 2309.14859): the Kronecker product of two matrices, each whole or a product.
- A difference of the weight or the bias itself.
- DoRA (arXiv 2402.09353), on top of one of the first three: the sum of weight and change gets rows
  (or, in older files, columns) of the lengths that the file says.

What is added is scaled by alpha over the rank; a Kronecker product of two whole matrices is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
"""The tensors for a layer, by the roles of `adapter_names`."""

MAX_RANK = 4096

_HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_KINDS: tuple[tuple[set[str], set[str]], ...] = (
    ({"up", "down"}, {"mid"}),
    (_HADA, set()),
    (_HADA | {"hada_t1", "hada_t2"}, set()),
    ({"lokr_w1", "lokr_w2"}, set()),
    ({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}, set()),
    ({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}),
    ({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}),
)
"""The parts that a kind of change needs, and those that it may have."""

_LENGTHS = {"dora_scale", "magnitude"}
_BESIDE = _LENGTHS | {"alpha", "bias", "up_bias"}


def is_whole(parts: Iterable[str]) -> bool:
    """Whether these roles together are one kind of change."""
    given = set(parts)
    change = given - _BESIDE
    if not change or change == {"diff"}:
        return bool(change or "bias" in given) and not given & (_LENGTHS | {"up_bias"})
    return any(needed <= change <= needed | optional for needed, optional in _KINDS)


def changes_weight(parts: Iterable[str]) -> bool:
    """Whether these roles are not of the bias alone."""
    return bool(set(parts) - _BESIDE)


def rank_of(parts: Parts) -> int | None:
    """What alpha is divided by; None where it does not count."""
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in parts:
            return parts[role].shape[0]
    return None


def fits(parts: Parts, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether shapes of whole parts go with those of a layer; computes nothing."""
    most = MAX_RANK * max(weight.shape[0], weight[0].numel())
    if not all(0 < tensor.numel() <= most for tensor in parts.values()):
        return False
    if "alpha" in parts and parts["alpha"].numel() != 1:
        return False
    for role in {"bias", "up_bias"} & set(parts):
        if bias is None or parts[role].shape != bias.shape:
            return False
    if not changes_weight(parts):
        return True
    if "diff" in parts:
        return parts["diff"].shape == weight.shape
    if weight.ndim < 2 or any(t.ndim < 2 for r, t in parts.items() if r not in _BESIDE):
        return False
    if "magnitude" in parts and parts["magnitude"].numel() != weight.shape[0]:
        return False
    if "dora_scale" in parts and _axis(parts["dora_scale"], weight) is None:
        return False
    try:
        shape = delta({r: torch.empty_like(t, device="meta") for r, t in parts.items()}).shape
    except (RuntimeError, IndexError, ValueError):
        return False
    return torch.Size(shape[:1]) == weight.shape[:1] and (
        shape[1:].numel() == weight.shape[1:].numel()
    )


def delta(parts: Parts) -> Tensor:
    """What is added to a weight, without scale: of the weight's shape, or with one side less.

    Args:
        parts: Whole ones that change a weight, in float32.
    """
    if "diff" in parts:
        return parts["diff"]
    if "up" in parts:
        down = parts["down"].flatten(1)  # (r, in h w), or with a core (r, in)
        if "mid" in parts:
            down = torch.einsum("mnhw,ni->mihw", parts["mid"], down).flatten(1)
        return parts["up"].flatten(1) @ down
    if "hada_w1_a" in parts:
        return _product(parts, "hada_w1", "hada_t1") * _product(parts, "hada_w2", "hada_t2")
    first, second = whole_matrices(parts)
    first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
    return torch.kron(first, second.contiguous())


def whole_matrices(parts: Parts) -> tuple[Tensor, Tensor]:
    """The two factors of a Kronecker product, of which each may be stored as a product."""
    return _whole(parts, "lokr_w1", ""), _whole(parts, "lokr_w2", "lokr_t2")


def changed(
    weight: Tensor, parts: Parts, scale: float, strength: float, device: torch.device | str
) -> Tensor:
    """The changed weight, in float32.

    Args:
        weight: The layer's.
        parts: Whole ones that fit it and change it.
        scale: Alpha over rank.
        strength: How much of the change is made.
        device: Where to compute.
    """
    wide = {role: tensor.to(device, torch.float32) for role, tensor in parts.items()}
    before = weight.to(device, torch.float32)
    change = delta(wide).reshape(weight.shape)
    if "diff" not in wide:
        change = scale * change
    vector = wide.get("magnitude", wide.get("dora_scale"))
    if vector is None:
        return before + strength * change
    after = before + change
    axis = 0 if "magnitude" in wide else _axis(vector, weight)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    length = torch.linalg.vector_norm(after, dim=others, keepdim=True)
    after = after * (vector.reshape(length.shape) / (length + torch.finfo(torch.float32).eps))
    return torch.lerp(before, after, strength)


def _axis(scale: Tensor, weight: Tensor) -> int | None:
    """Along which side of a weight a `dora_scale` counts."""
    rows, columns = weight.shape[:2]
    if scale.numel() == rows and scale.shape[0] == rows:
        return 0
    if scale.numel() == columns and scale.shape[:2] == (1, columns):
        return 1
    return None


def _product(parts: Parts, name: str, core: str) -> Tensor:
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core in parts:
        return torch.einsum("abhw,bi,ao->oihw", parts[core], b, a)
    return a @ b


def _whole(parts: Parts, name: str, core: str) -> Tensor:
    return parts[name] if name in parts else _product(parts, name, core)
