"""Folders that diffusers itself wrote, against the weights they were written from."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, PaintByExamplePipeline, UNet2DConditionModel, pipelines
from diffusers.pipelines.deprecated import paint_by_example
from safetensors.torch import load_file, save_file

from pbe_model import V1, PaintByExample
from pbe_model.checkpoints.diffusers_layout import (
    FOLDERS,
    SCHEDULER,
    from_diffusers,
    module_table,
    renamed,
    to_diffusers,
)
from pbe_model.checkpoints.load import inspect, read, state_dict
from pbe_model.checkpoints.save import convert, save_diffusers, save_model, save_official
from pbe_model.cli.main import main
from pbe_model.config import ScheduleConfig
from pbe_model.editing.denoise import InpaintInputs, guided
from pbe_model.sampling.samplers import sample

from ..peers import peer_encoder, peer_unet, peer_vae
from ..small import SMALL, SMALL_V, noise, relative_error, small_model, uniform


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """Our random weights, given to diffusers' own classes and saved by them."""
    named = to_diffusers(state_dict(model), model.config)
    for part, peer in zip(FOLDERS, (peer_unet(), peer_vae(), peer_encoder()), strict=True):
        own = {n.removeprefix(f"{part}."): t for n, t in named.items() if n.startswith(part)}
        if not any(n.startswith("model.vision_model.") for n in peer.state_dict()):
            own = {n.replace("model.vision_model.", "model."): t for n, t in own.items()}
        peer.load_state_dict(own)
        peer.save_pretrained(tmp_path / part)
    return tmp_path


def rewrite(path: Path, change) -> None:
    save_file({change(n): t for n, t in load_file(path).items()}, path)


def test_a_folder_that_diffusers_saved_gives_the_same_model(folder, model):
    found = PaintByExample.from_checkpoint(folder)
    assert found.config == model.config
    expected, tensors = state_dict(model), state_dict(found)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_there_and_back_is_exact(model):
    tensors = state_dict(model)
    back, names = from_diffusers(to_diffusers(tensors, SMALL), tensors, SMALL)
    assert names.keys() == to_diffusers(tensors, SMALL).keys()
    assert set(names.values()) == tensors.keys()
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("config", [SMALL, V1], ids=["small", "official"])
def test_no_two_tensors_get_one_name(config):
    with torch.device("meta"):
        names = state_dict(PaintByExample(config))
    table = module_table(config)
    found = [theirs for name in names for theirs in renamed(name, table)]
    assert len(set(found)) == len(found) == len(names) + 4 * config.exemplar.mapper_layers


def test_names_of_the_official_size_are_those_of_diffusers():
    with torch.device("meta"):
        ours = to_diffusers(state_dict(PaintByExample(V1)), V1)
        peer = UNet2DConditionModel(in_channels=9, cross_attention_dim=768)
    expected = {f"unet.{name}": tensor.shape for name, tensor in peer.state_dict().items()}
    found = {name: t.shape for name, t in ours.items() if name.startswith("unet.")}
    assert found == expected


