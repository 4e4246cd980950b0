"""Whether a value is what it should be, a picture, a mask or a number in its range, and the
sentence if it is not."""

from __future__ import annotations

from operator import index
from typing import SupportsFloat, SupportsIndex

from torch import Tensor

from ..untrusted import shown


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


def check_whole(name: str, value: SupportsIndex, low: int, high: int, usual: str = "") -> int:
    """The value as an `int`; raises `ValueError` unless it is whole, and from `low` to `high`.

    Args:
        name: Name for the error.
        value: Any integer, also NumPy's and torch's.
        low: Smallest allowed.
        high: Largest allowed.
        usual: What the error may advise in brackets.
    """
    try:
        number = index(value)
    except (TypeError, ValueError, RuntimeError):  # the last two from tensors of several numbers
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(
            f"{name} is {shown(value)}; give a whole number from {low:,} to {high:,}{usual}"
        )
    return number


def check_number(
    name: str, value: SupportsFloat, low: float, high: float, usual: str = ""
) -> float:
    """The value as a `float`; raises `ValueError` unless it is a number from `low` to `high`."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    if number is None or not low <= number <= high:  # NaN is in no range
        raise ValueError(f"{name} is {shown(value)}; give a number from {low:g} to {high:g}{usual}")
    return number
