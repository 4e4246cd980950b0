"""Every file of a folder of photos, counted by what became of it."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from training.prepare.annotations import all_files, is_picture
from training.prepare.claims import hash_of

_SUFFIXES = 4  # the most frequent ones are named


@dataclass
class FolderCount:
    """How many files of a folder there are of each kind; together they are all.

    Attributes:
        used: Photos of the indexes.
        boxless: Photos without a box left.
        unusable: Photos that are unreadable or whose annotations are.
        alone: Pictures that nothing annotates.
        annotations: Files in the folder of annotations, where that lies inside.
        others: Other files, by suffix.
    """

    used: int = 0
    boxless: int = 0
    unusable: int = 0
    alone: int = 0
    annotations: int = 0
    others: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> int:
        """All of them."""
        counts = (self.used, self.boxless, self.unusable, self.alone, self.annotations)
        return sum(counts) + self.others.total()

    def rows(self) -> dict[str, int]:
        """What a table says, without what is not there."""
        named = sorted(self.others.items(), key=lambda pair: (-pair[1], pair[0]))
        suffixes = ", ".join(f"{suffix} {count:,}" for suffix, count in named[:_SUFFIXES])
        more = ", ..." if len(named) > _SUFFIXES else ""
        rows = {
            "pictures used": self.used,
            "pictures without a box left": self.boxless,
            "pictures left out": self.unusable,
            "pictures that nothing annotates": self.alone,
            "files of annotations": self.annotations,
            f"other files ({suffixes}{more})": self.others.total(),
        }
        return {name: count for name, count in rows.items() if count}


def count_folder(
    images: Path,
    annotations: Path,
    out: Path,
    used: ArrayLike,
    boxless: ArrayLike,
    unusable: ArrayLike,
) -> FolderCount:
    """Count the files of a folder.

    Args:
        images: The folder.
        annotations: Counted apart where that is a folder inside.
        out: Not counted where it lies inside.
        used: `Photos.key_of` of the photos that are used.
        boxless: Of those without a box left.
        unusable: Of those that are left out; others may be among them.
    """
    images, annotations = images.absolute(), annotations.absolute()
    inside = ""
    if annotations != images and annotations.is_relative_to(images) and annotations.is_dir():
        inside = annotations.relative_to(images).as_posix() + "/"
    suffixes: dict[str, int] = {}
    hashes, kinds = array("Q"), array("q")  # a million files are little that way
    for name in all_files(images, out):
        if is_picture(name):
            kind = "picture"
        elif name.rpartition("/")[2].startswith("."):
            kind = "hidden"
        else:
            kind = os.path.splitext(name)[1].lower()[:16] or "without suffix"
        if inside and name.startswith(inside):
            kind = "annotations"
        hashes.append(hash_of(name))
        kinds.append(suffixes.setdefault(kind, len(suffixes)))
    found, kind = np.frombuffer(hashes, np.uint64), np.frombuffer(kinds, np.int64)
    counts, left = [], np.ones(len(found), bool)
    for keys in (used, boxless, unusable):
        there = left & np.isin(found, np.asarray(keys, np.uint64))
        counts.append(int(there.sum()))
        left &= ~there
    by_kind = np.bincount(kind[left], minlength=len(suffixes)).tolist()
    others = Counter({name: by_kind[number] for name, number in suffixes.items()})
    alone, inner = others.pop("picture", 0), others.pop("annotations", 0)
    return FolderCount(*counts, alone=alone, annotations=inner, others=+others)