def test_older_files_name_the_attention_of_the_first_stage_otherwise(folder, model):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def aged(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{before}")
        return name

    rewrite(folder / "vae/diffusion_pytorch_model.safetensors", aged)
    found, expected = state_dict(PaintByExample.from_checkpoint(folder)), state_dict(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["sharded", "pickled"])
def test_other_ways_to_store_a_part(folder, model, kind):
    part = folder / "unet"
    whole = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    if kind == "pickled":
        torch.save(tensors, part / "diffusion_pytorch_model.bin")
    else:
        files = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        places = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
        for file in files:
            save_file({n: tensors[n] for n in tensors if places[n] == file}, part / file)
        index = part / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found, expected = state_dict(PaintByExample.from_checkpoint(folder)), state_dict(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_snapshot_in_the_cache_of_the_hub(folder, model, tmp_path_factory):
    """Its files are links to `blobs/`, beside the snapshots."""
    home = tmp_path_factory.mktemp("models--authors--model")
    (home / "blobs").mkdir()
    for number, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        place = home / "snapshots" / "0123abc" / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(home / "blobs" / str(number))
        place.symlink_to(Path("../" * (len(file.relative_to(folder).parts) + 1), f"blobs/{number}"))
    found = state_dict(PaintByExample.from_checkpoint(home / "snapshots" / "0123abc"))
    assert all(torch.equal(found[name], tensor) for name, tensor in state_dict(model).items())


def test_inspect_counts_the_whole_folder(folder, model):
    report = inspect(folder)
    assert report.format == "diffusers folder" and report.config == model.config
    assert not report.missing and not report.unexpected
    assert report.size == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_stock_pipeline_loads_what_we_write(tmp_path, model, monkeypatch):
    folder = tmp_path / "folder"
    save_diffusers(folder, model)
    # Where its pipeline was before it became deprecated; folders still name that place.
    monkeypatch.setattr(pipelines, "paint_by_example", paint_by_example, raising=False)
    pipe = PaintByExamplePipeline.from_pretrained(folder)
    named = to_diffusers(state_dict(model), SMALL)
    for part in FOLDERS:
        for name, tensor in getattr(pipe, part).state_dict().items():
            name = re.sub(r"^model\.(?!vision_model)", "model.vision_model.", name)
            if "position_ids" not in name:
                assert torch.equal(tensor, named.pop(f"{part}.{name}")), name
    assert not named
    alphas = pipe.scheduler.alphas_cumprod
    torch.testing.assert_close(alphas, model.schedule.alphas_cumprod.float())
    assert pipe.vae.config.scaling_factor == SMALL.vae.scale_factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_layouts_in_turn_are_exact(tmp_path, model, dtype):
    save_official(tmp_path / "a.ckpt", model, dtype=dtype)
    steps = [("b.safetensors", "safetensors"), ("c", "diffusers"), ("d.ckpt", "official")]
    source = tmp_path / "a.ckpt"
    for name, layout in steps:
        convert(source, tmp_path / name, layout=layout, dtype=dtype)
        source = tmp_path / name
    before, after = read(tmp_path / "a.ckpt"), read(source)
    assert before.tensors.keys() == after.tensors.keys() and before.dropped == after.dropped
    for name, tensor in before.tensors.items():
        assert tensor.dtype == dtype and torch.equal(tensor, after.tensors[name])


def test_what_a_file_says_of_its_training_is_kept(tmp_path, model):
    save_model(tmp_path / "a.safetensors", model, metadata={"training": {"steps": 7}})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", layout="safetensors")
    assert inspect(tmp_path / "b.safetensors").metadata == {"training": '{"steps": 7}'}


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, tokens="all"),
        replace(SMALL, exemplar=replace(SMALL.exemplar, mapper_layers=3)),
        replace(SMALL, exemplar=replace(SMALL.exemplar, num_layers=2, mapper_layers=1)),
        replace(SMALL, schedule=replace(SMALL.schedule, linear_end=0.02)),
    ],
    ids=["tokens", "mapper", "low tower", "schedule"],
)
def test_an_architecture_that_diffusers_cannot_have_is_refused(tmp_path, config):
    with pytest.raises(ValueError, match="keep it as safetensors"):
        save_diffusers(tmp_path / "folder", small_model(config))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["safetensors", "official", "diffusers"])
def test_the_command_converts(tmp_path, model, layout, capsys):
    save_official(tmp_path / "a.ckpt", model)
    out = tmp_path / ("b" + {"safetensors": ".safetensors", "official": ".ckpt"}.get(layout, ""))
    assert main(["convert", str(tmp_path / "a.ckpt"), str(out), "--to", layout]) == 0
    said = capsys.readouterr().out
    kept = len(state_dict(model))
    assert f"{kept} tensors kept, 0 names changed" in said
    assert "dropped     13: betas, " in said and "missing     none" in said
    found = state_dict(PaintByExample.from_checkpoint(out))
    assert all(torch.equal(found[n], t) for n, t in state_dict(model).items())


