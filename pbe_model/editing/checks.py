"""Whether a tensor is a picture or a mask, and the sentence if it is not."""

from __future__ import annotations

from torch import Tensor


def check_picture(name: str, picture: Tensor) -> None:
    """Raise `ValueError` unless a picture is `(H, W, 3)` and of floats; `name` is for the error."""
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"{name} has shape {tuple(picture.shape)}; it must be (H, W, 3)")
    _check_floats(name, picture)


def check_mask(name: str, mask: Tensor) -> None:
    """Raise `ValueError` unless a mask is `(H, W)` and of floats."""
    if mask.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; it must be (H, W)")
    _check_floats(name, mask)


def _check_floats(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is of type {tensor.dtype}; give floats from 0 to 1")
