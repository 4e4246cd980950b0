"""Checkpoints of a run: written atomically, rotated, resumed exactly.

A checkpoint holds what training changes: trainable parameters, optimizer, averages and counters.
Frozen parameters come from the run's `init` again. There is no generator state to save: order,
augmentation and noise are functions of the seed and the sample's number. What is read is
compared with the checksums in the file: a bit that a disk has flipped would otherwise end as NaN,
or unseen.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pbe_model.checkpoints.torch_file import read_torch_file
from pbe_model.untrusted import first_line, shown

log = logging.getLogger(__name__)

ENTRIES = ("samples", "module", "optimizer", "ema", "scaler", "window", "figures", "config")
"""What a checkpoint of a run has beside its step."""

_NAME = re.compile(r"step-(\d{8})\.pt")


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name; not copied."""
    return {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_trainable(module: nn.Module, saved: Mapping[str, Tensor], source: object) -> None:
    """Copy saved parameters into a module.

    Args:
        module: Its trainable parameters must be the saved ones.
        saved: By name.
        source: What to name in errors.

    Raises:
        ValueError: Other names or shapes.
    """
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    odd = sorted(wanted.keys() ^ saved.keys()) or [
        name for name, parameter in wanted.items() if parameter.shape != saved[name].shape
    ]
    if odd:
        raise ValueError(
            f"{source} holds other trainable parameters than this configuration has, such as "
            f"{odd[0]} ({len(odd)} differ); train with the configuration it began with, or give "
            "another out"
        )
    for name, parameter in wanted.items():
        parameter.copy_(saved[name])


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def step_of(path: Path) -> int:
    """Number of updates made before a checkpoint, from its name."""
    found = _NAME.fullmatch(path.name)
    assert found, path
    return int(found[1])


def write(path: Path, values: Any) -> None:
    """Write a torch file that appears under its name only when it is complete and on disk.

    A killed process, or a disk that is full, leaves what was there before.

    Raises:
        OSError: It cannot be written, for example for lack of space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except RuntimeError as error:  # torch's writer hides the reason: a write that failed
        reason = str(error).partition("\n")[0]
        raise OSError(f"{path} could not be written ({reason})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def save(folder: Path, step: int, values: dict[str, Any], keep: int, keep_every: int = 0) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    Args:
        folder: Where checkpoints are.
        step: Updates made.
        values: What to save, by the names of `ENTRIES`.
        keep: How many stay.
        keep_every: Those of steps divisible by it stay besides; 0 for none.

    Raises:
        OSError: It cannot be written; the older ones are all still there.
    """
    path = folder / f"step-{step:08d}.pt"
    write(path, {"step": step, **values})
    for old in checkpoints(folder)[:-keep]:
        if not keep_every or step_of(old) % keep_every:
            old.unlink()
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint on the CPU, or `None` where there is none.

    A file that cannot be read (a disk that failed) is named and passed over for the one before.

    Raises:
        ValueError: There are checkpoints and none of them can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return load(path)
        except ValueError as error:
            log.warning("%s; going on from the one before", error)
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} can be read; put a copy there, or "
            "delete them to begin again"
        )
    return None


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint on the CPU, found to be as it was written.

    Args:
        path: Of the checkpoint.
        mmap: Leave tensors in the file until they are used.

    Raises:
        ValueError: It cannot be read, or has changed since it was written.
    """
    foreign: set[str] = set()
    try:
        values = read_torch_file(path, foreign, mapped=mmap, checked=True)
        if foreign or not isinstance(values, dict):
            named = ", ".join(sorted(foreign)[:3]) or type(values).__name__
            raise ValueError(f"it holds something else than a run's state: {shown(named)}")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}); delete it") from error
    return values
