"""Names that people give to files that are saved."""

from __future__ import annotations

from pathlib import PurePath

_LONGEST = 200
"""Bytes in a name of a file or folder; systems take 255, and endings are added to it."""
_LONGEST_PATH = 1000
"""Bytes in all of it; systems take 4096 or fewer, with the folder that it lies in."""


def checked_name(name: str) -> str:
    """A name in a folder of ours, such as `cat` or `pets/cat`, without spaces around it.

    Raises:
        ValueError: It is empty, too long, leads elsewhere, or holds characters that some systems
            do not take.
    """
    name = name.strip()
    path = PurePath(name.replace("\\", "/"))
    odd = [c for c in name if c in '<>:"|?*' or not c.isprintable()]
    if odd or not path.parts or path.is_absolute() or ".." in path.parts:
        shown = name if len(name) <= _LONGEST else f"{name[:60]} ..."
        raise ValueError(f"{shown!r} is not a name for a file; give one such as cat or pets/cat")
    longest = max(path.parts, key=lambda part: len(part.encode()))
    for text, most in ((longest, _LONGEST), (path.as_posix(), _LONGEST_PATH)):
        if len(text.encode()) > most:
            raise ValueError(
                f"the name {text[:30]} ... has {len(text)} characters ({len(text.encode())} "
                f"bytes), and {most} bytes are the most; give a shorter one"
            )
    return path.as_posix()
