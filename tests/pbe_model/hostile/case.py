"""What every kind of hostile file consists of: a maker, and what has to be said of the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Maker = Callable[[Path], object]
"""Makes the file, or the folder, at the path."""


class Case(NamedTuple):
    """A kind of file."""

    make: Maker
    says: str
    """Pattern that is found in the sentence about it."""
    passes: tuple[str, ...] = ()
    """Entry points that need not refuse it, as they do not use what is wrong with it."""
    only: tuple[str, ...] = ()
    """Entry points that try it, where it takes long and the others would read it likewise."""

    def briefly(self) -> Case:
        """The same, tried by two entry points alone."""
        return self._replace(only=("inspect", "train"))


Table = dict[str, Case]
"""By the name of the file, whose suffix says how it is read."""

NO_MODEL = (
    "not a Paint by Example checkpoint|holds no weights|does not fit the model|no part of a|"
    "lacks or misshapes"
)
"""What is said of a file that is read in full and was harmless."""

TERMINAL = "\x1b]0;owned\x07\x1b[2J"
"""Sets the title of a terminal and clears its screen."""

HUGE = 10**400
"""More than a float can be, and fewer digits than Python refuses to read."""


def content(data: bytes) -> Maker:
    """Makes a file of these bytes."""
    return lambda path: path.write_bytes(data)


def built(build: Callable[[], bytes]) -> Maker:
    """Makes a file of bytes that are not worth keeping in memory."""
    return lambda path: path.write_bytes(build())


def sparse(start: bytes, size: int) -> Maker:
    """Makes a file that begins so, has zeros up to `size`, and takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def link(target: str | Path) -> Maker:
    """Makes a symbolic link."""
    return lambda path: path.symlink_to(target)
