"""One trainer at a time in the folder of a run.

The system's own lock on a file, which ends with the process that holds it, however that ends: what
a killed run leaves behind never stands in the way. It is a lock of the process (POSIX `lockf`), not
of the open file (`flock`), because the loader's workers inherit the latter and may live on for some
seconds.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pbe_model.untrusted import shown

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = "run.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_RECORD = 200  # bytes that say who holds it


class RunLock:
    """Held from its making until `release`, or until the process ends.

    Args:
        folder: Of the run; made if need be.

    Raises:
        ValueError: Another process holds it, or the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ValueError(
                f"cannot write to {folder}: {error.strerror}; choose another out, or check its "
                "permissions and the disk's space"
            ) from error
        _claim(self._file, folder)
        with suppress(OSError):  # without space the lock holds, and only says less
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Let others in. The file stays: removing it could take it from under another process."""
        self._file.close()


def check_free(folder: Path) -> None:
    """See that a run could have this folder; nothing is made or written.

    Raises:
        ValueError: Another process trains in it, or it cannot be made or written to.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(
            f"cannot write to {folder}: {place} is "
            f"{'not to be written to' if place.is_dir() else 'no folder'}; choose another out"
        )
    path = folder / NAME
    if path.is_file() and os.access(path, os.R_OK | os.W_OK):
        with open(path, "r+b", buffering=0) as file:
            _claim(file, folder)


def _claim(file: BinaryIO, folder: Path) -> None:
    try:
        _lock(file)
    except OSError as error:
        if error.errno not in _TAKEN:
            return  # some clusters' file systems have no locks; a run is not refused for that
        holder = shown(file.read(_RECORD).decode(errors="replace").strip(), _RECORD)
        file.close()
        raise ValueError(
            f"{folder} is in use by another training{holder and f' ({holder})'}; wait for it, stop "
            "it, or choose another out"
        ) from error


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        file.seek(_RECORD)  # a locked byte cannot be read there, and the record is to be
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        finally:
            file.seek(0)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
