"""Where figures and pictures of a run are shown, besides its log: TensorBoard, wandb, trackio."""

from __future__ import annotations

import importlib
import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from training.appending import Appending


class Tracker(Protocol):
    """Somewhere that figures and pictures are shown."""

    def figures(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, pixels: Tensor) -> None: ...
    def close(self) -> None: ...


def open_trackers(
    names: Sequence[str], folder: Path, start: int, config: Mapping[str, Any]
) -> dict[str, Tracker]:
    """Trackers by name.

    Args:
        names: `tensorboard`, `wandb` or `trackio`.
        folder: Of the run.
        start: Updates made before.
        config: The run's settings, for those that show them.

    Raises:
        ValueError: One is not installed.
    """
    return {
        name: TensorBoard(folder, start) if name == "tensorboard" else Online(name, folder, config)
        for name in names
    }


class TensorBoard:
    """An event file in the run's folder; what other files have after update `start` is hidden.

    torch's own writer writes in a thread, which a full disk ends with a traceback. This one makes
    the same records of torch's summaries and raises `OSError` where it is called.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._events: Any = event_pb2
        self._record_writer, self._summary = RecordWriter, summary
        folder = folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # They are read in the order of these numbers, also if the clock has been set back.
        before = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
        stamp = max([int(time.time()), *(int(text) + 1 for text in before if text.isdecimal())])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appending(folder / name)
        self._add(file_version="brain.Event:2")
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(step=start + 1 if start else 0, session_log=started)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(step=step, summary=self._summary.scalar(name, value))

    def picture(self, step: int, name: str, pixels: Tensor) -> None:
        self._add(step=step, summary=self._summary.image(name, pixels.numpy(), dataformats="HWC"))

    def close(self) -> None:
        self._file.close()

    def _add(self, **parts: Any) -> None:
        record = io.BytesIO()
        event = self._events.Event(wall_time=time.time(), **parts)
        self._record_writer(record).write(event.SerializeToString())
        self._file.add(record.getvalue())


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
