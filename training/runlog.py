"""A run's log: figures as JSON lines, sample grids, and the same for trackers and the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from pbe_model.atomic import replacing
from pbe_model.untrusted import first_line, numbered_lines, parse_json
from training.appending import Appending
from training.picture_grid import Pictures, picture_grid
from training.progress import Progress
from training.trackers import open_trackers

_Item = TypeVar("_Item")

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


class RunLog:
    """Writes figures and pictures of a run to its folder and its trackers.

    Once it is open, what cannot be written is said once and costs itself, never the run.

    Args:
        folder: The run's folder.
        start: Updates before; what an interrupted run logged after them is removed.
        total: Updates when the run is complete.
        trackers: Names of trackers, besides the JSONL file.
        config: The run's settings, for trackers that show them.
        active: `False` writes nothing, for all processes but one.

    Raises:
        ValueError: The log cannot be opened, or a tracker is not installed.
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
        path = folder / "log.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _truncate(path, start)
            self._lines = Appending(path)
            self._trackers = open_trackers(trackers, folder, start, config or {})
        except OSError as error:
            raise ValueError(
                f"cannot write the log of the run to {folder}: {error.strerror}; free some space, "
                "check its permissions, or choose another out"
            ) from error
        self._failing: set[str] = set()
        self._progress = Progress(total, start)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self) -> None:
        """Count one update."""
        if self.active:
            self._progress.advance()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.active:
            self._progress.say(text)

    def aside(self, name: str, items: Sequence[_Item]) -> AbstractContextManager[Iterator[_Item]]:
        """Go through what is done before the first update, and show how far it is."""
        return self._progress.aside(name, items) if self.active else nullcontext(iter(items))

    def figures(
        self, step: int, values: Mapping[str, float], seconds_left: float | None = None
    ) -> None:
        """Log numbers of an update.

        Args:
            step: Updates made.
            values: By name.
            seconds_left: Shown beside them; `None` if unknown.
        """
        if not self.active:
            return
        with self.forgiving("log.jsonl"):
            self._lines.add((json.dumps({"step": step, **values}) + "\n").encode())
        for name, tracker in self._trackers.items():
            with self.forgiving(f"the figures for {name}"):
                tracker.figures(step, values)
        self._progress.figures(step, values, seconds_left)

    def grid(self, step: int, pictures: Pictures) -> None:
        """Log pictures as one grid."""
        if not self.active:
            return
        grid = picture_grid(pictures)
        with self.forgiving("the sample pictures"):
            (self.folder / "samples").mkdir(exist_ok=True)
            with replacing(self.folder / "samples" / f"step-{step:08d}.png") as part:
                Image.fromarray(grid.numpy()).save(part, "PNG")
        for name, tracker in self._trackers.items():
            with self.forgiving(f"the pictures for {name}"):
                tracker.picture(step, "samples", grid)

    @contextmanager
    def forgiving(self, what: str) -> Iterator[None]:
        """Say once that something cannot be written, and once that it can be again.

        Args:
            what: Names it in the sentence.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            if what not in self._failing:
                self._failing.add(what)
                self.say(f"could not write {what}: {first_line(error)}; the run goes on without")
        else:
            if what in self._failing:
                self._failing.remove(what)
                self.say(f"{what} can be written again")

    def close(self) -> None:
        """Flush and close the files."""
        if not self.active:
            return
        with self.forgiving("log.jsonl"):
            self._lines.close()
        for name, tracker in self._trackers.items():
            with self.forgiving(f"the figures for {name}"):
                tracker.close()
        self._progress.close()


def _truncate(path: Path, start: int) -> None:
    """Drop lines of updates after `start`, and one that a killed process left unfinished.

    Raises:
        ValueError: The file exists and cannot be a log, or cannot be written.
    """
    if not path.exists():
        return
    lines = [line for _, line in numbered_lines(path, errors="surrogateescape")]
    kept = "".join(f"{line}\n" for line in lines if _stays(line, start))
    data = kept.encode("utf-8", "surrogateescape")
    if data == path.read_bytes():  # which takes no room on the disk
        return
    with replacing(path) as part:
        part.write_bytes(data)


def _stays(line: str, start: int) -> bool:
    try:
        return start > 0 and _step(line) <= start  # a run that starts over logs step 0 again
    except ValueError:
        return False


def _step(line: str) -> int:
    values = parse_json(line)
    if isinstance(values, dict) and isinstance(step := values.get("step"), int):
        return step
    raise ValueError("it is not a line of a log")
