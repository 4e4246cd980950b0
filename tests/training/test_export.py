"""From a run's folder to files that we, the host, and diffusers take."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import (
    PaintByExampleImageEncoder,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from pbe_model import PaintByExample
from pbe_model.checkpoints import load as checkpoint
from pbe_model.checkpoints import save as saving
from pbe_model.checkpoints.lora import apply_lora
from pbe_model.cli.main import main as pbe
from pbe_model.config import EditDefaults
from training.cli import main
from training.config import RunConfig
from training.export import export
from training.loop import train
from training.optim import ema

from .runs import SMALL, newest, randomise, run_config

DEEP = replace(SMALL, exemplar=replace(SMALL.exemplar, num_layers=4))
"""Diffusers derives the mapper's depth from the tower's."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model to start from."""
    torch.manual_seed(0)
    model = PaintByExample(DEEP)
    randomise(model)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    saving.save_model(path, model, metadata={"training": {"steps": 7}})
    return path


def trained(photos: Path, folder: Path, base: Path, **options) -> RunConfig:
    """A finished run, its pictures gone."""
    shutil.copytree(photos, folder / "photos")
    config = run_config(folder / "photos", folder / "run", base, **{"steps": 2, **options})
    train(config)
    shutil.rmtree(folder / "photos")
    return config


