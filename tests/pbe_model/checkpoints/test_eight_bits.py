"""Weights in types that models are not computed in: 8-bit floats are read, others refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pbe_model import PaintByExample
from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import inspect, load_parts, read, state_dict
from pbe_model.checkpoints.save import convert, save_diffusers
from pbe_model.cli.main import main

from ..small import SMALL, noise, small_model

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
LAYER = "model.diffusion_model.middle_block.1.proj_in"
FIRST = "model.diffusion_model.time_embed.0.weight"


def ids(value: object) -> str:
    return str(value).removeprefix("torch.")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return state_dict(small_model())


def write(path: Path, held: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(held, path, {METADATA_KEY: json.dumps(SMALL.to_dict())})
    else:
        torch.save({"state_dict": held, METADATA_KEY: json.dumps(SMALL.to_dict())}, path)
    return path


@pytest.mark.parametrize("dtype", FLOAT8, ids=ids)
def test_float16_holds_every_value_of_8_bits(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    wide, exact = every.to(torch.float16), every.to(torch.float64)
    assert torch.equal(wide.double().nan_to_num(7), exact.nan_to_num(7))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("dtype", FLOAT8[:2], ids=ids)
def test_8_bit_floats_are_a_rounded_model(tmp_path, tensors, dtype, suffix, capsys):
    small = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    path = write(tmp_path / f"a{suffix}", small)
    report = inspect(path)
    assert report.dtypes == [ids(dtype)] and not report.missing
    assert report.notes == [f"{len(small):,} weights were {ids(dtype)}, and became float16"]
    for wanted in (None, torch.float32, torch.bfloat16):
        model = PaintByExample.from_checkpoint(path, dtype=wanted)
        for name, tensor in state_dict(model).items():
            assert tensor.dtype == (wanted or torch.float16)
            assert torch.equal(tensor, small[name].to(tensor.dtype)), name
    for layout, out in (
        ("safetensors", "b.safetensors"),
        ("official", "b.ckpt"),
        ("diffusers", "b"),
    ):
        assert main(["convert", str(path), str(tmp_path / out), "--to", layout]) == 0
        assert "became float16" in capsys.readouterr().out
        found = read(tmp_path / out)
        assert found.dtypes == ["float16"] and not found.notes
        assert all(torch.equal(t, small[n].half()) for n, t in found.tensors.items())


def test_types_may_be_mixed(tmp_path, tensors):
    """Also in the thirds of an attention, which a folder has apart and a model together."""
    types = [torch.float8_e4m3fn, torch.float16, torch.float64, torch.bfloat16, torch.float32]
    folder = tmp_path / "folder"
    save_diffusers(folder, small_model())
    for file in folder.rglob("*.safetensors"):
        held = load_file(file)
        save_file({n: t.to(types[i % 5]) for i, (n, t) in enumerate(held.items())}, file)
    assert inspect(folder).dtypes == sorted(map(ids, types))
    for name, tensor in state_dict(PaintByExample.from_checkpoint(folder)).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, tensors[name], rtol=0.07, atol=0.02)
    convert(folder, tmp_path / "b.ckpt", layout="official", dtype=torch.float16)
    assert read(tmp_path / "b.ckpt").dtypes == ["float16"]


@pytest.mark.parametrize("rows", [False, True], ids=["one scale", "one for each row"])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_scales_are_applied(tmp_path, tensors, name, prefix, rows):
    """As ComfyUI stores them: beside a layer's weight, with a marker and a scale of the inputs."""
    weight = tensors[f"{LAYER}.weight"]
    scale = weight.abs().flatten(1).amax(1) / 448 if rows else weight.abs().max() / 448
    shape = (-1, *(1,) * (weight.ndim - 1))
    stored = (weight / scale.view(shape)).to(torch.float8_e4m3fn)
    more = {
        f"{LAYER}.weight": stored,
        f"{LAYER}.{name}": scale,
        f"{LAYER}.scale_input": torch.tensor(2.0),
        "model.diffusion_model.scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn),
    }
    path = write(tmp_path / "a.ckpt", {prefix + n: t for n, t in (tensors | more).items()})
    file = read(path)
    expected = stored.float() * scale.view(shape)
    assert torch.equal(file.tensors[f"{LAYER}.weight"], expected)
    torch.testing.assert_close(expected, weight, rtol=0.07, atol=0.01)
    gone = {f"{LAYER}.{name}", f"{LAYER}.scale_input", "model.diffusion_model.scaled_fp8"}
    assert set(file.dropped) == {prefix + name for name in gone}
    assert file.notes[0] == "1 weights were float8_e4m3fn with scales, and became float32"
    assert PaintByExample.from_checkpoint(path).config == SMALL


