"""What is passed over in a collection: counted by kind, and listed one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pbe_model.untrusted import first_line, shown

MOST_LISTED = 10_000
"""Faults that are listed of a piece of work, or of one file of annotations; all are counted."""


class Fault(NamedTuple):
    """Something that is passed over.

    Attributes:
        where: The photo, or the file and the line or entry in it.
        kind: What is wrong, in words that are the same for all of its kind.
        detail: The offending value.
    """

    where: str
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """Kind and detail in one printable line."""
        return shown(f"{self.kind} ({self.detail})" if self.detail else self.kind)


@dataclass
class Faults:
    """Faults of annotations.

    Attributes:
        counts: How many, by kind.
        listed: Where, and the reason.
        unlisted: How many would have gone beyond `MOST_LISTED`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str]] = field(default_factory=list)
    unlisted: int = 0

    def note(self, faults: Iterable[Fault]) -> None:
        """Count and list faults."""
        for fault in faults:
            self.counts[fault.kind] += 1
            self.mention(fault)

    def mention(self, fault: Fault) -> None:
        """List a fault that is counted elsewhere."""
        if len(self.listed) < MOST_LISTED:
            self.listed.append((fault.where, fault.reason))
        else:
            self.unlisted += 1

    @property
    def total(self) -> int:
        """How many there are to list."""
        return len(self.listed) + self.unlisted

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Where, and the reason, of each that is listed."""
        yield from self.listed
        if self.unlisted:
            yield f"and {self.unlisted:,} more", "not listed"


def kind_of(error: OSError) -> str:
    """What is wrong with a photo that cannot be read, in words that are the same for all alike."""
    kind = first_line(error).partition(" (")[0]
    return "unreadable" if any(c.isdigit() for c in kind) else kind


def most_common(counts: Counter[str], most: int) -> dict[str, int]:
    """The most frequent kinds, in alphabetical order where as frequent, the rest as "others"."""
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    found = dict(pairs[:most])
    if rest := sum(count for _, count in pairs[most:]):
        found["others"] = rest
    return found
