"""Files that appear under their names whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` on success and removed otherwise.

    Raises:
        ValueError: `path` cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if path.is_dir():
            reason = "it is a folder; add a file name"
        elif not path.parent.is_dir():
            reason = f"there is no folder {path.parent}; create it first"
        else:
            reason = f"{error.strerror or error}; check the permissions and the disk space"
        raise ValueError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):  # it has been renamed, or never was
            part.unlink()
