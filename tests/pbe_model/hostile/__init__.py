"""Files that want to run code, fill the memory, hang, or pass for a model.

Each module is a kind of file: a table of names, makers, and what the sentence about the file says.
A new file is a row in one of them, such as

    "far.ckpt": Case(holding(tensor((1,), (1,), offset=7)), "a tensor claims"),

with the builders of `pickling`, `zipping` and `headers`. `entries` lists what reads each kind;
`python -m tests.pbe_model.hostile` tries files and tells what came of it (see `__main__`).
"""

from __future__ import annotations

from . import (
    adapters,
    archives,
    bombs,
    configurations,
    edits,
    exemplars,
    folders,
    headers,
    opcodes,
    pictures,
    strangers,
    tensors,
)
from .case import Case, Table
from .strangers import Command

__all__ = ["ENTRY_NAMES", "KINDS", "Case", "Command", "Table"]

KINDS: dict[str, tuple[str, Table]] = {
    "archives": ("checkpoint", archives.FILES),
    "opcodes": ("checkpoint", opcodes.FILES),
    "bombs": ("checkpoint", bombs.FILES),
    "tensors": ("checkpoint", tensors.FILES),
    "strangers": ("checkpoint", strangers.FILES),
    "headers": ("checkpoint", headers.FILES),
    "configurations": ("checkpoint", configurations.FILES),
    "folders": ("checkpoint", folders.FILES),
    "adapters": ("adapter", adapters.FILES),
    "exemplars": ("exemplar", exemplars.FILES),
    "pictures": ("picture", pictures.FILES),
    "edits": ("edits", edits.FILES),
}
"""What reads them (of `entries.ENTRIES`), and the files."""

ENTRY_NAMES: dict[str, tuple[str, ...]] = {
    "checkpoint": ("inspect", "convert", "edit", "batch", "from_checkpoint", "train", "tower"),
    "adapter": ("edit", "apply_lora"),
    "exemplar": ("load_exemplar",),
    "picture": (
        "read_image", "image", "mask", "exemplar", "context", "blend", "exemplar mask",
        "batch image", "result",
    ),
    "edits": ("batch",),
}  # fmt: skip
"""Of `entries.ENTRIES`, which imports torch and all that the entries need."""
