"""What commands print, which decides nothing: not whether their work is done, nor its exit code.

A code page may lack a letter of a file's name, a reader may go away, a terminal be closed, the disk
behind `> log.txt` be full. None of it may cost a result, or call one that is there a failure.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Errors of a disk without room, on which there may be some again."""


class Output:
    """A text stream that takes whatever is written to it.

    What its encoding cannot say is escaped, as in `\\xf8`; from the first write that fails on,
    nothing is written any more.

    Args:
        stream: Where text goes; other attributes are its.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.full: str | None = None
        """What the system said where text was lost for want of space."""

    def write(self, text: str) -> int:
        """Write text, or what can be of it; returns its length."""
        with self._unfailing():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what is buffered."""
        with self._unfailing():
            self._stream.flush()

    @contextmanager
    def _unfailing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if isinstance(error, OSError) and error.errno in FULL and self.full is None:
                self.full = error.strerror
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Let nothing more go wrong with a stream that nobody reads.

    What it still holds would fail again at the next write, and as Python ends.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def unfailing_output() -> Iterator[Output]:
    """Standard output and error as `Output` for the length of a command.

    Yields:
        Standard output.
    """
    # A closed one of the three standard descriptors would be the number of the next file that is
    # opened, and what a library writes to standard error would be in the result.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        # Python has None where a descriptor was closed when it started.
        stdout, stderr = (
            Output(nowhere if stream is None or stream.closed else stream)
            for stream in (sys.stdout, sys.stderr)
        )
        stack.enter_context(redirect_stdout(stdout))  # pyright: ignore[reportArgumentType]
        stack.enter_context(redirect_stderr(stderr))  # pyright: ignore[reportArgumentType]
        try:
            yield stdout
        finally:
            stdout.flush()
            stderr.flush()
