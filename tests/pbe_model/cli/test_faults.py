"""Exit code 2 means that nothing was written, whatever goes wrong, and when."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_model.checkpoints import load
from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main
from pbe_model.model import PaintByExample

from ...limits import largest_file
from ..small import small_model

RNG = np.random.default_rng(0)
PICTURES = ["--image", "photo.png", "--mask", "mask.png", "--exemplar", "exemplar.png"]
MODEL = ["--checkpoint", "small.safetensors", "--device", "cpu", "--steps", "1"]
EDIT = ["edit", *PICTURES, *MODEL, "--out", "out.png"]
BATCH = ["batch", "edits.jsonl", *MODEL, "--out", "results"]
CONVERT = ["convert", "small.safetensors"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model("small.safetensors", small_model())
    monkeypatch.setattr(load, "BUNDLED", tmp_path / "small.safetensors")
    for name, size in (("photo", (40, 50, 3)), ("exemplar", (20, 24, 3))):
        Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(f"{name}.png")
    hole = np.zeros((40, 50), np.uint8)
    hole[10:20, 15:30] = 255
    Image.fromarray(hole).save("mask.png")
    Path("damaged.safetensors").write_bytes(Path("small.safetensors").read_bytes()[:-100])
    Path("edits.jsonl").write_text(json.dumps(dict(zip(
        ("image", "mask", "exemplar"), PICTURES[1::2], strict=True))) + "\n")  # fmt: skip
    Path("file").touch()
    for name in ("folder", "out-2.png", "old"):
        Path(name).mkdir()
    Path("old/grid.png").write_bytes(b"somebody's")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes | None]:
    """The content of every file, hidden ones too, and the names of folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


full_disk = partial(largest_file, 600)


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def no_memory(part: str) -> Iterator[None]:
    """An allocator that has nothing left for one of the networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PaintByExample, part, lambda *_: torch.empty(2**60, dtype=torch.uint8))
        yield


@contextmanager
def read_only(name: str) -> Iterator[None]:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    os.chmod(name, 0o500)
    try:
        yield
    finally:
        os.chmod(name, 0o700)


Fault = Callable[[], "contextmanager"]
FAULTS: dict[str, tuple[list[str], Callable, str]] = {
    # ---- edit: before the model, in it, and at the end
    "edit, no such option": ([*EDIT, "--stepz", "3"], nothing, "--stepz"),
    "edit, numbers": ([*EDIT, "--num-images", "10000000"], nothing, "num_images is 10000000"),
    "edit, a folder": ([*EDIT[:-1], "folder.png/out.png"], nothing, "no folder folder.png"),
    "edit, a long name": ([*EDIT[:-1], "a" * 300 + ".png"], nothing, "too long"),
    "edit, a name that is long once it is numbered": (
        [*EDIT[:-1], "a" * 245 + ".png", "--num-images", "2"], nothing, "too long"),
    "edit, onto the photo": ([*EDIT[:-1], "photo.png"], nothing, "--out and --image name"),
    "edit, onto the mask": ([*EDIT[:-1], "./mask.png"], nothing, "--out and --mask name"),
    "edit, one of several is a folder": (
        [*EDIT, "--num-images", "3"], nothing, "out-2.png: it is a folder"),
    "edit, damaged model": (
        [*EDIT, "--checkpoint", "damaged.safetensors"], nothing, "damaged.safetensors"),
    "edit, resolution": ([*EDIT, "--resolution", "33"], nothing, "resolution 33"),
    "edit, read-only": ([*EDIT[:-1], "folder/out.png"], lambda: read_only("folder"), "read-only"),
    "edit, full": (EDIT, full_disk, "cannot write out.png: File too large"),
    "edit, several, full": (
        [*EDIT[:-1], "many.png", "--num-images", "3"], full_disk, "File too large"),
    "edit, memory": (EDIT, lambda: no_memory("encode"), "out of memory"),
    "edit, memory at the end": (EDIT, lambda: no_memory("decode"), "lower --resolution"),
    # ---- batch
    "batch, no lines": (["batch", "file", *BATCH[2:]], nothing, "file is empty"),
    "batch, a folder": (["batch", "folder", *BATCH[2:]], nothing, "not a regular file"),
    "batch, out is a file": ([*BATCH[:-1], "file"], nothing, "it is a file"),
    "batch, out in nothing": ([*BATCH[:-1], "no/where"], nothing, "there is no folder no"),
    "batch, damaged model": (
        [*BATCH, "--checkpoint", "damaged.safetensors"], nothing, "damaged.safetensors"),
    "batch, no such adapter": ([*BATCH, "--lora", "no.safetensors"], nothing, "no.safetensors"),
    "batch, device": ([*BATCH, "--device", "abacus"], nothing, "'abacus'"),
    # ---- convert
    **{f"convert, full, {layout}": (
        [*CONVERT, out, "--to", layout], full_disk, f"cannot write {out}")
       for layout, out in (("safetensors", "new.safetensors"), ("official", "new.ckpt"),
                           ("diffusers", "new"))},
    "convert, full, official and cast": (
        [*CONVERT, "new.ckpt", "--to", "official", "--dtype", "fp16"], full_disk, "cannot write"),
    "convert, onto itself": (
        [*CONVERT, "./small.safetensors", "--to", "safetensors"], nothing, "another name"),
    "convert, to a folder": ([*CONVERT, "folder", "--to", "official"], nothing, "it is a folder"),
    "convert, to what is there": ([*CONVERT, "old", "--to", "diffusers"], nothing, "exists"),
    "convert, over a file": ([*CONVERT, "file", "--to", "diffusers"], nothing, "it is a file"),
    "convert, damaged": (
        ["convert", "damaged.safetensors", "a.ckpt", "--to", "official"], nothing, "damaged"),
    # ---- the others
    "demo, full": (["demo", "--out", "a/b"], full_disk, "cannot write a/b/"),
    "demo, full, there": (["demo", "--out", "old"], full_disk, "cannot write old/"),
    "demo, memory": (["demo", "--out", "a/b"], lambda: no_memory("decode"), "out of memory"),
    "demo, a file": (["demo", "--out", "file/b"], nothing, "file"),
    "inspect": (["inspect", "damaged.safetensors"], nothing, "damaged.safetensors"),
    "download, nowhere": (["download", "--out", "no/where"], nothing, "no"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_was_written(folder, capsys, monkeypatch, fault):
    argv, state, sentence = FAULTS[fault]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    before = everything(folder)
    with state():
        code = main(argv)
    assert code == 2
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert out == "" or fault == "download"
    assert len(said) == 1 and said[0].startswith("pbe: ") and sentence in said[0]
    assert everything(folder) == before


def test_a_line_that_fails_leaves_nothing_of_itself(folder, capsys):
    line = json.loads(Path("edits.jsonl").read_text())
    Path("edits.jsonl").write_text(json.dumps(line | {"num_images": 2, "out": "a.png"}) + "\n")
    with full_disk():
        assert main(BATCH) == 1
    assert "pbe: line 1: cannot write" in capsys.readouterr().err
    assert list(Path("results").rglob("*")) == []
    with no_memory("decode"):
        assert main(BATCH) == 1
    said = capsys.readouterr().err
    assert "pbe: line 1: out of memory (1,152,921,504,606.8 MB more were needed); lower" in said
    assert main(BATCH) == 0
    assert sorted(os.listdir("results")) == ["a-1.png", "a-2.png"]


def test_where_a_command_has_no_sentence_python_tells(folder, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(PaintByExample, "decode", broken)
    with pytest.raises(KeyError):
        main(EDIT)
    assert sys.stdout is not None and not Path("out.png").exists()
