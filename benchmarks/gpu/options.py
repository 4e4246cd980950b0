"""What the command line says, as every part gets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a run.

    Attributes:
        out: Folder of the results.
        device: `"cuda"` or `"cpu"`.
        small: Tiny networks and few repeats, so that a part takes seconds on a CPU.
        train: Configuration to train in the part `bundled`.
        data: Its data set, one tar.
        init: What it starts from.
        more: Further words for `pbe-train train`.
        host: A ComfyUI: its folder, or what `pack_host` wrote.
    """

    out: Path
    device: str
    small: bool
    train: str | None = None
    data: Path | None = None
    init: Path | None = None
    more: tuple[str, ...] = ()
    host: Path | None = None

    @property
    def on(self) -> torch.device:
        """The device to measure on."""
        import torch  # here, because the process that starts the parts does without

        return torch.device(self.device)

    @property
    def cuda(self) -> bool:
        """Whether it is a card."""
        return self.device == "cuda"
