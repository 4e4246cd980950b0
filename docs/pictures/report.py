"""What `make pictures` says: a line for each file, and what was left out."""

from __future__ import annotations

from pathlib import Path

from .hosting import ROOT


class Report:
    """Prints as things happen, and remembers whether anything failed."""

    def __init__(self) -> None:
        self.has_failed = False

    def made(self, path: Path, changed: bool) -> None:
        """A file is as it should be; `changed` says whether it was not before."""
        print(f"{'wrote' if changed else 'as before'}: {path.relative_to(ROOT)}", flush=True)

    def note(self, sentence: str) -> None:
        """Something that the reader should know of a picture."""
        print(f"note: {sentence}", flush=True)

    def left_out(self, what: str, remedy: str) -> None:
        """Something was not made, since what it needs is missing."""
        print(f"left out: {what}; {remedy}", flush=True)

    def failed(self, sentence: str) -> None:
        """Something could not be made although all that it needs is there."""
        print(f"failed: {sentence}", flush=True)
        self.has_failed = True
