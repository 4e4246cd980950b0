"""The `pbe` command: it does what Python does, and answers bad input with one sentence."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import types
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pbe_model import PaintByExample, edit
from pbe_model.checkpoints.load import state_dict
from pbe_model.checkpoints.save import save_model, save_official
from pbe_model.cli.edit_options import DEFAULTS
from pbe_model.cli.main import main
from pbe_model.config import EditDefaults
from pbe_model.editing.edit import PRESETS
from pbe_model.image_io import read_image, read_mask
from pbe_model.networks.attention import BACKENDS, reference_attention

from ..small import SMALL_V, small_model

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
HOLE = np.zeros((40, 50), np.uint8)
HOLE[10:20, 15:30] = 255
EXEMPLAR = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(path, small_model(), metadata={"training": {"steps": 7, "run": {"seed": 1}}})
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a photo, a mask and an exemplar."""
    monkeypatch.chdir(tmp_path)
    for name, pixels in (("photo", PHOTO), ("mask", HOLE), ("exemplar", EXEMPLAR)):
        Image.fromarray(pixels).save(f"{name}.png")
    return tmp_path


@pytest.fixture
def arguments(folder, checkpoint):
    """Makes the arguments of an edit; keywords replace or add options, None leaves one out."""

    def build(**options):
        given = {
            "image": "photo.png", "mask": "mask.png", "exemplar": "exemplar.png", "out": "out.png",
            "checkpoint": checkpoint, "steps": 1, "device": "cpu",
        } | options  # fmt: skip
        pairs = [
            (f"--{name.replace('_', '-')}", str(value))
            for name, value in given.items()
            if value is not None
        ]
        return ["edit", *(part for pair in pairs for part in pair)]

    return build


@pytest.fixture
def refused(folder, capsys):
    """Runs a command that must fail and write nothing; returns its one sentence."""

    def run(argv):
        before = sorted(folder.rglob("*"))
        assert main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("pbe: ")
        assert err.count("\n") == 1
        assert sorted(folder.rglob("*")) == before
        return err

    return run


def pixels(path):
    return np.array(Image.open(path))


# ---- edit -----------------------------------------------------------------------------------


