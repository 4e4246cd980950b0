"""Checkpoints of a run: written atomically, rotated, resumed exactly.

A checkpoint holds weights, optimizer, average and the number of updates. There is no generator
state to save: order, augmentation and noise are functions of the seed and the sample's number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    The file appears under its name only when it is complete and on disk, so a killed process
    leaves either the old checkpoints or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint on the CPU, or `None` where there is none."""
    found = checkpoints(folder)
    if not found:
        return None
    return torch.load(found[-1], map_location="cpu", weights_only=True)
