"""A file of weights, told by its content: safetensors or a file of torch, whatever its suffix.

People and tools rename files, and downloads that failed leave something else under a model's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..file_kinds import HEAD, what_it_really_is
from ..untrusted import first_line, open_regular
from .safetensors_io import read_safetensors
from .torch_file import is_torch_file, load_tensors

_SAFETENSORS = ".safetensors"


class WeightsFile(NamedTuple):
    """What a file holds."""

    held: dict[str, Any]
    """Tensors by name, mapped from the file; in a file of torch anything that it holds."""
    metadata: dict[str, str]
    """The strings that a safetensors file has beside them."""
    kind: str
    """`"safetensors"` or `"torch"`."""


def read_weights(path: Path, foreign: set[str] | None = None) -> WeightsFile:
    """Read a file of weights.

    Args:
        path: Of any suffix.
        foreign: Gets the names of classes and functions in a file of torch; none was run.

    Raises:
        ValueError: Damaged, or of another kind, which the message names.
    """
    head = _head(path)
    if is_torch_file(head):
        return WeightsFile(load_tensors(path, foreign), {}, "torch")
    kind = what_it_really_is(head)
    if kind == "a safetensors file" or (kind is None and path.suffix.lower() == _SAFETENSORS):
        return WeightsFile(*read_safetensors(path), "safetensors")
    if kind is None:
        return WeightsFile(load_tensors(path, foreign), {}, "torch")
    raise ValueError(
        f"{path} cannot be read as weights: it is {kind}; give a .safetensors or .ckpt file"
    )


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}); check the path") from error
