"""The files of a collection: which there are, and which of them an annotation means."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image

from pbe_model.picture_headers import FORMATS
from pbe_model.untrusted import first_line, printable, read_bytes

from .base import Unusable

MAX_ANNOTATIONS = 2**31
"""Bytes of a file that annotates a collection. This and the limit below are beyond any there is."""
MAX_OF_PHOTO = 2**24
"""Bytes of a text file that annotates one photo."""

_LONGEST = 4096  # characters; systems allow no longer paths
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")
_FORMATS = (*FORMATS, "MPO")  # which Pillow opens as the JPEG that it starts with


@cache
def picture_suffixes() -> tuple[str, ...]:
    """Suffixes of all formats of pictures that are read here, in lower case."""
    Image.init()
    known = Image.registered_extensions()
    return tuple(sorted(suffix for suffix, name in known.items() if name in _FORMATS))


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name; those that begin with a dot are not ("._1.jpg")."""
    return name.lower().endswith(picture_suffixes()) and not name.rpartition("/")[2].startswith(".")


def all_files(
    folder: Path, skipped: Path | None = None, failed: Callable[[OSError], None] | None = None
) -> Iterator[str]:
    """All files below a folder, relative, with forward slashes, folder by folder.

    Links are followed, but no folder is entered twice: they could lead around in circles.

    Args:
        folder: Where to look.
        skipped: A folder that is not entered.
        failed: Is told of folders that cannot be read.
    """
    entered = set()
    for base, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        try:
            stat = os.stat(base)
        except OSError:  # it went away
            folders.clear()
            continue
        if (place := (stat.st_dev, stat.st_ino)) in entered or Path(base) == skipped:
            folders.clear()
            continue
        entered.add(place)
        folders.sort()
        inside = Path(base).relative_to(folder)
        yield from ((inside / name).as_posix() for name in names)


def files_below(
    folder: Path, suffixes: tuple[str, ...], failed: Callable[[OSError], None] | None = None
) -> list[str]:
    """Files with one of the suffixes (lower case), as `all_files` gives them, sorted."""
    return sorted(
        name
        for name in all_files(folder, failed=failed)
        if name.lower().endswith(suffixes) and not name.rpartition("/")[2].startswith(".")
    )


def pictures_below(folder: Path, failed: Callable[[OSError], None] | None = None) -> list[str]:
    """Files that are pictures by their name, as `all_files` gives them, sorted."""
    return files_below(folder, picture_suffixes(), failed)


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: It cannot be read, or has more than `limit` bytes.
    """
    try:
        return read_bytes(path, limit)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read '{printable(path)}': {first_line(error)}") from error


def with_slashes(path: str) -> str:
    """A path with the separators of any system, if it has none of this one's or is of Windows."""
    return path.replace("\\", "/")


class PhotoFinder:
    """Finds photos under the names that annotations of another machine have for them.

    Args:
        folder: Of the photos.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_name: dict[str, list[str]] | None = None

    def __reduce__(self) -> tuple[Callable[[Path], PhotoFinder], tuple[Path]]:
        return _finder_of_process, (self._folder,)  # each lists the folder itself, once if ever

    def find(self, stated: str) -> tuple[str, bool]:
        """The path of a photo, relative to the folder, and whether that is beyond doubt.

        In this order: the path as stated; the same with backslashes as separators; its longest end
        that is a path below the folder (`C:\\data\\images\\1.jpg` is `images/1.jpg` or `1.jpg`); a
        photo whose path ends in the one stated, or that differs in upper and lower case or in the
        way accents are encoded. The latter two are in doubt: other photos may have the same names.
        What is nowhere is returned as stated.

        Raises:
            Unusable: Several photos could be meant.
        """
        if len(stated) > _LONGEST or os.path.exists(self._folder / stated):
            return stated, True
        path = with_slashes(stated)
        if path != stated and os.path.exists(self._folder / path):
            return path, True
        is_whole = path.startswith("/") or _DRIVE.match(stated) is not None
        parts = [part for part in _DRIVE.sub("", path).split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if (start or is_whole) and os.path.isfile(self._folder / end):
                return end, False
        found = self._related(_folded("/".join(parts)), is_whole) if parts else []
        if len(found) > 1:
            raise Unusable("several photos have that name", ", ".join(found[:3]))
        return (found[0], False) if found else (path, True)

    def _related(self, stated: str, is_whole: bool) -> list[str]:
        """Photos whose folded path ends in the one stated; failing that, the longest that it ends
        in."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for name in pictures_below(self._folder):
                self._by_name[_folded(name.rpartition("/")[2])].append(name)
        named = self._by_name.get(stated.rpartition("/")[2], [])
        longer = [n for n in named if f"/{_folded(n)}".endswith(f"/{stated}")]
        if longer and not is_whole:
            return longer
        shorter = [n for n in named if f"/{stated}".endswith(f"/{_folded(n)}")]
        most = max((n.count("/") for n in shorter), default=0)
        return [n for n in shorter if n.count("/") == most]


@lru_cache(maxsize=1)
def _finder_of_process(folder: Path) -> PhotoFinder:
    return PhotoFinder(folder)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
