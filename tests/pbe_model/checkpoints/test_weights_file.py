"""Files of weights under other names than they should have, and other files under theirs."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pbe_model import PaintByExample
from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import inspect, read, state_dict
from pbe_model.checkpoints.save import save_diffusers, save_model, save_official
from pbe_model.cli.main import main

from ..small import SMALL, small_model


def legacy(path: Path) -> None:
    """As torch before 1.6 saved."""
    held = {"state_dict": state_dict(small_model()), METADATA_KEY: json.dumps(SMALL.to_dict())}
    torch.save(held, path, _use_new_zipfile_serialization=False)


SAVED = {
    "safetensors": lambda path: save_model(path, small_model()),
    "official ckpt": lambda path: save_official(path, small_model()),
    "official ckpt of old": legacy,
}


@pytest.mark.parametrize(
    "name", ["MODEL.SAFETENSORS", "a.ckpt", "a.pt", "a.bin", "a.pth", "a", "a.gguf"]
)
@pytest.mark.parametrize("kind", SAVED)
def test_weights_are_told_by_their_content(tmp_path, kind, name):
    made, path = tmp_path / "made.safetensors", tmp_path / name
    SAVED[kind](made)
    made.rename(path)
    file = read(path)
    assert file.format == kind.removesuffix(" of old")
    assert PaintByExample.from_checkpoint(path).config == SMALL
    assert inspect(path).config == SMALL


def test_other_archives_named_safetensors(tmp_path):
    SAVED["official ckpt"](tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as a torch checkpoint"):
        read(tmp_path / "a.safetensors")


STRANGERS = {
    "an HTML page": b"\n\n<!DOCTYPE html><html><head><title>Sign in</title>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
    "a GGUF model": b"GGUF" + struct.pack("<IQQ", 3, 10, 10) + bytes(64),
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON text": b'{"error": "Repository not found"}\n',
    "a text file": b"Entry not found\n",
    "an empty file": b"",
    "a file of zeros": bytes(4096),
    "a gzip archive": b"\x1f\x8b\x08" + bytes(40),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(40),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".SAFETENSORS", ".bin", ""])
@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_file_of_weights_is_named(tmp_path, kind, suffix, capsys):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(STRANGERS[kind])
    for read_it in (PaintByExample.from_checkpoint, inspect):
        with pytest.raises(ValueError, match=f"cannot be read as weights: it is {kind}") as caught:
            read_it(path)
        assert str(path) in str(caught.value)
    assert main(["convert", str(path), str(tmp_path / "out"), "--to", "official"]) == 2
    said = capsys.readouterr().err
    assert f"it is {kind}" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_in_a_folder_too(tmp_path):
    folder = tmp_path / "folder"
    save_diffusers(folder, small_model())
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(STRANGERS["a Git LFS pointer"])
    with pytest.raises(ValueError, match=r"unet/.* it is a Git LFS pointer"):
        PaintByExample.from_checkpoint(folder)


def test_an_adapter_or_a_part_is_no_model(tmp_path):
    save_diffusers(tmp_path / "folder", small_model())
    with pytest.raises(ValueError, match=r"names are those of diffusers, .* give the folder"):
        PaintByExample.from_checkpoint(tmp_path / "folder/unet/diffusion_pytorch_model.safetensors")
    save_file({"lora_unet_mid_block.lora_up.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"this is an adapter \(LoRA\)"):
        PaintByExample.from_checkpoint(tmp_path / "a.safetensors")
