"""Files that appear under their names whole or not at all, and several of them all or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .untrusted import printable


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Check that a file can be written, before the work whose result it is.

    Args:
        path: File to be.
        folder: It is a folder to be, or one that there is.

    Raises:
        ValueError: There is no folder to write it into, it may not be written to, the name is too
            long, or taken by a folder (of a folder: by a file).
    """
    name, parent = printable(path), path.parent
    try:
        if not parent.is_dir():
            raise ValueError(f"cannot write {name}: there is no folder {parent}; create it")
        with suppress(FileNotFoundError):  # an error of names that the system does not take
            os.lstat(_part(path) if path.name else path)  # "." and "/" have none
        if folder and path.exists() and not path.is_dir():
            raise ValueError(f"cannot make the folder {name}: it is a file; choose another name")
        if not folder and path.is_dir():
            raise ValueError(f"cannot write {name}: it is a folder; add a file name")
    except OSError as error:
        raise ValueError(f"cannot write {name}: {error.strerror}; choose another name") from error
    if not os.access(path if folder and path.exists() else parent, os.W_OK):
        raise ValueError(f"cannot write {name}: the folder is read-only; choose another")


def check_makeable(path: Path) -> None:
    """Raise `ValueError` unless a folder is there or can be made, with those above it."""
    try:
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
    except OSError as error:
        raise _unmade(path, error) from error
    check_writable(there, folder=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` on success and removed otherwise.

    Raises:
        ValueError: `path` cannot be written.
    """
    part = _part(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with suppress(OSError):  # it has been renamed, or never was
            part.unlink()


@contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names to write to, renamed once all are written; on failure nothing is there.

    Args:
        paths: Files of one folder, at least one, without two of the same name. The temporary ones
            have their names.

    Raises:
        ValueError: One of them cannot be written.
    """
    for path in paths:
        check_writable(path)
    scratch = _part(paths[0])
    try:
        scratch.mkdir(exist_ok=True)  # a killed process may have left it
        parts = [scratch / path.name for path in paths]
        yield parts
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    except OSError as error:
        raise _unwritten(paths[0], error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """A folder, made with those above it; those that were made are removed again on failure.

    Raises:
        ValueError: It cannot be made.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unmade(path, error) from error
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or not made
            for one in missing:
                one.rmdir()
        raise


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _unmade(path: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot make the folder {printable(path)}: {error.strerror}; choose another")


def _unwritten(path: Path, error: OSError) -> ValueError:
    """The sentence about a file that could not be written."""
    if path.is_dir():
        reason = "it is a folder; add a file name"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}; create it first"
    else:
        reason = f"{error.strerror or error}; check the permissions and the disk space"
    return ValueError(f"cannot write {path}: {reason}")
