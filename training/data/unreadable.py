"""A list of the photos that a run could not read, shared by all of its processes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import BinaryIO

from pbe_model.untrusted import first_line, open_regular, printable, shown

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

_MAX_PATH = 4096  # characters; systems allow no longer paths
_MAX_LIST = 2**28  # bytes


class UnreadableList:
    """Notes each photo once: in memory, and in a text file with a line of path and reason.

    Any number of processes may note into the same file, which later runs go on with.

    Args:
        file: The text file, made with its first line; `None` keeps the list in memory.

    Raises:
        ValueError: `file` is there and cannot be such a list.
    """

    def __init__(self, file: Path | None = None) -> None:
        if file is not None and file.exists():
            _check(file)
        self.file = file
        self.paths: set[str] = set()
        """Photos that this process knows of."""
        self._seen = 0  # bytes of the file

    def note(self, path: str, reason: str) -> bool:
        """Add a photo; whether it is new. A path that would not stay in its column is escaped.

        Where the file cannot be written, as on a full disk, the photo is noted in memory only.
        """
        path, reason = shown(path, _MAX_PATH), shown(" ".join(reason.split()))
        if path in self.paths:
            return False
        is_new = True
        if self.file is not None:
            try:
                is_new = self._append(self.file, path, reason)
            except OSError as error:
                log.warning("cannot note it in %s: %s", printable(self.file), first_line(error))
        self.paths.add(path)
        return is_new

    def _append(self, place: Path, path: str, reason: str) -> bool:
        """Write a line, unless another process has written one for this photo."""
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("ab+") as file:  # closing it gives up the lock
            _lock(file)
            file.seek(self._seen)
            others = file.read()
            self._seen += len(others)
            self.paths.update(line.split("\t")[0] for line in os.fsdecode(others).split("\n"))
            if path in self.paths:
                return False
            line = os.fsencode(f"{path}\t{reason}\n")
            if (written := os.write(file.fileno(), line)) < len(line):
                os.ftruncate(file.fileno(), self._seen)
                raise OSError(f"only {written} of {len(line)} bytes could be written")
            self._seen += len(line)
        return True


def _check(file: Path) -> None:
    try:
        open_regular(file, _MAX_LIST).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot note unreadable photos in '{file}': {first_line(error)}; move it away"
        ) from error


def _lock(file: BinaryIO) -> None:
    if sys.platform != "win32":  # there, two processes that meet may list a photo twice
        fcntl.flock(file, fcntl.LOCK_EX)