def test_edit_is_the_python_edit(arguments, checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(BACKENDS, "own", reference_attention)
    options = {"steps": 2, "similarity": 2.5, "seed": 4, "sampler": "ddim", "region": "whole",
               "fit": "pad", "strength": 0.6}  # fmt: skip
    assert main(arguments(**options, attention="own")) == 0
    assert capsys.readouterr().out == "out.png\n"
    photo = read_image("photo.png")
    result = edit(
        PaintByExample.from_checkpoint(checkpoint, attention="own"),
        photo,
        read_mask("mask.png"),
        read_image("exemplar.png"),
        **options,
    )
    assert torch.equal(torch.from_numpy(pixels("out.png")), (result.images[0] * 255).round().byte())
    outside = (result.region.photo_blend_mask == 0).numpy()
    assert outside.any()
    assert (pixels("out.png")[outside] == PHOTO[outside]).all()
    assert (pixels("out.png")[HOLE > 0] != PHOTO[HOLE > 0]).any()


def test_the_attention_for_comparisons_is_not_offered(arguments, refused):
    message = refused(arguments(attention="reference"))
    assert "'reference'" in message and "sdpa" in message


def test_a_preset_is_the_python_preset(arguments, checkpoint):
    argv = [*arguments(preset="official", steps=2, seed=4), "--no-truncate"]
    assert main(argv) == 0
    pictures = (read_image("photo.png"), read_mask("mask.png"), read_image("exemplar.png"))
    model = PaintByExample.from_checkpoint(checkpoint)
    options = PRESETS["official"] | {"steps": 2, "seed": 4, "truncate": False}
    result = edit(model, *pictures, **options)
    assert pixels("out.png").shape == (32, 32, 3)
    assert (pixels("out.png") == (result.images[0] * 255).round().numpy()).all()

    assert main(arguments(preset="official", steps=2, seed=4)) == 0
    assert (pixels("out.png") == (result.images[0] * 255).floor().numpy()).all()


def test_a_preset_yields_to_every_option_that_is_given(arguments):
    """With the usual values, which must not be taken for options left out."""
    usual = {name: parameter.default for name, parameter in signature(edit).parameters.items()}
    usual |= asdict(EditDefaults())  # the small model's file names no others
    values = {name: usual[name] for name in PRESETS["official"]}
    switches = {name for name, value in values.items() if isinstance(value, bool)}
    assert all(value != PRESETS["official"][name] for name, value in values.items()
               if name not in {"similarity", "strength", "fit"})  # fmt: skip
    flags = [f"--{'' if values[n] else 'no-'}{n.replace('_', '-')}" for n in sorted(switches)]
    rest = {name: value for name, value in values.items() if name not in switches}
    assert main([*arguments(**rest, preset="official", out="given.png"), *flags]) == 0
    assert main(arguments(steps=None)) == 0
    assert (pixels("given.png") == pixels("out.png")).all()


PUBLISHED = {name: f"{value:g}" if name == "similarity" else value
             for name, value in asdict(EditDefaults()).items()}  # fmt: skip


def test_the_options_have_the_defaults_of_edit(capsys):
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, default in DEFAULTS.items():
        if name in PUBLISHED:
            usual = rf"the model's own; of the published weights {PUBLISHED[name]}"
        else:
            usual = "(by the size of the crop|as it was trained)" if default is None else default
        assert re.search(
            rf"--{name.replace('_', '-')}\b[^\[]*\[{usual}\]", said.split("options:")[1]
        ), name
    # Every argument of `edit` is an option, but for the pictures and what only programs have.
    arguments = signature(edit).parameters.keys() - {"model", "image", "hole_mask", "exemplar"}
    crop = {"context", "blend", "resolution"}
    assert DEFAULTS.keys() == arguments - {"exemplar_mask", "crop", "callback"} | crop


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 2}, {"similarity": 0}, {"seed": 1}, {"sampler": "plms"}, {"region": "whole"},
        {"strength": 0.5, "steps": 2}, {"fit": "crop"}, {"exemplar_mask": "part.png"},
        {"dtype": "bf16"}, {"region": "squash"}, {"posterior": "sample"}, {"context": 3},
        {"blend": 0}, {"resolution": 48}, {"context_mask": "corner.png"},
        {"blend_mask": "corner.png"}, {"guidance_interval": "0.5,1"},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_every_option_matters(arguments, option):
    part = np.zeros(EXEMPLAR.shape[:2], np.uint8)
    part[:10, :10] = 255
    Image.fromarray(part).save("part.png")
    corner = np.zeros_like(HOLE)
    corner[12:35, 20:48] = 255
    Image.fromarray(corner).save("corner.png")
    assert main(arguments(out="plain.png")) == 0
    assert main(arguments(**option)) == 0
    assert (pixels("out.png") != pixels("plain.png")).any()


@pytest.mark.parametrize("flag", ["--no-paste-back", "--truncate", "--colour-match"])
def test_every_switch_matters(arguments, flag):
    assert main(arguments(out="plain.png")) == 0
    assert main([*arguments(), flag]) == 0
    changed, plain = pixels("out.png"), pixels("plain.png")
    if flag == "--no-paste-back":
        assert changed.shape == (32, 32, 3)
    else:
        assert changed.shape == plain.shape and (changed != plain).any()


def test_each_hole_gets_a_crop_of_its_own(arguments):
    photo = RNG.integers(0, 256, (40, 400, 3), dtype=np.uint8)
    holes = np.zeros((40, 400), np.uint8)
    holes[10:20, 15:30] = holes[10:20, 350:365] = 255
    Image.fromarray(photo).save("photo.png")
    Image.fromarray(holes).save("mask.png")
    assert main(arguments(region="each")) == 0
    changed = (pixels("out.png") != photo).any(-1)
    assert changed[holes > 0].mean() > 0.9 and not changed[:, 60:320].any()
    assert main([*arguments(region="each"), "--no-paste-back"]) == 0
    assert pixels("out-1.png").shape == pixels("out-2.png").shape == (32, 32, 3)