@pytest.mark.parametrize(
    ("name", "scale", "says"),
    [
        ("weight_scale", noise(3), "has a scale of type float32 and shape (3,), and not one"),
        ("weight_scale", torch.ones(1, dtype=torch.int32), "has a scale of type int32"),
        ("scale_weight", torch.tensor(float("nan")), "proj_in.weight's scale holds NaN"),
        ("weight_scale_inv", noise(2, 2), "scales blocks of a weight"),
        ("weight_scale_2", noise(1), "scales blocks of a weight"),
    ],
)  # fmt: skip
def test_scales_that_cannot_be_applied_are_refused(tmp_path, tensors, name, scale, says, capsys):
    stored = tensors[f"{LAYER}.weight"].to(torch.float8_e4m3fn)
    path = write(
        tmp_path / "a.ckpt", tensors | {f"{LAYER}.weight": stored, f"{LAYER}.{name}": scale}
    )
    assert main(["convert", str(path), str(tmp_path / "b.ckpt"), "--to", "official"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "b.ckpt").exists()


def test_a_weight_in_8_bits_that_is_not_a_number_is_refused(tmp_path, tensors):
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    small[f"{LAYER}.weight"].view(torch.uint8)[0, 0] = 0x7F  # NaN
    path = write(tmp_path / "a.ckpt", small)
    with pytest.raises(ValueError, match=f"{LAYER}.weight holds NaN"):
        PaintByExample.from_checkpoint(path)


@pytest.mark.parametrize("dtype", INTEGERS, ids=ids)
@pytest.mark.parametrize("every", [False, True], ids=["one", "all"])
def test_integers_are_refused_before_anything_is_written(tmp_path, tensors, dtype, every, capsys):
    changed = {n: t.to(dtype) for n, t in tensors.items() if every or n == FIRST}
    path = write(tmp_path / "a.safetensors", tensors | changed)
    says = f"{path} holds {FIRST} as {ids(dtype)}, which is not a weight type here"
    for read_it in (
        lambda: PaintByExample.from_checkpoint(path),
        lambda: inspect(path),
        lambda: load_parts(small_model(), read(path).tensors, path),
    ):
        with pytest.raises(ValueError, match=says):
            read_it()
    for layout in ("official", "safetensors", "diffusers"):
        out = tmp_path / "out.safetensors"
        assert main(["convert", str(path), str(out), "--to", layout, "--dtype", "fp16"]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", INTEGERS, ids=ids)
def test_integers_in_a_folder_do_not_hide_in_a_joint_weight(tmp_path, dtype):
    """Torch would join them with floats, silently."""
    folder = tmp_path / "folder"
    save_diffusers(folder, small_model())
    file = folder / "image_encoder/model.safetensors"
    held = load_file(file)
    name = "mapper.blocks.0.attn1.to_q.weight"
    save_file(held | {name: held[name].to(dtype)}, file)
    with pytest.raises(ValueError, match=f"image_encoder.{name} as {ids(dtype)}"):
        convert(folder, tmp_path / "out.ckpt", layout="official")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
