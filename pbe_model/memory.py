"""Running out of memory, on any device: how it is told, and work in as few parts as fit."""

from __future__ import annotations

import errno
import gc
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# How allocators say it that have no exception of their own.
_WORDS = re.compile(
    r"out of memory"  # of CUDA and MPS
    r"|can(no|')t allocate memory|not enough memory"  # torch on CPUs, and on those of Windows
    r"|could not allocate tensor"  # DirectML
    r"|alloc_failed"  # cuBLAS, cuDNN
    r"|bad_alloc"
    r"|could not create a (primitive|memory)\b(?! desc)",  # oneDNN; the other says: unsupported
    re.IGNORECASE,
)
_WANTED = re.compile(r"allocate (?P<amount>[\d.,]+) ?(?P<unit>[KMGTPE]?i?B|bytes)\b", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is that memory ran out, of whatever device."""
    return any(
        isinstance(one, (MemoryError, torch.cuda.OutOfMemoryError))
        or getattr(one, "errno", None) == errno.ENOMEM
        or (isinstance(one, RuntimeError) and _WORDS.search(str(one)) is not None)
        for one in _causes(error)
    )


def wanted(error: BaseException) -> str | None:
    """How much memory there was not enough for, `"20.00 MiB"`; None where nobody says."""
    for one in _causes(error):
        if found := _WANTED.search(str(one)):
            amount, unit = found["amount"].rstrip(".,"), found["unit"]
            if unit == "bytes" and amount.isdigit():
                return f"{int(amount) / 1e6:,.1f} MB"
            return f"{amount} {unit}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def in_parts(
    work: Callable[[int, int], Tensor], count: int, *, device: torch.device, dim: int = 0
) -> Tensor:
    """The result of work on rows: all at once, or half as many as often as memory runs out.

    Args:
        work: `work(first, last)` gives the result of these rows, which does not depend on others.
        count: Number of rows, at least 1.
        device: Where the memory is, to give back what the allocator keeps.
        dim: Dimension of the rows in results.

    Returns:
        All results, in the order of their rows.

    Raises:
        Exception: What `work` raises; that memory ran out only where it did so for a single row.
    """
    parts: list[Tensor] = []
    first, size = 0, count
    while first < count:
        last = min(first + size, count)
        try:
            parts.append(work(first, last))
            first = last
            continue
        except Exception as error:
            if last - first == 1 or not is_out_of_memory(error):
                raise
        # Not in the handler: there the error keeps every tensor of the call that failed.
        size = (last - first + 1) // 2
        gc.collect()
        empty_cache = getattr(getattr(torch, device.type, None), "empty_cache", None)
        if empty_cache is not None:
            empty_cache()
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
