"""Checkpoints of Stable Diffusion as the start of a training, and moving averages."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pbe_model import PaintByExample
from pbe_model.checkpoints.diffusers_layout import to_diffusers
from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import (
    START,
    Checkpoint,
    inspect,
    load_parts,
    read,
    starting_point,
    state_dict,
)
from pbe_model.checkpoints.save import convert, save_diffusers
from pbe_model.cli.main import main

from ..peers import peer_unet, peer_vae
from ..small import SMALL, noise, randomise, relative_error, small_model

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
TEXT = "cond_stage_model.transformer.text_model."


def stable_diffusion() -> dict[str, Tensor]:
    """What such a checkpoint holds, at small size: its denoiser has four input channels."""
    tensors = state_dict(small_model(), START)
    tensors[FIRST] = tensors[FIRST][:, :4].clone()
    tensors[f"{TEXT}embeddings.token_embedding.weight"] = noise(10, 24)
    tensors[f"{TEXT}embeddings.position_ids"] = torch.arange(77)[None]
    tensors["betas"] = torch.zeros(1000)
    return tensors


@pytest.fixture
def sd(tmp_path) -> Path:
    path = tmp_path / "sd-v1-4.ckpt"
    torch.save({"state_dict": stable_diffusion(), "global_step": 470000}, path)
    return path


def loaded(file: Checkpoint) -> PaintByExample:
    model = small_model(seed=1)
    assert load_parts(model, file.tensors, file.path) == ["unet", "vae"]
    return model


def test_it_predicts_what_stable_diffusion_does_whatever_the_photo(sd):
    """Only the first four channels count: the order of the nine is ours, not SD-inpaint's."""
    model = loaded(starting_point(read(sd)))
    peer = peer_unet()
    config = {**peer.config, "in_channels": 4}
    peer = UNet2DConditionModel.from_config(config)
    weights = to_diffusers(state_dict(model, ["unet"]), SMALL)
    own = {name.removeprefix("unet."): tensor for name, tensor in weights.items()}
    own["conv_in.weight"] = own["conv_in.weight"][:, :4]
    peer.load_state_dict(own)
    x, context, t = noise(2, 4, 8, 8), noise(2, 3, 24, seed=1), torch.tensor([7, 400])
    photo, keep_mask = noise(2, 4, 8, 8, seed=2), noise(2, 1, 8, 8, seed=3)
    with torch.no_grad():
        ours = model.predict_noise(x, t, photo, keep_mask, context)
        assert relative_error(ours, peer(x, t, context).sample) < 1e-4


def test_five_zero_channels_are_appended_and_the_text_encoder_is_dropped(sd):
    file, given = starting_point(read(sd)), stable_diffusion()
    assert file.tensors[FIRST].shape[1] == 9
    assert torch.equal(file.tensors[FIRST][:, :4], given[FIRST])
    assert not file.tensors[FIRST][:, 4:].any()
    assert file.tensors.keys() == state_dict(small_model(), START).keys()
    assert set(file.dropped) == {"betas", *(n for n in given if n.startswith(TEXT))}


def test_other_checkpoints_are_left_as_they_are(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(state_dict(small_model()), path)
    file = read(path)
    assert starting_point(file) is file


def test_a_folder_of_stable_diffusion(tmp_path, sd):
    """As diffusers writes one; its image encoder is that of the published model, if any."""
    folder = tmp_path / "sd"
    unet = UNet2DConditionModel.from_config({**peer_unet().config, "in_channels": 4})
    vae = peer_vae()
    randomise(unet)
    randomise(vae, seed=1)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / "text_encoder").mkdir()
    file = starting_point(read(folder))
    model = loaded(file)
    x, context, t = noise(1, 4, 8, 8), noise(1, 3, 24, seed=1), torch.tensor([7])
    with torch.no_grad():
        ours = model.predict_noise(x, t, noise(1, 4, 8, 8), noise(1, 1, 8, 8), context)
        assert relative_error(ours, unet(x, t, context).sample) < 1e-4
    assert file.format == "diffusers folder of Stable Diffusion"


def test_it_converts_to_the_start_of_a_training_only(tmp_path, sd, capsys):
    out = tmp_path / "start.safetensors"
    assert main(["convert", str(sd), str(out), "--to", "safetensors"]) == 0
    said = capsys.readouterr().out
    assert f"{len(state_dict(small_model(), START))} tensors kept" in said
    assert "missing     4" in said  # the image encoder
    again, once = read(out), starting_point(read(sd))
    assert all(torch.equal(again.tensors[name], once.tensors[name]) for name in once.tensors)
    for layout in ("official", "diffusers"):
        with pytest.raises(ValueError, match=r"without an image encoder.*--to safetensors"):
            convert(sd, tmp_path / "model", layout=layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sd-v1-4.ckpt", "start.safetensors"]


def test_inspect_says_what_it_is(sd):
    report = inspect(sd)
    assert report.format == "official ckpt of Stable Diffusion"
    assert not report.unexpected and "learnable_vector" in report.missing


def test_it_cannot_paint(sd):
    with pytest.raises(ValueError, match="cannot see exemplars"):
        PaintByExample.from_checkpoint(sd)


def test_its_inpainting_model_is_no_start(tmp_path):
    """Nine channels too, but the mask comes before the photo, and 1 = hole."""
    tensors = {**stable_diffusion(), FIRST: noise(32, 9, 3, 3)}
    torch.save(tensors, tmp_path / "sd-inpaint.ckpt")
    for use in (inspect, PaintByExample.from_checkpoint):
        with pytest.raises(ValueError, match="an inpainting model of Stable Diffusion"):
            use(tmp_path / "sd-inpaint.ckpt")


# ---- moving averages ---------------------------------------------------------------------------


def averaged(path: Path) -> Path:
    """A checkpoint with the average that latent diffusion keeps: names without dots."""
    tensors = state_dict(small_model())
    for name, tensor in state_dict(small_model(seed=3), ["unet"]).items():
        tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = tensor
    tensors["model_ema.decay"] = torch.tensor(0.9999)
    tensors["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int32)
    torch.save({"state_dict": tensors, METADATA_KEY: json.dumps(SMALL.to_dict())}, path)
    return path


def test_the_moving_average_is_taken_where_it_is_asked_for(tmp_path):
    path = averaged(tmp_path / "model.ckpt")
    last, average = state_dict(small_model()), state_dict(small_model(seed=3), ["unet"])
    for ema, expected in ((False, last), (True, last | average)):
        file = read(path, ema=ema)
        assert file.tensors.keys() == expected.keys()
        assert all(torch.equal(file.tensors[name], expected[name]) for name in expected)
    out = tmp_path / "model.safetensors"
    assert main(["convert", "--ema", str(path), str(out), "--to", "safetensors"]) == 0
    found = state_dict(PaintByExample.from_checkpoint(out))
    assert all(torch.equal(found[name], average[name]) for name in average)


def test_an_average_that_is_not_there(tmp_path):
    save_diffusers(tmp_path / "folder", small_model())
    torch.save(state_dict(small_model()), tmp_path / "model.ckpt")
    for name in ("folder", "model.ckpt"):
        with pytest.raises(ValueError, match="has no moving average"):
            read(tmp_path / name, ema=True)