@pytest.mark.parametrize(
    ("out", "layout", "sentence"),
    [
        ("none/b.ckpt", "official", "there is no folder"),
        ("b.bin", "safetensors", "end it in .safetensors"),
        (".", "official", "it is a folder"),
        (".", "diffusers", "already exists"),
        ("b", "onnx", "invalid choice: 'onnx'"),
    ],
)
def test_bad_conversions_write_nothing(tmp_path, model, monkeypatch, capsys, out, layout, sentence):
    monkeypatch.chdir(tmp_path)
    save_official("a.ckpt", model)
    assert main(["convert", "a.ckpt", out, "--to", layout]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def cut(folder: Path) -> None:
    rewrite(
        folder / "unet/diffusion_pytorch_model.safetensors",
        lambda name: name.replace("conv_in", "conv_other"),
    )


def lead_out(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}})
    )


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (empty, "has no unet/config.json"),
        (lambda f: (f / "vae/config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda f: (f / "vae/config.json").write_text("[]"), "holds no JSON object"),
        (lambda f: (f / "vae/config.json").write_text("{}"), "not describe a Paint by Example"),
        (lambda f: (f / "image_encoder/model.safetensors").unlink(), "no weights in"),
        (cut, "missing model.diffusion_model.input_blocks.0.0.weight"),
        (lead_out, "unet/diffusion_pytorch_model.safetensors is missing"),
    ],
)
def test_damaged_folders_are_refused_in_a_sentence(folder, harm, sentence):
    harm(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        PaintByExample.from_checkpoint(folder)
    assert "\n" not in str(caught.value)


# ---- v and zero terminal SNR -------------------------------------------------------------------

PLAIN_V = replace(SMALL, schedule=ScheduleConfig(prediction="v"))


@pytest.mark.parametrize("config", [PLAIN_V, SMALL_V], ids=["plain", "zero snr"])
def test_the_stock_scheduler_paints_what_we_do_with_a_model_of_v(tmp_path, config):
    """Denoiser and scheduler as diffusers reads them from our folder, in its pipelines' loop."""
    model, similarity, steps = small_model(config), 3.0, 10
    save_diffusers(tmp_path / "folder", model)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "folder" / "unet")
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "folder" / "scheduler")
    start, context = noise(2, 4, 8, 8), noise(1, 1, 24, seed=1)
    inputs = InpaintInputs(*[noise(1, 4, 8, 8, seed=i) for i in (2, 3)], uniform(1, 1, 8, 8))
    found = sample("ddim", guided(model, inputs, context, similarity), start, model.schedule, steps)

    scheduler.set_timesteps(steps)
    x, tokens = start, torch.cat([model.encoder.unconditional(2), context.expand(2, -1, -1)])
    photo = torch.cat([inputs.masked_latent, inputs.keep_mask], dim=1).expand(2, -1, -1, -1)
    for t in scheduler.timesteps:
        rows = torch.cat([x, photo], dim=1).repeat(2, 1, 1, 1)
        with torch.no_grad():
            without, exemplar = unet(rows, t, tokens).sample.chunk(2)
        x = scheduler.step(without + similarity * (exemplar - without), t, x).prev_sample
    assert relative_error(found, x) < 1e-4


@pytest.mark.parametrize("config", [PLAIN_V, SMALL_V], ids=["plain", "zero snr"])
@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_layouts_that_can_say_it_keep_the_prediction(tmp_path, config, layout):
    save_model(tmp_path / "a.safetensors", small_model(config))
    out = tmp_path / ("b.safetensors" if layout == "safetensors" else "b")
    convert(tmp_path / "a.safetensors", out, layout=layout)
    assert inspect(out).config == PaintByExample.from_checkpoint(out).config == config


def test_the_stock_pipeline_takes_the_scheduler_of_a_model_of_v(tmp_path, monkeypatch):
    save_diffusers(tmp_path / "folder", small_model(SMALL_V))
    monkeypatch.setattr(pipelines, "paint_by_example", paint_by_example, raising=False)
    scheduler = PaintByExamplePipeline.from_pretrained(tmp_path / "folder").scheduler
    assert isinstance(scheduler, DDIMScheduler) and scheduler.alphas_cumprod[-1] == 0
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_official_layout_refuses_a_model_of_v(tmp_path, dtype):
    """Its readers would take what it says for the noise."""
    save_model(tmp_path / "a.safetensors", small_model(PLAIN_V))
    for write in (
        lambda out: save_official(out, small_model(PLAIN_V)),
        lambda out: convert(tmp_path / "a.safetensors", out, layout="official", dtype=dtype),
    ):
        with pytest.raises(ValueError, match="official layout cannot say that a model predicts v"):
            write(tmp_path / "b.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample'; a denoiser can predict epsilon"),
        ({"prediction_type": ["v_prediction"]}, "not describe a Paint by Example model"),
        ({"rescale_betas_zero_snr": True}, "does not go with prediction 'epsilon'"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": None}, "give true or false"),
    ],
)
def test_schedulers_that_no_model_can_have_are_refused(folder, entries, sentence):
    file = folder / SCHEDULER
    file.parent.mkdir()
    file.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=sentence):
        PaintByExample.from_checkpoint(folder)
