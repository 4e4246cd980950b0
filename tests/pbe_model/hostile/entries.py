"""Every way into the package that a file of some kind can take.

An entry is called with the file's path, in a folder that holds what `prepare` has put there.
It returns an exit code, or raises the `ValueError` that a caller of the function would get.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pbe_model import PaintByExample
from pbe_model.checkpoints.clip_tower import load_tower
from pbe_model.checkpoints.exemplar_file import load_exemplar
from pbe_model.checkpoints.lora import apply_lora
from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main
from pbe_model.image_io import read_image
from training.cli import main as train_main

from ..small import small_model

Entry = Callable[[Path], object]

_MODEL = "good.safetensors"
_PICTURES = {"image": "photo.png", "mask": "mask.png", "exemplar": "exemplar.png"}
_QUICK = ("--steps", "1", "--device", "cpu")
RESULTS = ("out.png", "out.safetensors")
"""What an entry writes that has accepted a file."""

RUN = """
stage = "diffusion"
model = "tiny"
out = "run"
init = {init}
threads = 1

[data]
root = "data"
index = "train"
"""


@cache
def _model() -> PaintByExample:
    """To be given other weights, by which it is not changed unless all is well."""
    return small_model()


def prepare() -> None:
    """Puts a good model and pictures into the current folder."""
    save_model(Path(_MODEL), small_model())
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save("photo.png")
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save("exemplar.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 12:25] = 255
    Image.fromarray(mask).save("mask.png")


def _edit(*options: object, **pictures: object) -> int:
    named = [f"--{name}={file}" for name, file in {**_PICTURES, **pictures}.items()]
    return main(["edit", *named, "--out", "out.png", *_QUICK, *map(str, options)])


def _batch(edits: Path | dict[str, object], *options: object) -> int:
    """A batch of a file of edits, or of one edit."""
    if isinstance(edits, dict):
        Path("one.jsonl").write_text(json.dumps({**_PICTURES, **edits}))
        edits = Path("one.jsonl")
    try:
        return main(["batch", str(edits), "--out", "results", *_QUICK, *map(str, options)])
    finally:
        shutil.rmtree("results", ignore_errors=True)
        Path("one.jsonl").unlink(missing_ok=True)


def _batch_of_edits(path: Path) -> int:
    """Lines name files relative to their own."""
    for picture in (*_PICTURES.values(), _MODEL):
        if not (path.parent / picture).exists():
            shutil.copy(picture, path.parent)
    return _batch(path, "--checkpoint", _MODEL)


def _result(path: Path) -> int:
    """A picture in the place of a result."""
    Path("results").mkdir()
    Path("results/00001.png").symlink_to(path)
    return _batch({}, "--checkpoint", _MODEL)


def _adapt(path: Path) -> None:
    """An adapter changes a model as a whole or not at all."""
    before = {name: tensor.clone() for name, tensor in _model().state_dict().items()}
    try:
        apply_lora(_model(), path)
    except ValueError:
        after = _model().state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        raise


def _train(path: Path) -> int:
    Path("run.toml").write_text(RUN.format(init=json.dumps(str(path))))
    try:
        return train_main(["train", "run.toml"])
    finally:
        Path("run.toml").unlink()


ENTRIES: dict[str, dict[str, Entry]] = {
    "checkpoint": {
        "inspect": lambda path: (
            main(["inspect", str(path)]) or main(["inspect", "--json", str(path)])
        ),
        "convert": lambda path: main(
            ["convert", str(path), "out.safetensors", "--to", "safetensors"]
        ),
        "edit": lambda path: _edit("--checkpoint", path),
        "batch": lambda path: _batch({}, "--checkpoint", path),
        "from_checkpoint": PaintByExample.from_checkpoint,
        "train": _train,
        "tower": lambda path: load_tower(_model(), path),
    },
    "adapter": {
        "edit": lambda path: _edit("--checkpoint", _MODEL, "--lora", path),
        "apply_lora": _adapt,
    },
    "exemplar": {"load_exemplar": load_exemplar},
    "picture": {
        **{name: lambda path, name=name: _edit(**{name: path}) for name in _PICTURES},
        "context": lambda path: _edit(**{"context-mask": path}),
        "blend": lambda path: _edit(**{"blend-mask": path}),
        "exemplar mask": lambda path: _edit(**{"exemplar-mask": path}),
        "batch image": lambda path: _batch({"image": str(path)}, "--checkpoint", _MODEL),
        "result": _result,
        "read_image": read_image,
    },
    "edits": {"batch": _batch_of_edits},
}
"""By the kind of file and the entry's name."""