def test_several_images_are_numbered_and_each_can_be_drawn_alone(arguments, folder, capsys):
    assert main(arguments(num_images=2, seed=5)) == 0
    assert capsys.readouterr().out == "out-1.png\nout-2.png\n"
    assert not Path("out.png").exists()
    assert main(arguments(seed=6)) == 0
    difference = pixels("out.png").astype(int) - pixels("out-2.png")
    assert abs(difference).max() <= 1  # a batch may round otherwise
    assert (pixels("out-1.png") != pixels("out-2.png")).any()


def test_half_precision_on_the_cpu(arguments):
    assert main(arguments(out="full.png")) == 0
    assert main(arguments(dtype="fp16")) == 0
    assert abs(pixels("out.png").astype(int) - pixels("full.png")).mean() < 2


def test_an_exemplar_counts_where_it_is_opaque_or_masked(arguments):
    part = np.zeros(EXEMPLAR.shape[:2], np.uint8)
    part[4:16, 6:20] = 255
    Image.fromarray(part).save("part.png")
    cut_out = Image.fromarray(EXEMPLAR)
    cut_out.putalpha(Image.fromarray(part))
    cut_out.save("cut_out.png")
    cut_out.putalpha(Image.fromarray(255 - part))  # as ComfyUI's mask editor saves it
    cut_out.save("erased.png")
    for out, options in {
        "a.png": {"exemplar_mask": "part.png"},
        "b.png": {"exemplar": "cut_out.png"},
        "c.png": {"exemplar_mask": "erased.png"},
    }.items():
        assert main(arguments(out=out, **options)) == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") == pixels("c.png")).all()


