"""Hostile files in a real ComfyUI: the node fails with a sentence, and the host is as it was.

What becomes of every file in the package is tested beside it (`tests/pbe_model/test_hostile.py`);
here are the worst of each kind, in one host.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.exemplar_file import EncodedExemplar, save_exemplar
from pbe_model.checkpoints.save import save_model

from ..pbe_model.hostile import KINDS
from ..pbe_model.hostile.case import sparse
from .host import Host, HostError, Prompt, find_host

pytestmark = [pytest.mark.host, pytest.mark.slow]

BYTES = 10**9
"""That the host may take for a file."""

CHECKPOINTS = {
    "archives": ("two_faced_script.ckpt", "two_faced_bomb.ckpt"),
    "opcodes": ("pollute_negate.ckpt", "names.ckpt"),
    "bombs": ("hash_key.ckpt", "str_persistent_id.ckpt", "wide_sizes.ckpt", "wide_letters.ckpt"),
    "tensors": ("stride0.ckpt", "nan.ckpt"),
    "headers": ("names.safetensors", "empty_layers.safetensors", "unknown_type.safetensors"),
    "folders": ("two_faced", "size_list", "index_long", "index_escapes"),
}
EXEMPLARS = ("nan.safetensors", "F4.safetensors", "large.safetensors", "newer.safetensors")


@pytest.fixture(scope="module")
def model(host: Host) -> Path:
    """The host's model folder, with a good model and a good exemplar."""
    folder = host.base / "models/paint_by_example"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_model(folder / "good.safetensors", PaintByExample(TINY).eval())
    exemplars = host.base / "output/exemplars"
    exemplars.mkdir(parents=True, exist_ok=True)
    tokens = torch.ones(1, 1, TINY.unet.context_dim)
    save_exemplar(exemplars / "good.safetensors", EncodedExemplar(tokens, tokens))
    return folder


def loading(checkpoint: str) -> Prompt:
    """Paints a bundled scene with a checkpoint: loader 1, sampler 4, picture 5."""
    loader = {"checkpoint": checkpoint, "weight_dtype": "default", "attention": "auto"}
    encoder = {"encoder": ["1", 1], "exemplar": ["2", 2], "fit": "squash", "merge": "one each"}
    sampler = {
        "model": ["1", 0], "positive": ["3", 0], "negative": ["3", 1], "vae": ["1", 2],
        "image": ["2", 0], "mask": ["2", 1], "seed": 3, "steps": 1, "similarity": 2.0,
        "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0, "region": "auto",
        "context": 1.8, "resolution": 0, "blend": -1,
    }  # fmt: skip
    return {
        "1": {"class_type": "PBELoader", "inputs": loader},
        "2": {"class_type": "PBEExampleInputs", "inputs": {"scene": "meadow"}},
        "3": {"class_type": "PBEExemplarEncoder", "inputs": encoder},
        "4": {"class_type": "PBEInpaintSampler", "inputs": sampler},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }


def loading_exemplar(file: str) -> Prompt:
    """Loads an exemplar and saves it again."""
    saved = {"positive": ["1", 0], "negative": ["1", 1], "name": "again"}
    return {
        "1": {"class_type": "PBELoadExemplar", "inputs": {"exemplar": file}},
        "2": {"class_type": "PBESaveExemplar", "inputs": saved},
    }


def peak(host: Host, *, forget: bool = False) -> int:
    """Bytes that the host has had at most since it was told to forget."""
    process = Path(f"/proc/{host.process.pid}")
    if forget:
        (process / "clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s*(\d+) kB", (process / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def error_of(host: Host, prompt: Prompt) -> str:
    """The sentence with which a prompt fails, and which costs the host little."""
    before = peak(host, forget=True)
    try:
        run = host.run(prompt, timeout=60)
        assert run.error is not None, "it was loaded"
        assert run.error["exception_type"] == "ValueError", run.error_text
        text = run.error_text
    except HostError as refused:  # of what the host does not offer
        text = str(refused)
    assert text and text.isprintable(), repr(text)
    assert peak(host) - before < BYTES
    return text


def picture(host: Host, name: str) -> bytes:
    """What a good model paints; the host has not loaded a file of this name before."""
    run = host.run(loading(f"paint_by_example/{name}.safetensors"))
    assert run.error is None, run.error_text
    return host.images(run, "5")[0].tobytes()


def put(folder: Path, kind: str, name: str) -> str:
    """Makes a hostile file; what it is called in the host."""
    target = folder / f"{kind} {name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind][1][name].make(target)
    return target.name


def test_hostile_checkpoints_fail_and_change_nothing(host: Host, model: Path):
    painted = picture(host, "good")
    for kind, names in CHECKPOINTS.items():
        for name in names:
            error = error_of(host, loading(f"paint_by_example/{put(model, kind, name)}"))
            assert re.search(KINDS[kind][1][name].says, error), f"{kind} {name}: {error}"
    shutil.copy(model / "good.safetensors", model / "also good.safetensors")
    assert picture(host, "also good") == painted
    assert not [*host.base.rglob("ran-by-file"), *find_host()[0].glob("ran-by-file")]


def test_hostile_exemplars_fail(host: Host, model: Path):
    folder = host.base / "output/exemplars"
    for name in EXEMPLARS:
        error = error_of(host, loading_exemplar(put(folder, "exemplars", name)))
        assert re.search(KINDS["exemplars"][1][name].says, error), f"{name}: {error}"
    assert host.run(loading_exemplar("good.safetensors")).error is None


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda index: index.symlink_to("/dev/zero"), sparse(b"", 2**36)],
    ids=["pipe", "device", "zeros"],
)
def test_an_index_that_is_no_file_does_not_stop_the_host(
    host: Host, model: Path, make: Callable[[Path], object], tmp_path: Path
):
    index = model / tmp_path.name / "model_index.json"
    index.parent.mkdir()
    make(index)
    before = peak(host, forget=True)
    try:
        info = host.object_info("PBELoader")["PBELoader"]
        assert index.parent.name not in str(info)
        assert peak(host) - before < BYTES
    finally:
        index.unlink()
