"""What a run says while it goes: a bar on a terminal, elsewhere a line for each line of its log.

Whatever becomes of the output (a terminal that is closed, a full disk, a reader that has gone), the
run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from pbe_model.cli.output import FULL, silence

_SHOWN = ("loss", "val_eps_mse", "val_psnr")
_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} steps{postfix}"
_LINES = 10  # of a side task, where there is no bar
_Item = TypeVar("_Item")


class Progress:
    """The steps of a run on standard error, and what there is to say on standard output.

    Args:
        total: Updates when the run is complete.
        start: Updates made before.
    """

    def __init__(self, total: int, start: int) -> None:
        self.total = total
        self._bar: tqdm | None = None
        if _is_terminal(sys.stderr):
            self._bar = tqdm(
                total=total, initial=start, bar_format=_FORMAT, dynamic_ncols=True, leave=True
            )
        self._lines = self._bar is None or not _is_terminal(sys.stdout)

    def advance(self) -> None:
        """Count one update."""
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is None or not _is_terminal(sys.stdout):
            put(sys.stdout, f"{text}\n")
        else:
            with _forgiven(sys.stdout):
                self._bar.write(text)

    def figures(self, step: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Show figures of an update.

        Args:
            step: Updates made.
            values: Figures by name; some of them are shown.
            seconds_left: Of training, without what else a run does; `None` if unknown.
        """
        parts = [f"{name} {values[name]:.4g}" for name in _SHOWN if name in values]
        if "images_per_second" in values:
            parts.append(f"{values['images_per_second']:.4g} images/s")
        if seconds_left:
            parts.append(f"{duration(seconds_left)} left")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts))
        if self._lines:
            put(sys.stdout, f"step {step} of {self.total}: {', '.join(parts)}\n")

    @contextmanager
    def aside(self, name: str, items: Sequence[_Item]) -> Iterator[Iterator[_Item]]:
        """Go through what is done before the first update, with a bar or some lines of its own."""
        if self._bar is not None:
            self._bar.clear()
            with tqdm(items, desc=name, dynamic_ncols=True, leave=False) as bar:
                yield iter(bar)
            self._bar.refresh()
        else:
            yield _in_lines(name, items)

    def close(self) -> None:
        """End the bar. Output that is lost for good must not turn into an exit code."""
        if self._bar is not None:
            self._bar.close()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                try:
                    stream.flush()
                except (OSError, ValueError):
                    silence(stream)


def put(stream: TextIO | None, text: str) -> None:
    """Print at once, if that is possible; a program without a console has no stream at all."""
    if stream is None:
        return
    with _forgiven(stream):
        stream.write(text)
        stream.flush()


def duration(seconds: float) -> str:
    """A time as people read it: 0:07, 12:30, 5:04:00, 3 days 5:04:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{days} day{'s' * (days > 1)} {text}" if days else text


@contextmanager
def _forgiven(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:  # there will not be room again, as on a disk
            silence(stream)
    except ValueError:  # it is closed, or cannot spell what is said
        pass


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none, or closed
        return False


def _in_lines(name: str, items: Sequence[_Item]) -> Iterator[_Item]:
    every = max(1, -(-len(items) // _LINES))
    for number, item in enumerate(items):
        if number % every == 0:
            put(sys.stdout, f"{name}: {number} of {len(items)}\n")
        yield item
    put(sys.stdout, f"{name}: {len(items)} of {len(items)}\n")
