"""Files that grow at their end, on a disk that may be full for a while."""

from __future__ import annotations

from pathlib import Path

_MOST_WAITING = 2**26
"""Bytes that wait in memory for room; what comes beyond is lost."""


class Appending:
    """Adds to the end of a file; what finds no room waits, and is written before what comes next.

    Args:
        path: Made if missing.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        # Without a buffer of Python's, which would raise again when it is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._waiting = b""

    def add(self, data: bytes) -> None:
        """Write what waits and then `data`.

        Raises:
            OSError: Not all of it could be written; the rest waits.
        """
        if len(self._waiting) < _MOST_WAITING:
            self._waiting += data
        while self._waiting:  # a write into the last free bytes is a short one
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Try once more to write what waits, and close the file.

        Raises:
            OSError: There is still no room.
        """
        try:
            self.add(b"")
        finally:
            self._file.close()
