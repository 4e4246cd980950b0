"""From a run to a file that `PaintByExample.from_checkpoint` takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pbe_model import PaintByExample, checkpoint
from training.export import export
from training.loop import train

from .runs import SMALL, newest, run_config


def test_first_stage_then_diffusion_then_both_layouts(photos: Path, tmp_path: Path) -> None:
    first = run_config(photos, tmp_path / "first", steps=2, ema=0.9)
    train(first)
    init = tmp_path / "first.safetensors"
    record = export(first.out, init)
    assert record["steps"] == 2 and record["samples"] == 8
    file = checkpoint.read(init)
    assert all(name.startswith("first_stage_model.") for name in file.tensors)
    sizes = checkpoint.infer_config(file.tensors, file.metadata)
    scale = 1 / record["validation"]["latent_std"]
    assert sizes.vae.scale_factor == pytest.approx(scale, rel=1e-5)
    average = newest(first.out)["ema"]
    weight = file.tensors["first_stage_model.encoder.conv_in.weight"]
    assert torch.equal(weight, average["vae.encoder.conv_in.weight"])

    second = run_config(photos, tmp_path / "second", init, steps=2, train_tower=True, ema=0.9)
    train(second)
    ours, official = tmp_path / "model.safetensors", tmp_path / "model.ckpt"
    record = export(second.out, ours)
    export(second.out, official, layout="official")
    model = PaintByExample.from_checkpoint(ours)
    assert model.config == replace(SMALL, vae=sizes.vae)
    average = newest(second.out)["ema"]
    trained = {
        **model.unet.state_dict(prefix="unet."),
        **model.encoder.state_dict(prefix="encoder."),
    }
    assert average.keys() <= trained.keys()
    assert all(torch.equal(trained[name], value) for name, value in average.items())

    same = PaintByExample.from_checkpoint(official, config=model.config).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(same[name], value), name

    stored = json.loads(checkpoint.read(ours).metadata["training"])
    assert stored["steps"] == 2 and stored["first_stage"]["steps"] == 2
    assert stored["run"]["min_snr"] == 0 and set(stored["validation"]) == {"val_eps_mse"}
    assert str(tmp_path) not in json.dumps(stored)
    assert stored == {**record, "first_stage": stored["first_stage"]}


def test_half_precision(photos: Path, tmp_path: Path) -> None:
    first = run_config(photos, tmp_path / "first", steps=1)
    train(first)
    path = tmp_path / "half.safetensors"
    export(first.out, path, dtype=torch.float16)
    assert {t.dtype for t in checkpoint.read(path).tensors.values()} == {torch.float16}
    with pytest.raises(ValueError, match="a first stage alone has no official layout"):
        export(first.out, tmp_path / "first.ckpt", layout="official")
    assert not (tmp_path / "first.ckpt").exists()


def test_what_is_no_run_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no training run"):
        export(tmp_path, tmp_path / "model.safetensors")
    config = run_config(photos, tmp_path / "run")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        export(tmp_path, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
