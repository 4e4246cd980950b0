"""What came of a collection: what is in its indexes, what was left out of them and why."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from pbe_model.atomic import replacing
from pbe_model.untrusted import printable, shown
from training.prepare.annotations import CLIPPED, Reader
from training.prepare.census import Census, table
from training.prepare.claims import Photos
from training.prepare.faults import most_common
from training.prepare.folder import FolderCount
from training.prepare.pieces import Piece

LIST = "unreadable.txt"
"""What is passed over, in the folder of the indexes."""
_MOST_KINDS = 10  # in the table
_MOST_REASONS = 3  # in a sentence, of a heading
_FIRST = 5  # on the terminal
_WITHOUT_BOX = "without a box left"


@dataclass
class Prepared:
    """What came of a collection.

    Attributes:
        splits: Figures by split.
        photos_left_out: Number of photos by reason.
        passed_over: Number of annotations by what is wrong with them.
        boxes_left_out: Number of boxes by reason, the first that applied.
        clipped: Number of boxes that reached over the photo's edge and were cut off there.
        folder: Every file of the folder of photos, counted.
        first: The first of what is listed: where, and the reason.
        num_listed: How many are.
        boxless: `key_of` of the photos without a box left.
        unusable: Of those left out for another reason.
    """

    splits: dict[str, Census] = field(default_factory=dict)
    photos_left_out: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    boxes_left_out: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    folder: FolderCount = field(default_factory=FolderCount)
    first: list[tuple[str, str]] = field(default_factory=list)
    num_listed: int = 0
    boxless: array[int] = field(default_factory=partial(array, "Q"))
    unusable: array[int] = field(default_factory=partial(array, "Q"))

    @classmethod
    def of(cls, reader: Reader, photos: Photos, pieces: list[Path]) -> Prepared:
        """Everything that was left out.

        Args:
            reader: When its entries have been read.
            photos: Those that were fit.
            pieces: Files of all pieces of work, those of packing too.
        """
        result = cls(photos_left_out=Counter(reader.left_out))
        result.passed_over += reader.faults.counts
        result.first = reader.faults.listed[:_FIRST]
        result.num_listed = reader.faults.total + len(photos.refused)
        for piece in map(Piece.load, pieces):
            result.photos_left_out.update(kind for _, kind, _ in piece.unusable)
            result.photos_left_out[_WITHOUT_BOX] += len(piece.boxless)
            result.passed_over += piece.faults.counts
            result.boxes_left_out += piece.counts
            result.first += islice(_pairs(piece), _FIRST - len(result.first))
            result.num_listed += len(piece.unusable) + piece.faults.total
            result.boxless.extend(photos.key_of(name) for name in piece.boxless)
            result.unusable.extend(photos.key_of(name) for name, _, _ in piece.unusable)
        for fault in photos.faults():
            result.photos_left_out[fault.kind] += 1
            if len(result.first) < _FIRST:
                result.first.append((fault.where, fault.reason))
        result.unusable.extend(photos.key_of(photo) for _, photo in photos.refused)
        result.photos_left_out = +result.photos_left_out
        result.clipped = result.boxes_left_out.pop(CLIPPED, 0)
        return result

    def left_out(self) -> dict[str, dict[str, int]]:
        """Counts by heading and reason, in alphabetical order."""
        headings = {
            "photos left out": self.photos_left_out,
            "boxes left out": self.boxes_left_out,
            "boxes changed": +Counter({"clipped to the photo": self.clipped}),
        }
        if self.passed_over:
            headings["annotations passed over"] = self.passed_over
        return {
            heading: dict(sorted(most_common(counts, _MOST_KINDS).items()))
            for heading, counts in headings.items()
        }

    def reasons(self) -> str:
        """The most common reasons and the first of what is listed, for a sentence; may be empty."""
        headings = {
            "photos left out": self.photos_left_out,
            "annotations passed over": self.passed_over,
            "boxes left out": self.boxes_left_out,
        }
        parts = [
            f"{heading}: " + ", ".join(f"{reason} ({n:,})" for reason, n in counts.items())
            for heading, kinds in headings.items()
            if (counts := most_common(kinds, _MOST_REASONS))
        ]
        parts += [f"the first is {shown(where, 80)}: {reason}" for where, reason in self.first[:1]]
        return "; ".join(parts)

    def __str__(self) -> str:
        """The table that the command prints, and the first of what is listed."""
        lines = [table(self.splits, self.left_out(), self.folder)]
        if self.first:
            which = f"the first {len(self.first)}" if self.num_listed > len(self.first) else "all"
            lines += ["", f"passed over: {self.num_listed:,}, see {LIST}; {which} of them:"]
            lines += [f"  {shown(where, 80)}: {reason}" for where, reason in self.first]
        return "\n".join(lines)


def write_list(path: Path, reader: Reader, photos: Photos, pieces: list[Path]) -> None:
    """A line for all that was passed over: where, a tab, the reason; empty if all is well."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for where, reason in _listed(reader, photos, pieces):
            file.write(f"{printable(where)}\t{shown(reason)}\n")


def _listed(reader: Reader, photos: Photos, pieces: list[Path]) -> Iterator[tuple[str, str]]:
    yield from reader.faults.pairs()
    for piece in map(Piece.load, pieces):
        yield from _pairs(piece)
    yield from ((fault.where, fault.reason) for fault in photos.faults())


def _pairs(piece: Piece) -> Iterator[tuple[str, str]]:
    yield from ((name, reason) for name, _, reason in piece.unusable)
    yield from piece.faults.pairs()