@pytest.mark.parametrize("option", ["mask", "exemplar_mask", "context_mask", "blend_mask"])
def test_a_mask_means_what_people_see_whatever_it_is_for(arguments, option):
    shape = EXEMPLAR.shape[:2] if option == "exemplar_mask" else PHOTO.shape[:2]
    tone = np.zeros(shape, np.uint8)
    tone[3:14, 5:16] = 255
    picture = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    black = np.zeros_like(picture)
    masks = {
        "white.png": np.dstack([black + tone[..., None], np.full_like(tone, 254)]),
        "strokes.png": np.dstack([black, tone]),
        "half.png": np.dstack([black + 255, tone // 2]),
        "multiplied.png": np.dstack([black + tone[..., None] // 2, tone // 2]),
        "erased.png": np.dstack([picture, 255 - tone]),
    }
    Image.fromarray(tone).save("plain.png")
    assert main(arguments(out="plain_out.png", **{option: "plain.png"})) == 0
    for name, rgba in masks.items():
        Image.fromarray(rgba).save(name)
        assert main(arguments(**{option: name})) == 0
        assert (pixels("out.png") == pixels("plain_out.png")).all(), name


def test_what_was_understood_of_a_mask_is_written(arguments, refused, capsys):
    strokes = np.dstack([np.zeros((40, 50, 3), np.uint8), HOLE])
    Image.fromarray(strokes).resize((100, 80), Image.Resampling.NEAREST).save("strokes.png")
    assert main(arguments(mask="strokes.png", show_mask="understood.png")) == 0
    assert ((pixels("understood.png") > 127) == (HOLE > 0)).all()
    assert "hole" not in capsys.readouterr().err
    for options, reason in (
        ({"show_mask": "mask.png"}, "--mask name the same file"),
        ({"show_mask": "./out.png"}, "--out name the same file"),
        ({"show_mask": "mask.xyz"}, "unknown suffix"),
        ({"show_mask": "none/mask.png"}, "there is no folder"),
        ({"show_mask": "new.png", "exemplar": "text.png"}, "text.png"),
    ):
        (Path("text.png")).write_text("text")
        assert reason in refused(arguments(**options | {"out": "out.png"}))


def test_a_mask_of_more_than_nine_tenths_is_said(arguments, capsys):
    assert main(arguments()) == 0
    assert capsys.readouterr().err == ""
    Image.fromarray(255 - HOLE).save("mask.png")
    assert main(arguments(region="whole")) == 0
    out, err = capsys.readouterr()
    assert out == "out.png\n" and err.count("\n") == 1
    assert "92.5% of the photo the hole" in err and "invert" in err and "--show-mask" in err


def test_the_opacity_of_the_photo_is_kept(arguments):
    opacity = np.tile(np.arange(50, dtype=np.uint8) * 5, (40, 1))
    opacity[:, 20:] = 255
    Image.fromarray(np.dstack([PHOTO, opacity])).save("photo.png")
    for out in ("out.png", "out.webp", "out.tif"):
        assert main(arguments(out=out, num_images=2, blend=0)) == 0
        for name in (out.replace(".", "-1."), out.replace(".", "-2.")):
            result = pixels(name)
            assert result.shape == (40, 50, 4) and (result[..., 3] == opacity).all()
            outside = HOLE == 0
            assert (result[outside][:, :3] == PHOTO[outside]).all()  # also what is not seen
            assert (result[~outside][:, :3] != PHOTO[~outside]).any()
    assert main(arguments(out="out.jpg")) == 0
    assert pixels("out.jpg").shape == (40, 50, 3)


def test_what_is_painted_into_an_erased_hole_is_seen(arguments):
    Image.fromarray(np.dstack([PHOTO, 255 - HOLE])).save("photo.png")
    assert main(arguments(mask="photo.png")) == 0
    result = pixels("out.png")
    assert (result[..., 3] == 255)[HOLE > 0].all()
    assert main(arguments(mask="mask.png", out="same.png")) == 0
    assert (pixels("same.png") == result).all()


def test_a_mask_of_another_size_is_resized(arguments):
    Image.fromarray(HOLE).resize((100, 80), Image.Resampling.NEAREST).save("double.png")
    assert main(arguments(mask="double.png")) == 0
    changed = (pixels("out.png") != PHOTO).any(-1)
    assert changed[HOLE > 0].mean() > 0.9
    assert not changed[25:].any()  # below the blend zone
    assert not changed[:, 35:].any()


@pytest.mark.parametrize("size", [(1, 1), (10000, 16), (33, 17), (3, 200)])
def test_photos_of_any_size(arguments, size):
    photo = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.png")
    hole = np.zeros(photo.shape[:2], np.uint8)
    hole[size[1] // 3 :][:9, size[0] // 3 :][:, :9] = 255
    Image.fromarray(hole).save("mask.png")
    assert main(arguments()) == 0
    assert pixels("out.png").shape == photo.shape
    assert (pixels("out.png")[hole > 0] != photo[hole > 0]).any()


@pytest.mark.parametrize("kind", ["grey", "palette", "transparent", "sixteen"])
def test_photos_of_any_kind(arguments, kind):
    grey = PHOTO[..., 0]
    {
        "grey": lambda: Image.fromarray(grey),
        "palette": lambda: Image.fromarray(PHOTO).quantize(16),
        "transparent": lambda: Image.fromarray(np.dstack([PHOTO, grey])),
        "sixteen": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
    }[kind]().save("photo.png")
    assert main(arguments()) == 0
    far = np.s_[30:, :]  # below the blend zone
    expected = (read_image("photo.png").numpy() * 255).round()
    if kind == "transparent":
        expected = np.dstack([PHOTO, grey])
    assert (pixels("out.png")[far] == expected[far]).all()
    if kind in ("grey", "sixteen"):
        assert (pixels("out.png")[far] == grey[far][..., None]).all()


def test_a_rotated_photo_is_turned_upright(arguments):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_90).save("photo.png", exif=exif)
    assert main(arguments(out="turned.png")) == 0
    Image.fromarray(PHOTO).save("photo.png")
    assert main(arguments()) == 0
    assert (pixels("turned.png") == pixels("out.png")).all()


def test_an_interrupt_writes_nothing(arguments, folder, capsys):
    before = sorted(folder.iterdir())
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    timer.start()
    try:
        assert main(arguments(steps=500, sampler="ddim", num_images=8)) == 130
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err.endswith("pbe: interrupted\n")
    assert sorted(folder.iterdir()) == before


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": "text.png"}, "text.png"),
        ({"image": "empty.png"}, "empty.png"),
        ({"image": "cut.png"}, "cut.png"),
        ({"image": "."}, "folder"),
        ({"mask": "nowhere.png"}, "nowhere.png"),
        ({"mask": "text.png"}, "text.png"),
        ({"mask": "black.png"}, "black.png is empty"),
        ({"exemplar": "nowhere.png"}, "nowhere.png"),
        ({"exemplar": "text.png"}, "text.png"),
        ({"exemplar": "small.png"}, "7 x 9"),
        ({"exemplar_mask": "nowhere.png"}, "nowhere.png"),
        ({"exemplar_mask": "black.png"}, "black.png is empty"),
        ({"exemplar_mask": "small.png"}, "7 x 9"),
        ({"out": "out.xyz"}, "'.xyz'"),
        ({"out": "out"}, "suffix"),
        ({"out": "nowhere/out.png"}, "no folder nowhere"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 501, "sampler": "plms"}, "501"),
        ({"steps": "many"}, "'many'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, str(2**64)),
        ({"num_images": 0}, "num_images is 0"),
        ({"similarity": -1}, "similarity is -1"),
        ({"similarity": "nan"}, "similarity is nan"),
        ({"strength": 0}, "strength is 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"sampler": "heun"}, "'heun'"),
        ({"region": "half"}, "'half'"),
        ({"fit": "stretch"}, "'stretch'"),
        ({"posterior": "mean"}, "'mean'"),
        ({"preset": "best"}, "'best'"),
        ({"dtype": "int8"}, "'int8'"),
        ({"attention": "flash"}, "'flash'"),
        ({"device": "abacus"}, "'abacus'"),
        ({"context": 0.5}, "context is 0.5"),
        ({"blend": -1}, "blend is -1"),
        ({"resolution": 33}, "resolution 33"),
        ({"guidance_interval": "half"}, "half is not an interval"),
        ({"guidance_interval": "0.7,0.2"}, "interval is 0.7 to 0.2"),
        ({"context_mask": "nowhere.png"}, "nowhere.png"),
        ({"blend_mask": "black.png"}, "black.png is empty"),
        ({"device": "meta"}, "'meta'"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"image": None}, "--image"),
        ({"checkpoint": "nowhere.ckpt"}, "nowhere.ckpt"),
        ({"checkpoint": "."}, "folder"),
        ({"checkpoint": "photo.png"}, "photo.png"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input(arguments, refused, options, named):
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:2000])
    Image.new("L", EXEMPLAR.shape[1::-1]).save("black.png")
    Image.new("RGB", (7, 9), "white").save("small.png")
    assert named in refused(arguments(**options))


def test_output_is_checked_before_the_checkpoint_is_read(arguments, refused):
    assert "nowhere/out.png" in refused(arguments(out="nowhere/out.png", checkpoint="none.ckpt"))


@pytest.mark.parametrize("argv", [[], ["paint"], ["demo", "--steps", "3"], ["inspect"]], ids=str)
def test_bad_commands(refused, argv):
    assert "--help" in refused(argv)


def other_architecture(path):
    weights = {name: tensor.contiguous() for name, tensor in state_dict(small_model()).items()}
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**weights, first: weights[first][:, :4].contiguous()}, path)  # Stable Diffusion's


def lora(path):
    save_file({"lora_unet_down.weight": torch.zeros(2, 2)}, path)


def incomplete(path):
    save_model(path, small_model(), parts=["unet", "vae"])


def truncated(path):
    save_model(path, small_model())
    path.write_bytes(path.read_bytes()[:-1000])


def truncated_pickle(path):
    save_official(path, small_model())
    path.write_bytes(path.read_bytes()[:-1000])


def plain_pickle(path):
    path.write_bytes(pickle.dumps([1, 2, 3]))


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (other_architecture, "a.safetensors"),
        (lora, "a.safetensors"),
        (incomplete, "a.safetensors"),
        (truncated, "a.safetensors"),
        (truncated_pickle, "a.ckpt"),
        (plain_pickle, "a.ckpt"),
    ],
)
def test_bad_checkpoints(arguments, folder, refused, write, name):
    write(folder / name)
    assert name in refused(arguments(checkpoint=name))
    if write is not incomplete:  # which inspect describes
        assert name in refused(["inspect", name])


