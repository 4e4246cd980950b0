"""Links in a folder of weights: which of them are followed.

A folder may come from a stranger, and a link in it could pass a private file off as weights. A
target is read where the user could have meant it: inside the folder itself, in the cache of the hub
that the folder is part of, or that its tools keep, or below a folder that the user has named.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..untrusted import shown

VARIABLE = "PBE_LINKED_FOLDERS"
"""Environment variable: folders that links may lead to, separated as in PATH."""

_BLOBS = "blobs"  # of a model in the hub's cache: files by their hashes
_SNAPSHOTS = "snapshots"  # beside it: folders of links to them


def followed(path: Path, root: Path) -> Path:
    """The path, once it is known that links do not lead it astray.

    Args:
        path: A file in the folder.
        root: The folder.

    Raises:
        ValueError: It is a link to somewhere else.
    """
    real, home = _real(path), _real(root)
    allowed = [home, *_named()]
    if (model := _model_of(home)) is not None:
        allowed.append(model / _BLOBS)
    if any(real.is_relative_to(folder) for folder in allowed) or _in_cache(real):
        return path
    raise ValueError(
        f"{shown(path)} is a link that leads out of the folder, to {shown(real)}; put the file "
        f"itself there, or name the folder of the target in the environment variable {VARIABLE}"
    )


def _real(path: Path) -> Path:
    """Where a path leads; links in a circle, at which `Path.resolve` fails, lead to themselves."""
    return Path(os.path.realpath(path))


def _named() -> list[Path]:
    """The folders that the user has named."""
    given = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [_real(Path(name).expanduser()) for name in given if name]


def _model_of(home: Path) -> Path | None:
    """Where the cache keeps the model that a folder is a snapshot, or a part of a snapshot, of."""
    for folder in home.parents:
        if folder.name == _SNAPSHOTS:
            return folder.parent
    return None


def _in_cache(real: Path) -> bool:
    """Whether a file is one of a model that the hub's tools have downloaded for this user.

    They link to such files from folders elsewhere too. The variables are those tools' own.
    """
    home = os.environ.get("HF_HOME", os.path.join("~", ".cache", "huggingface"))
    caches = [os.environ.get(name) for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")]
    for cache in (*caches, os.path.join(home, "hub")):
        if not cache:
            continue
        folder = _real(Path(cache).expanduser())
        if real.is_relative_to(folder):
            model, kind, *_ = (*real.relative_to(folder).parts, "", "")
            return model.startswith("models--") and kind == _BLOBS
    return False
