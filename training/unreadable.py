"""A list of the photos that a run could not read, shared by all of its processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


class UnreadableList:
    """Notes each photo once: in memory, and in a text file with a line of path and reason.

    Any number of processes may note into the same file, which later runs go on with.

    Args:
        file: The text file, made with its first line; `None` keeps the list in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.paths: set[str] = set()
        """Photos that this process knows of."""
        self._seen = 0  # bytes of the file

    def note(self, path: str, reason: str) -> bool:
        """Add a photo; whether it is new."""
        path, reason = (" ".join(text.split("\t")).replace("\n", " ") for text in (path, reason))
        if path in self.paths:
            return False
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab+") as file:  # closing it gives up the lock
                _lock(file)
                file.seek(self._seen)
                others = file.read()
                self._seen += len(others)
                self.paths.update(line.split("\t")[0] for line in os.fsdecode(others).split("\n"))
                if path in self.paths:
                    return False
                line = os.fsencode(f"{path}\t{reason}\n")
                os.write(file.fileno(), line)
                self._seen += len(line)
        self.paths.add(path)
        return True


def _lock(file: BinaryIO) -> None:
    if sys.platform != "win32":  # there, two processes that meet may list a photo twice
        fcntl.flock(file, fcntl.LOCK_EX)