# ---- inspect --------------------------------------------------------------------------------


def test_inspect(checkpoint, capsys):
    assert main(["inspect", str(checkpoint)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["format"] == "safetensors"
    assert lines["weights"].endswith("float32")
    assert lines["missing"] == lines["unexpected"] == "none"
    assert "model_channels=32" in lines["unet"]
    assert lines["training"] == "steps=7, run {seed}"


def test_inspect_for_programs(checkpoint, capsys):
    assert main(["inspect", "--json", str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(checkpoint)
    assert report["size"] == checkpoint.stat().st_size
    assert report["parameters"] == sum(p.numel() for p in small_model().parameters())
    assert report["config"]["resolution"] == 32
    assert report["missing"] == []
    assert report["metadata"] == {"training": {"steps": 7, "run": {"seed": 1}}}


def test_inspect_and_convert_tell_what_the_model_predicts(tmp_path, capsys):
    source = tmp_path / "v.safetensors"
    save_model(source, small_model(SMALL_V))
    assert main(["inspect", str(source)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["schedule"].endswith("prediction=v, zero_terminal_snr=True")
    assert main(["convert", str(source), str(tmp_path / "v.ckpt"), "--to", "official"]) == 2
    said = capsys.readouterr().err
    assert "predicts v" in said and said.count("\n") == 1


def test_inspect_lists_what_is_missing(folder, capsys):
    incomplete(folder / "a.safetensors")
    assert main(["inspect", "--json", "a.safetensors"]) == 0
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert "learnable_vector" in missing
    assert main(["inspect", "a.safetensors"]) == 0
    assert f"missing     {len(missing)}: " in capsys.readouterr().out


class Payload:
    """Makes a folder as soon as it is unpickled by someone careless."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_pickle_runs_no_command(folder, capsys):
    content = {"state_dict": state_dict(small_model()), "callbacks": Payload("owned")}
    torch.save(content, "evil.ckpt")
    assert main(["inspect", "--json", "evil.ckpt"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert not Path("owned").exists()
    torch.load("evil.ckpt", weights_only=False)  # the payload is a live one
    assert Path("owned").is_dir()


def test_a_pickle_of_foreign_classes_is_read(folder, capsys, monkeypatch):
    module = types.ModuleType("lightning_of_2022")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        callback = module.ModelCheckpoint()
        callback.best = {"step": 3}
        torch.save({"state_dict": state_dict(small_model()), "callbacks": [callback]}, "a.ckpt")
    with pytest.raises(ModuleNotFoundError):
        torch.load("a.ckpt", weights_only=False)
    assert main(["inspect", "a.ckpt"]) == 0
    assert "missing     none" in capsys.readouterr().out


# ---- as a program ---------------------------------------------------------------------------


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "pbe_model", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""
    for command in ("demo", "edit", "inspect"):
        assert command in done.stdout


def test_a_reader_that_goes_away_is_no_error(checkpoint):
    program = subprocess.Popen(
        [sys.executable, "-m", "pbe_model", "inspect", "--json", str(checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait() == 0
