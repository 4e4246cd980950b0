"""Checkpoints of a run: written atomically, rotated, resumed exactly.

A checkpoint holds what training changes: trainable parameters, optimizer, averages and counters.
Frozen parameters come from the run's `init` again. There is no generator state to save: order,
augmentation and noise are functions of the seed and the sample's number. Files are checked against
their checksums when they are read: a bit that a disk has flipped would otherwise surface as NaN, or
never.
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
"""Entries of a run's checkpoint, besides its step."""

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
        module: Must have the same trainable parameters.
        saved: Parameters by name.
        source: Names the checkpoint in errors.

    Raises:
        ValueError: The names or shapes differ.
    """
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    odd = sorted(wanted.keys() ^ saved.keys()) or [
        name for name, parameter in wanted.items() if parameter.shape != saved[name].shape
    ]
    if odd:
        raise ValueError(
            f"{source} holds other trainable parameters than this configuration has, such as "
            f"{odd[0]} ({len(odd)} in all); go back to the configuration that the run started "
            "with, or choose another out"
        )
    for name, parameter in wanted.items():
        parameter.copy_(saved[name])


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def step_of(path: Path) -> int:
    """Number of updates before a checkpoint, from its name."""
    found = _NAME.fullmatch(path.name)
    assert found, path
    return int(found[1])


def write(path: Path, values: Any) -> None:
    """Write a torch file that appears under its name only when it is complete and on disk.

    A killed process or a full disk leaves what was there before.

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
    except RuntimeError as error:  # how torch's writer reports a write that failed
        reason = str(error).partition("\n")[0]
        raise OSError(f"no room for {path.name}, or the disk fails ({reason})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def save(folder: Path, step: int, values: dict[str, Any], keep: int, keep_every: int = 0) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    Args:
        folder: The run's folder of checkpoints.
        step: Updates made so far.
        values: What to save, by the names in `ENTRIES`.
        keep: How many checkpoints to keep.
        keep_every: Also keep those of steps divisible by this; 0 keeps no others.

    Raises:
        OSError: It cannot be written; all older ones are still there.
    """
    path = folder / f"step-{step:08d}.pt"
    for left in folder.glob("step-*.part"):  # of a process that was killed; the run is locked
        left.unlink()
    write(path, {"step": step, **values})
    for old in checkpoints(folder)[:-keep]:
        if not keep_every or step_of(old) % keep_every:
            old.unlink()
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint, on the CPU, or `None` if there is none.

    A file that cannot be read (the disk may have failed) is logged and the one before is taken.

    Raises:
        ValueError: There are checkpoints, but none of them can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return load(path)
        except ValueError as error:
            log.warning("%s; resuming from the one before", error)
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} can be read; restore one from a "
            "backup, or delete them to start over"
        )
    return None


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU and verify its checksums.

    Args:
        path: The checkpoint's file.
        mmap: Whether tensors stay in the file until they are used.

    Raises:
        ValueError: It cannot be read, is not a checkpoint, or has changed since it was written.
    """
    foreign: set[str] = set()
    try:
        values = read_torch_file(path, foreign, mapped=mmap, checked=True)
        if foreign or not isinstance(values, dict):
            named = ", ".join(sorted(foreign)[:3]) or type(values).__name__
            raise ValueError(f"it holds {shown(named)}, not the state of a run")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}); delete it") from error
    return values
