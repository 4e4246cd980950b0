"""What a run tells: a progress bar with ETA, JSONL, TensorBoard, sample grids."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class RunLog:
    """Writes figures and pictures of a run below its folder; silent on all ranks but the first.

    Args:
        folder: The run's folder.
        start: Updates made before.
        total: Updates to make.
        batch_size: Samples an update, for the rate.
        active: False on other ranks.
    """

    def __init__(
        self, folder: Path, *, start: int, total: int, batch_size: int, active: bool = True
    ) -> None:
        self.folder = folder
        self.active = active
        self.batch_size = batch_size
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Count one update."""
        if self.active:
            self._bar.update()

    def figures(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of an update."""
        if not self.active:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        shown = {n: f"{v:.4g}" for n, v in values.items() if n != "lr"}
        self._bar.set_postfix(shown)

    def grid(self, step: int, images: Tensor, columns: int) -> None:
        """Log pictures `(N, 3, H, W)` in [-1, 1] as one grid."""
        if not self.active:
            return
        picture = image_grid(images, columns)
        (self.folder / "samples").mkdir(exist_ok=True)
        Image.fromarray(picture.numpy()).save(self.folder / "samples" / f"step-{step:08d}.png")
        self._board.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        if self.active:
            self._bar.close()
            self._board.close()
            self._lines.close()


def image_grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay out `(N, 3, H, W)` in [-1, 1] in rows: uint8 `(H', W', 3)` on white."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8
    )
    pixels = ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return canvas
