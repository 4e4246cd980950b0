"""Reading untrusted files: limits before any work, and nothing printed raw.

A file may claim anything, hold anything and be anything (a pipe, a device, a page of HTML). Only
regular files of bounded size are read, text is parsed to a bounded depth, and what an error or a
report repeats from a file is escaped and short.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MAX_TEXT = 2**31
"""Most bytes of a text file that is read line by line."""

MAX_LINE = 2**24
"""Most characters of a line of it."""

_LONGEST = 200
_ELLIPSIS = " ..."


def printable(text: object) -> str:
    """Text with escapes in place of all that is not printable, line ends included.

    So a file cannot send commands to a terminal, and a message stays on one line.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in str(text))


def shown(value: object, limit: int = _LONGEST) -> str:
    """A value from a file as a message repeats it: printable, and no longer than `limit`."""
    try:
        text = str(value) if isinstance(value, (str, os.PathLike)) else repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except ValueError:  # Python refuses to write more than 4,300 digits
        text = "a number of thousands of digits"
    text = printable(text[: limit + 1])
    return text if len(text) <= limit else text[: limit - len(_ELLIPSIS)] + _ELLIPSIS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file.

    Args:
        path: Links are followed.
        limit: Largest size in bytes.

    Raises:
        ValueError: Not a regular file (a pipe would block, a device never end), or too large.
        OSError: Not there, or not readable.
    """
    with open_regular(path, limit) as file:
        return file.read(limit)


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> Any:
    """Open a regular file for reading bytes.

    Args:
        path: Links are followed.
        limit: Largest size in bytes.

    Raises:
        ValueError: It is a folder, a pipe, a socket or a device, or too large.
        OSError: Not there, or not readable.
    """
    # A pipe without a writer would block already while it is opened.
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    if limit is not None and found.st_size > limit:
        os.close(descriptor)
        raise ValueError(f"it has {found.st_size:,} bytes, and {limit:,} are the most")
    return os.fdopen(descriptor, "rb")


def parse_json(
    text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Parse untrusted JSON.

    Args:
        text: UTF-8 where it is bytes.
        hook: As `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: Not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        if not str(error).startswith("Exceeds the limit"):  # JSON's errors, and those of the hook
            raise
        raise ValueError("it has a number of thousands of digits") from None


def read_json(path: Path, limit: int, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: Links are followed.
        limit: Largest size in bytes.
        remedy: What errors tell the user to do.

    Raises:
        ValueError: Not readable, too large, not JSON, or not an object.
    """
    try:
        values = parse_json(read_bytes(path, limit))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON ({first_line(error)}); {remedy}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; {remedy}")
    return values


def first_line(error: BaseException) -> str:
    """An error's message in one printable line, or its type where it has none."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # Not `splitlines`: a name of a file may have what that takes for the end of a line.
    return shown(message.strip().partition("\n")[0].rstrip() or type(error).__name__)


def numbered_lines(
    path: Path, limit: int = MAX_TEXT, errors: str = "strict"
) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped and numbered from 1; a generator.

    Args:
        path: UTF-8 with or without a byte order mark, or UTF-16 with one, as some Windows
            programs save text; with any line ends.
        limit: Largest size in bytes.
        errors: What to do with bytes that are not UTF-8, as for `open`.

    Raises:
        ValueError: It cannot be read, is not UTF-8, is too large, or has too long a line.
    """
    name, number = printable(path), 0
    try:
        with open_regular(path, limit) as file:
            utf_16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            text = io.TextIOWrapper(file, "utf-16" if utf_16 else "utf-8-sig", errors)
            while line := text.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise ValueError(f"its line {number} has more than {MAX_LINE:,} characters")
                if line := line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"'{name}' is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read '{name}': {first_line(error)}") from error