@pytest.fixture(scope="module")
def averaging(photos: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with averages of three kinds and three checkpoints."""
    options = {"ema.decay": 0.9, "ema.lengths": (0.05, 0.2), "ema.snapshot_every": 1}
    options |= {"checkpoint.every": 1, "checkpoint.keep": 3, "steps": 3, "log.sample_every": 2}
    return trained(photos, tmp_path_factory.mktemp("averaging"), base, **options)


@pytest.fixture(scope="module")
def adapters(photos: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of adapters."""
    options = {"lora.rank": 2, "lora.alpha": 4, "optim.lr": 0.05}
    options["lora.targets"] = ("attn1", "attn2", "ff", "mapper")
    return trained(photos, tmp_path_factory.mktemp("adapters"), base, **options)


def weights(path: Path) -> dict[str, Tensor]:
    return dict(PaintByExample.from_checkpoint(path).state_dict())


def test_first_stage_then_diffusion_then_both_layouts(photos: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "ema.decay": 0.9}
    first = run_config(photos, tmp_path / "first", **options)
    train(first)
    init = tmp_path / "first.safetensors"
    record = export(first.out, init)
    assert record["steps"] == 2 and record["samples"] == 8 and record["weights"] == "ema"
    file = checkpoint.read(init)
    assert all(name.startswith("first_stage_model.") for name in file.tensors)
    sizes = checkpoint.infer_config(file.tensors, file.metadata)
    scale = 1 / record["validation"]["latent_std"]
    assert sizes.vae.scale_factor == pytest.approx(scale, rel=1e-5)
    average = newest(first.out)["ema"]["classic"]
    weight = file.tensors["first_stage_model.encoder.conv_in.weight"]
    assert torch.equal(weight, average["vae.encoder.conv_in.weight"])

    second = run_config(photos, tmp_path / "second", init, train_tower=True, **options)
    train(second)
    ours, official = tmp_path / "model.safetensors", tmp_path / "model.ckpt"
    record = export(second.out, ours)
    export(second.out, official, layout="official")
    assert not (second.out / "latents").exists()
    model = PaintByExample.from_checkpoint(ours)
    assert model.config == replace(SMALL, vae=sizes.vae)
    average, found = newest(second.out)["ema"]["classic"], model.state_dict()
    assert average.keys() <= found.keys()
    assert all(torch.equal(found[name], value) for name, value in average.items())
    same = weights(official)
    for name, value in found.items():
        assert torch.equal(same[name], value), name

    stored = json.loads(checkpoint.read(ours).metadata["training"])
    assert stored["steps"] == 2 and stored["init"]["steps"] == 2
    assert stored["run"]["loss"]["min_snr"] == 0 and set(stored["validation"]) == {"val_eps_mse"}
    assert str(tmp_path) not in json.dumps(stored)
    assert stored == {**record, "init": stored["init"]}


def test_a_first_stage(photos: Path, tmp_path: Path) -> None:
    first = run_config(photos, tmp_path / "first", steps=1)
    train(first)
    path = tmp_path / "half.safetensors"
    export(first.out, path, dtype=torch.float16)
    assert {t.dtype for t in checkpoint.read(path).tensors.values()} == {torch.float16}
    for layout in ("official", "diffusers"):
        with pytest.raises(ValueError, match=f"a first stage alone has no {layout} layout"):
            export(first.out, tmp_path / "first.ckpt", layout=layout)
    assert not (tmp_path / "first.ckpt").exists()
    (saved,) = (first.out / "checkpoints").iterdir()
    values = torch.load(saved, weights_only=True)
    torch.save({**values, "figures": {}}, saved)
    with pytest.raises(ValueError, match=r"does not know its latents' deviation.*validation"):
        export(first.out, path)


def test_each_kind_of_weights(averaging: RunConfig, tmp_path: Path) -> None:
    saved = newest(averaging.out)
    kinds = {
        None: saved["ema"]["classic"],
        "ema": saved["ema"]["classic"],
        "raw": saved["module"],
        "0.05": saved["ema"]["0.05"],
    }
    path = tmp_path / "model.safetensors"
    for name, expected in kinds.items():
        record = export(averaging.out, path, weights=name)
        assert record["weights"] == (name or "ema")
        # Figures are those of the average, which validation takes.
        assert set(record["validation"]) == ({"val_eps_mse"} if name in (None, "ema") else set())
        found = weights(path)
        assert all(torch.equal(found[n], value) for n, value in expected.items()), name
    first = next(iter(saved["module"]))
    assert len({float(kind[first].double().sum()) for kind in kinds.values()}) == 3

    expected = ema.reconstruct(averaging.out, 0.1)
    record = export(averaging.out, path, ema_length=0.1)
    assert record["weights"] == "average of relative length 0.1" and record["steps"] == 3
    found = weights(path)
    assert all(torch.equal(found[n], value) for n, value in expected.items())
    record = export(averaging.out, path, ema_length=0.1, step=2)
    assert record["steps"] == 2 and record["validation"] == {}
    assert not torch.equal(weights(path)[first], found[first])
    with pytest.raises(ValueError, match=r"no weights called '0\.1'; it has raw, ema, 0\.05, 0\.2"):
        export(averaging.out, path, weights="0.1")
    with pytest.raises(ValueError, match="exclude each other"):
        export(averaging.out, path, weights="ema", ema_length=0.1)


def test_an_earlier_step(averaging: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    record = export(averaging.out, path, step=2, weights="raw")
    assert record["steps"] == 2 and record["samples"] == 8
    saved = torch.load(averaging.out / "checkpoints/step-00000002.pt", weights_only=True)
    found = weights(path)
    assert all(torch.equal(found[n], value) for n, value in saved["module"].items())
    with pytest.raises(ValueError, match="has no checkpoint of step 9; it has 1, 2, 3"):
        export(averaging.out, path, step=9)


def test_frozen_weights_come_from_what_it_started_from(
    averaging: RunConfig, base: Path, tmp_path: Path
) -> None:
    path, saved = tmp_path / "model.safetensors", newest(averaging.out)["module"]
    export(averaging.out, path)
    before, found = weights(base), weights(path)
    frozen = before.keys() - saved.keys()
    assert any(name.startswith("vae.") for name in frozen)
    assert any("transformer.encoder" in name.replace("vision_model.", "") for name in frozen)
    assert all(torch.equal(found[name], before[name]) for name in frozen)


def test_adapters_are_merged_or_written_apart(
    adapters: RunConfig, base: Path, tmp_path: Path
) -> None:
    merged, alone = tmp_path / "merged.safetensors", tmp_path / "lora.safetensors"
    export(adapters.out, merged)
    export(adapters.out, alone, layout="lora", dtype=torch.float16)
    metadata = checkpoint.read(alone).metadata
    assert (metadata["rank"], metadata["alpha"], metadata["base"]) == ("2", "4.0", base.name)
    training = json.loads(metadata["training"])
    assert training["steps"] == 2 and training["init"] == {"steps": 7}
    export(adapters.out, alone, layout="lora")
    model, before, found = PaintByExample.from_checkpoint(base), weights(base), weights(merged)
    adapted = {f"{name}.weight" for name in apply_lora(model, alone).layers}
    assert len(adapted) > 10 and any("mapper" in name for name in adapted)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in adapted), name
        assert torch.allclose(found[name], value, atol=1e-6), name


def test_adapters_in_every_full_layout(adapters: RunConfig, tmp_path: Path) -> None:
    export(adapters.out, tmp_path / "model.safetensors")
    export(adapters.out, tmp_path / "model.ckpt", layout="official")
    export(adapters.out, tmp_path / "folder", layout="diffusers")
    ours = weights(tmp_path / "model.safetensors")
    for name in ("model.ckpt", "folder"):
        same = weights(tmp_path / name)
        assert all(torch.equal(same[n], value) for n, value in ours.items()), name


def test_diffusers_own_classes_compute_the_same(averaging: RunConfig, tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "model.safetensors"
    export(averaging.out, folder, layout="diffusers")
    export(averaging.out, path)
    model = PaintByExample.from_checkpoint(path)
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    encoder = PaintByExampleImageEncoder.from_pretrained(folder / "image_encoder")
    x, t, context, image, pixels = (
        noise(2, 9, 8, 8), torch.tensor([3, 700]), noise(2, 1, 16), noise(1, 3, 16, 16),
        noise(2, 3, 16, 16),
    )  # fmt: skip
    with torch.no_grad():
        pairs = {
            "unet": (model.unet(x, t, context), unet(x, t, context).sample),
            "vae": (model.vae.encode(image).mean, vae.encode(image).latent_dist.mean),
            "encoder": (model.encoder(pixels), encoder(pixels)),
            "vector": (model.encoder.learnable_vector, encoder.uncond_vector),
        }
    for name, (ours, theirs) in pairs.items():
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max(), name


def test_what_it_started_from_may_have_moved(
    photos: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image tower too."""
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=1,
            image_size=16, patch_size=8,
        )
    )  # fmt: skip
    randomise(tower, seed=5)
    tower.save_pretrained(tmp_path / "clip")
    shutil.copy(base, tmp_path / "there.safetensors")
    config = trained(
        photos, tmp_path, tmp_path / "there.safetensors", init_tower=tmp_path / "clip", steps=1
    )
    out = tmp_path / "a.safetensors"
    export(config.out, out)
    first = weights(out)
    patches = next(
        value for name, value in first.items() if name.endswith("patch_embedding.weight")
    )
    mine = next(v for n, v in tower.state_dict().items() if n.endswith("patch_embedding.weight"))
    assert torch.equal(patches, mine)

    (tmp_path / "there.safetensors").rename(tmp_path / "here.safetensors")
    (tmp_path / "clip").rename(tmp_path / "moved")
    command = ["export", str(config.out), str(tmp_path / "b.safetensors")]
    for name, moved in (("init", "here.safetensors"), ("init-tower", "moved")):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "which is not there" in said and f"--{name} FILE" in said
        command += [f"--{name}", str(tmp_path / moved)]
    assert main(command) == 0
    again = weights(tmp_path / "b.safetensors")
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_another_file_to_start_from_is_refused(averaging: RunConfig, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    saving.save_model(other, PaintByExample(replace(DEEP, unet=replace(DEEP.unet, context_dim=24))))
    with pytest.raises(ValueError, match="holds other trainable parameters"):
        export(averaging.out, tmp_path / "model.safetensors", init=other)


def test_v_prediction_has_no_official_layout(photos: Path, base: Path, tmp_path: Path) -> None:
    options = {"loss.prediction": "v", "loss.zero_terminal_snr": True, "steps": 1}
    options["init_parts"] = ["vae", "encoder"]  # the denoiser of `base` predicts the noise
    config = trained(photos, tmp_path, base, **options)
    export(config.out, tmp_path / "model.safetensors")
    model = PaintByExample.from_checkpoint(tmp_path / "model.safetensors")
    assert model.config.schedule.prediction == "v" and model.config.schedule.zero_terminal_snr
    with pytest.raises(ValueError, match="official"):
        export(config.out, tmp_path / "model.ckpt", layout="official")
    assert not (tmp_path / "model.ckpt").exists()


def test_the_result_paints(
    adapters: RunConfig, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With both commands; the adapter beside its base as the merged model."""
    picture = torch.randint(0, 256, (24, 24, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(picture.byte().numpy()).save(tmp_path / "photo.png")
    hole = torch.zeros(24, 24, dtype=torch.uint8)
    hole[6:18, 6:18] = 255
    Image.fromarray(hole.numpy()).save(tmp_path / "hole.png")
    out = {name: str(tmp_path / f"{name}.safetensors") for name in ("model", "lora")}
    assert main(["export", str(adapters.out), out["model"]]) == 0
    assert f"{out['model']}: after 2 steps; raw; val_eps_mse " in capsys.readouterr().out
    assert main(["export", str(adapters.out), out["lora"], "--to", "lora"]) == 0
    files = {"image": "photo.png", "mask": "hole.png", "exemplar": "photo.png"}
    inputs = [word for k, v in files.items() for word in (f"--{k}", str(tmp_path / v))]
    edit = ["edit", *inputs, "--steps", "2", "--device", "cpu", "--out"]
    results = []
    for name, model in (
        ("a", ["--checkpoint", out["model"]]),
        ("b", ["--checkpoint", str(base), "--lora", out["lora"]]),
        ("c", ["--checkpoint", str(base)]),
    ):
        assert pbe([*edit, str(tmp_path / f"{name}.png"), *model]) == 0
        with Image.open(tmp_path / f"{name}.png") as image:
            results.append(torch.from_numpy(np.array(image.convert("RGB"), np.int32)))
    assert (results[0] - results[1]).abs().max() <= 1
    assert (results[0] - results[2]).abs().max() > 8


def test_what_cannot_be_written_is_said_before_the_work(
    averaging: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.starting_model", lambda config: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"trained no adapters \(its lora.rank is 0\)"):
        export(averaging.out, tmp_path / "lora.safetensors", layout="lora")
    with pytest.raises(ValueError, match=r"end it in \.safetensors"):
        export(averaging.out, tmp_path / "model.ckpt")


def test_what_is_no_run_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="is no training run"):
        export(tmp_path, out)
    config = run_config(photos, tmp_path / "run")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        export(tmp_path, out)
    (tmp_path / "config.json").write_text('{"stage": "diffusion", "min_snr": 5}')
    with pytest.raises(ValueError, match="no configuration of this version"):
        export(tmp_path, out)
    assert not out.exists()


def test_the_file_says_what_the_model_paints_with(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    run = run_config(photos, tmp_path / "run", first_stage, steps=1)
    train(run)
    path = tmp_path / "model.safetensors"
    export(run.out, path)
    assert PaintByExample.from_checkpoint(path).config.defaults == EditDefaults()
    assert main(["export", str(run.out), str(path), "--similarity", "2.5", "--steps", "3"]) == 0
    model = PaintByExample.from_checkpoint(path)
    assert model.config.defaults == EditDefaults(similarity=2.5, steps=3)
    for options, words in (
        ({"layout": "official"}, "similarity would be lost: only a whole model"),
        ({"defaults": {"sampler": "none"}}, "unknown sampler 'none'; choose from"),
    ):
        given = {"defaults": {"similarity": 2.0}} | options
        with pytest.raises(ValueError, match=words):
            export(run.out, tmp_path / "other.safetensors", **given)
