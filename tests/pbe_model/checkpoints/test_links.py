"""Folders whose files are links: into a cache of the hub, into a place that the user has named."""

import os
from pathlib import Path

import pytest
import torch

from pbe_model import PaintByExample
from pbe_model.checkpoints.clip_tower import load_tower
from pbe_model.checkpoints.links import VARIABLE, followed
from pbe_model.checkpoints.load import state_dict
from pbe_model.checkpoints.save import save_diffusers
from pbe_model.cli.main import main

from ..small import small_model


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    save_diffusers(tmp_path / "folder", small_model())
    return tmp_path / "folder"


def link_into(folder: Path, place: Path, *, relative: bool = False) -> None:
    """Moves every file of a folder to `place`, by numbers, and links to it."""
    place.mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        file.rename(place / f"{number}")
        target = place / f"{number}"
        file.symlink_to(os.path.relpath(target, file.parent) if relative else target)


def loads(folder: Path) -> None:
    found, expected = state_dict(PaintByExample.from_checkpoint(folder)), state_dict(small_model())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def refused(folder: Path, capsys) -> None:
    says = "is a link that leads out of the folder"
    with pytest.raises(ValueError, match=f"{says}.* environment variable {VARIABLE}"):
        PaintByExample.from_checkpoint(folder)
    assert main(["inspect", str(folder)]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_snapshot_of_the_hub_wherever_its_cache_is(folder, tmp_path):
    model = tmp_path / "anywhere/models--authors--model"
    snapshot = model / "snapshots/0123abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    link_into(snapshot, model / "blobs", relative=True)
    loads(snapshot)
    (tmp_path / "alias").symlink_to(snapshot)  # such as in the folder of models
    loads(tmp_path / "alias")
    load_tower(small_model(seed=1), tower(snapshot))


def tower(snapshot: Path) -> Path:
    """A part of a snapshot by itself: the image tower, as transformers names it."""
    from safetensors.torch import load_file, save_file

    held = load_file(snapshot / "image_encoder/model.safetensors")
    own = {n.removeprefix("model."): t for n, t in held.items() if n.startswith("model.")}
    part = snapshot / "tower"
    part.mkdir()
    save_file(own, snapshot.parents[1] / "blobs/tower")
    (part / "model.safetensors").symlink_to("../../../blobs/tower")
    return part


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"])
def test_a_folder_elsewhere_that_links_into_the_cache(
    folder, tmp_path, monkeypatch, capsys, variable
):
    """As older versions of the hub's tools made of `--local-dir`."""
    cache = tmp_path / "hub"
    link_into(folder, cache / "models--authors--model/blobs")
    refused(folder, capsys)
    monkeypatch.setenv(variable, str(tmp_path if variable == "HF_HOME" else cache))
    loads(folder)


def test_of_a_cache_only_the_models_files(folder, tmp_path, monkeypatch, capsys):
    for place in ("hub/token", "hub/models--a--b/refs", "hub/datasets--a--b/blobs", "hub/blobs"):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        real = tmp_path / place / "file"
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_bytes(b"x")
        link = folder / "unet" / place.replace("/", " ")
        link.symlink_to(real)
        with pytest.raises(ValueError, match="leads out of the folder"):
            followed(link, folder)


def test_a_place_that_the_user_named(folder, tmp_path, monkeypatch, capsys):
    link_into(folder, tmp_path / "big disk/weights")
    refused(folder, capsys)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    refused(folder, capsys)
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'other'}{os.pathsep}{tmp_path / 'big disk'}")
    loads(folder)


def test_parts_and_files_inside_the_folder(folder):
    (folder / "unet").rename(folder / "unet-v2")
    (folder / "unet").symlink_to("unet-v2")
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "all.safetensors")
    (folder / "vae/diffusion_pytorch_model.safetensors").symlink_to("../all.safetensors")
    loads(folder)


def test_neighbours_and_parents_are_outside(folder, tmp_path, capsys):
    """A name that begins like the folder's, and a cache's layout without a cache."""
    for place in (f"{folder.name} elsewhere", "blobs"):
        real = tmp_path / place / "a"
        real.parent.mkdir()
        real.write_bytes(b"x")
        (folder / place).symlink_to(real)
        with pytest.raises(ValueError, match="leads out of the folder"):
            followed(folder / place, folder)
    link_into(folder, tmp_path / "elsewhere")
    refused(folder, capsys)
