"""A run's log: progress bar with ETA, JSONL, TensorBoard or other trackers, sample grids."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pbe_model.atomic import replacing
from pbe_model.untrusted import numbered_lines, parse_json

BINS = 10
"""Number of ranges of timesteps whose losses are logged separately."""


class Window:
    """Means of figures over the updates since the last line of the log.

    The loss by timestep comes as sums and counts of `BINS` equal ranges, because an update may have
    no sample in a range.

    Args:
        saved: The `state` of an earlier one; `None` starts empty.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {"sums": {}, "updates": 0, "bins": [[0.0] * BINS] * 2}
        self.sums: dict[str, float] = dict(saved["sums"])
        self.updates: int = saved["updates"]
        self.bins = [list(row) for row in saved["bins"]]

    def add(self, values: Mapping[str, float], bins: Sequence[Sequence[float]] = ()) -> None:
        """Count one update's figures, and the sums and counts of its losses by timestep."""
        self.updates += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for row, more in zip(self.bins, bins, strict=False):
            row[:] = [a + b for a, b in zip(row, more, strict=True)]

    def means(self) -> dict[str, float]:
        """The means; losses by timestep are named after where their range begins, in percent."""
        figures = {name: total / self.updates for name, total in self.sums.items()}
        for number, (total, count) in enumerate(zip(*self.bins, strict=True)):
            if count:
                figures[f"loss_t{number * 100 // BINS:02d}"] = total / count
        return figures

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, so that a resumed run writes the same lines."""
        return {"sums": self.sums, "updates": self.updates, "bins": self.bins}


class Tracker(Protocol):
    """Somewhere that figures and pictures are shown."""

    def figures(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, pixels: Tensor) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder; those after update `start` are hidden."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: Tensor) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Online:
    """wandb, or trackio, which has the same interface; a resumed run continues the same record."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            self._library: Any = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"log.trackers lists {name}, which is not installed; run pip install {name}, or "
                "remove it from the list"
            ) from error
        extra = {"dir": str(folder), "id": folder.name} if name == "wandb" else {}
        self._run = self._library.init(
            project="paint-by-example", name=folder.name, config=config, resume="allow", **extra
        )

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: Tensor) -> None:
        self._run.log({name: self._library.Image(pixels.numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class RunLog:
    """Writes figures and pictures of a run to its folder and its trackers.

    Args:
        folder: The run's folder.
        start: Updates before; what an interrupted run logged after them is removed.
        total: Updates when the run is complete.
        trackers: Names of trackers, besides the JSONL file.
        config: The run's settings, for trackers that show them.
        active: `False` writes nothing, for all processes but one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        total: int,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        active: bool = True,
    ) -> None:
        self.folder = folder
        self.active = active
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        _truncate(path, start)
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._trackers: list[Tracker] = [
            TensorBoard(folder, start)
            if name == "tensorboard"
            else Online(name, folder, config or {})
            for name in trackers
        ]
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self) -> None:
        """Count one update."""
        if self.active:
            self._bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.active:
            self._bar.write(text)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of an update."""
        if not self.active:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for tracker in self._trackers:
            tracker.figures(step, values)
        shown = ("loss", "val_eps_mse", "val_psnr", "images_per_second")
        self._bar.set_postfix({n: f"{values[n]:.4g}" for n in shown if n in values})

    def grid(self, step: int, images: Tensor, columns: int) -> None:
        """Log pictures `(N, 3, H, W)` in [-1, 1] as one grid."""
        if not self.active:
            return
        picture = image_grid(images, columns)
        (self.folder / "samples").mkdir(exist_ok=True)
        Image.fromarray(picture.numpy()).save(self.folder / "samples" / f"step-{step:08d}.png")
        for tracker in self._trackers:
            tracker.picture(step, "samples", picture)

    def close(self) -> None:
        """Flush and close the files."""
        if self.active:
            self._bar.close()
            self._lines.close()
            for tracker in self._trackers:
                tracker.close()


def _truncate(path: Path, start: int) -> None:
    """Drop lines of updates after `start`, and one that a killed process left unfinished.

    Raises:
        ValueError: The file exists and cannot be a log.
    """
    if not path.exists():
        return
    with replacing(path) as part, part.open("wb") as kept:
        for _, line in numbered_lines(path, errors="surrogateescape"):
            with suppress(ValueError):
                if _step(line) <= start:
                    kept.write(f"{line}\n".encode("utf-8", "surrogateescape"))


def _step(line: str) -> int:
    values = parse_json(line)
    if isinstance(values, dict) and isinstance(step := values.get("step"), int):
        return step
    raise ValueError("it is not a line of a log")


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
