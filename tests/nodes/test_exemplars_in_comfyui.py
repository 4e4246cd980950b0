"""Exemplars and masks in a real ComfyUI: fitted, cut out, batched, weighted, saved, loaded again.

What Exemplar Encoder hands on is read out of the file that Save Exemplar writes, and compared with
what the package computes of the same pictures.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.exemplar_file import EncodedExemplar, load_exemplar, save_exemplar
from pbe_model.checkpoints.save import save_model
from pbe_model.editing.exemplar_image import preprocess
from pbe_model.editing.mask import augment
from pbe_model.networks.exemplar_encoder import normalise

from .host import Host, Prompt, failure, node, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]

CHECKPOINT = "exemplars.safetensors"
PICTURES = {"first": (90, 60), "second": (90, 60), "third": (90, 60), "wide": (40, 100)}


@pytest.fixture(scope="module")
def model(host: Host) -> PaintByExample:
    """A tiny model with random weights, also in the host's model folder."""
    torch.manual_seed(0)
    path = host.base / "models/paint_by_example" / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, PaintByExample(TINY).eval())
    return PaintByExample.from_checkpoint(path)


@pytest.fixture(scope="module")
def pictures(host: Host) -> dict[str, torch.Tensor]:
    """Noise as tensors, also in the host's input folder."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in PICTURES.items()}
    for name, array in arrays.items():
        Image.fromarray(array).save(host.base / f"input/{name}.png")
    return {name: torch.from_numpy(array) / 255 for name, array in arrays.items()}


def encoding(*names: str, file: str = "test", **encoder) -> Prompt:
    """Loader 1, encoder 2 of a batch of pictures, saver 3."""
    prompt: Prompt = {
        "1": node(
            "PBELoader",
            checkpoint=f"paint_by_example/{CHECKPOINT}",
            weight_dtype="default",
            attention="auto",
        ),
        "3": node("PBESaveExemplar", positive=["2", 0], negative=["2", 1], name=file),
    }
    batch = None
    for name in names:
        prompt[name] = node("LoadImage", image=f"{name}.png")
        if batch is not None:
            prompt[f"to {name}"] = node("ImageBatch", image1=[batch, 0], image2=[name, 0])
        batch = name if batch is None else f"to {name}"
    widgets = {"fit": "squash", "merge": "one each", **encoder}
    prompt["2"] = node("PBEExemplarEncoder", encoder=["1", 1], exemplar=[batch, 0], **widgets)
    return prompt


def painting(positive: list, negative: list) -> Prompt:
    """Loader 1, inputs 20, sampler 21, the painted crop 22."""
    sampler = {
        **{"model": ["1", 0], "positive": positive, "negative": negative, "vae": ["1", 2]},
        **{"image": ["20", 0], "mask": ["20", 1], "seed": 3, "steps": 4, "similarity": 2.0},
        **{"sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0, "region": "auto"},
        **{"context": 1.8, "resolution": 0, "blend": -1},
    }
    return {
        "1": encoding("first")["1"],
        "20": node("PBEExampleInputs", scene="meadow"),
        "21": node("PBEInpaintSampler", **sampler),
        "22": node("PreviewImage", images=["21", 2]),
    }


def file_of(host: Host, prompt: Prompt) -> Path:
    """Where Save Exemplar says that it has written to."""
    (file,) = ran(host, prompt).outputs["3"]["exemplars"]
    assert file["type"] == "output"
    return host.base / "output" / file["subfolder"] / file["filename"]


def token(model: PaintByExample, picture: torch.Tensor, **kwargs) -> torch.Tensor:
    pixels = preprocess(picture, model.config.exemplar.image_size, **kwargs)
    return model.encoder(normalise(pixels[None]))


def assert_tokens(path: Path, model: PaintByExample, expected: torch.Tensor) -> None:
    exemplar = load_exemplar(path)
    torch.testing.assert_close(exemplar.positive, expected, atol=1e-4, rtol=1e-4)
    vectors = model.encoder.unconditional(len(expected))
    torch.testing.assert_close(exemplar.negative, vectors, atol=0, rtol=0)


# ---- Exemplar Encoder --------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_every_fit_is_the_package_s(host: Host, model, pictures, fit: str):
    path = file_of(host, encoding("wide", fit=fit))
    assert_tokens(path, model, token(model, pictures["wide"], fit=fit))


def test_an_exemplar_with_opacity_is_cut_out_by_it(host: Host, model, pictures):
    alpha = np.zeros((90, 60), np.uint8)
    alpha[20:60, 10:40] = 255
    cut_out = np.dstack([(pictures["first"].numpy() * 255).round().astype(np.uint8), alpha])
    Image.fromarray(cut_out).save(host.base / "input/cut_out.png")
    prompt = encoding("first")
    prompt["colour"] = node("LoadImage", image="cut_out.png")
    prompt["joined"] = node("JoinImageWithAlpha", image=["colour", 0], alpha=["colour", 1])
    prompt["2"]["inputs"]["exemplar"] = ["joined", 0]
    exemplar_mask = torch.from_numpy(alpha) / 255
    expected = token(model, pictures["first"], exemplar_mask=exemplar_mask)
    assert_tokens(file_of(host, prompt), model, expected)
    # The same picture as a mask: what is transparent is the hole.
    mask = {"shape": "as is", "expand": 0, "feather": 0, "fill_holes": False, "seed": 0}
    drawn = {
        **{name: prompt[name] for name in ("colour", "joined")},
        "4": node("PBEMaskAugmenter", mask=["joined", 0], variations=1, **mask),
        "5": node("MaskToImage", mask=["4", 0]),
        "6": node("PreviewImage", images=["5", 0]),
    }
    (seen,) = host.images(ran(host, drawn), "6")
    assert (seen[..., 0] == 255 - alpha).all()


def test_an_exemplar_mask_cuts_the_object_out(host: Host, model, pictures):
    mask = np.zeros((90, 60, 3), np.uint8)
    mask[20:60, 10:40] = 255
    mask[20:30, 10:20] = 0
    Image.fromarray(mask).save(host.base / "input/object.png")
    prompt = encoding("first", exemplar_mask=["mask", 0])
    prompt["mask"] = node("LoadImageMask", image="object.png", channel="red")
    exemplar_mask = torch.from_numpy(mask[..., 0]) / 255
    expected = token(model, pictures["first"], exemplar_mask=exemplar_mask)
    assert_tokens(file_of(host, prompt), model, expected)
    assert (expected - token(model, pictures["first"])).abs().max() > 0.01


def test_a_batch_is_one_each_or_an_average_with_weights(host: Host, model, pictures):
    names = ("first", "second", "third")
    a, b, c = (token(model, pictures[name]) for name in names)
    assert_tokens(file_of(host, encoding(*names)), model, torch.cat([a, b, c]))
    for weights, expected in (
        ({}, (a + b + c) / 3),  # as graphs saved before there were weights
        ({"weights": ""}, (a + b + c) / 3),
        ({"weights": "2, 0.5, 0"}, (4 * a + b) / 5),
        ({"weights": "0 0 1"}, c),
    ):
        path = file_of(host, encoding(*names, merge="average", **weights))
        assert_tokens(path, model, expected)


def test_pictures_of_different_shapes_merge_with_the_host_s_average(host: Host, model, pictures):
    prompt = encoding("first")
    prompt["wide"] = node("LoadImage", image="wide.png")
    prompt["4"] = node("PBEExemplarEncoder", **prompt["2"]["inputs"] | {"exemplar": ["wide", 0]})
    prompt["5"] = node(
        "ConditioningAverage",
        conditioning_to=["2", 0],
        conditioning_from=["4", 0],
        conditioning_to_strength=0.75,
    )
    prompt["3"]["inputs"]["positive"] = ["5", 0]
    first, wide = (token(model, pictures[name]) for name in ("first", "wide"))
    assert_tokens(file_of(host, prompt), model, 0.75 * first + 0.25 * wide)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1", "the number of weights is 1 and that of exemplars 2"),
        ("1, 2, 3", "the number of weights is 3 and that of exemplars 2"),
        ("1, much", "'much' is not a weight; write one number for each exemplar"),
        ("1, -1", "-1 is not a weight"),
        ("0, 0", "all weights are 0"),
    ],
)
def test_bad_weights_are_one_clear_sentence(host: Host, model, pictures, weights, message):
    prompt = encoding("first", "second", merge="average", weights=weights)
    assert message in failure(host, prompt)


# ---- Save and Load Exemplar --------------------------------------------------------------------


def test_saved_files_are_numbered_and_offered_by_load(host: Host, model, pictures):
    folder = host.base / "output/exemplars"
    paths = [file_of(host, encoding(name, file="pets/cat")) for name in ("first", "second")]
    assert paths == [folder / "pets/cat_00001.safetensors", folder / "pets/cat_00002.safetensors"]
    assert_tokens(paths[0], model, token(model, pictures["first"]))
    kept = host.base / "models/pbe_exemplars/kept.safetensors"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(paths[0].read_bytes())
    (kept.parent / "notes.txt").write_text("not offered")
    spec = host.object_info("PBELoadExemplar")["PBELoadExemplar"]["input"]["required"]["exemplar"]
    offered = {name.replace("\\", "/") for name in spec[1]["options"]}
    assert {"pets/cat_00001.safetensors", "pets/cat_00002.safetensors", "kept.safetensors"} <= (
        offered
    )
    assert "notes.txt" not in offered


def test_a_loaded_exemplar_paints_the_same_picture(host: Host, model, pictures):
    file = file_of(host, encoding("first", file="same"))
    direct = ran(host, encoding("first") | painting(["2", 0], ["2", 1]))
    loaded = painting(["10", 0], ["10", 1])
    loaded["10"] = node("PBELoadExemplar", exemplar=file.name)
    again = ran(host, loaded)
    (expected,), (picture,) = host.images(direct, "22"), host.images(again, "22")
    assert np.array_equal(picture, expected)
    other = ran(host, encoding("second") | painting(["2", 0], ["2", 1]))
    assert not np.array_equal(host.images(other, "22")[0], expected)


def test_a_replaced_file_is_read_again_and_an_unchanged_one_is_not(host: Host, model, pictures):
    file = file_of(host, encoding("first", file="replaced"))
    prompt = painting(["10", 0], ["10", 1])
    prompt["10"] = node("PBELoadExemplar", exemplar=file.name)
    first = ran(host, prompt)
    assert "10" not in ran(host, prompt).executed
    vector = model.encoder.unconditional(1)
    save_exemplar(file, EncodedExemplar(token(model, pictures["second"]), vector))
    os.utime(file, (1, 1))  # older, but another one
    second = ran(host, prompt)
    assert "10" in second.executed
    assert not np.array_equal(host.images(first, "22")[0], host.images(second, "22")[0])


@pytest.mark.parametrize(
    "name", ["", "  ", ".", "..", "../up", "a/../../up", "/abs", "a/.."], ids=repr
)
def test_names_that_lead_elsewhere_are_refused(host: Host, model, pictures, name: str):
    def files() -> set[Path]:
        return {path for path in host.base.rglob("*.safetensors*")}

    ran(host, encoding("first"))
    before = files()
    assert "is not a name for a file; give one such as cat or pets/cat" in failure(
        host, encoding("first", file=name)
    )
    assert files() == before


def test_what_is_no_exemplar_is_one_clear_sentence(host: Host, model, pictures):
    folder = host.base / "models/pbe_exemplars"
    folder.mkdir(parents=True, exist_ok=True)

    def error(file: str) -> str:
        prompt = painting(["10", 0], ["10", 1])
        prompt["10"] = node("PBELoadExemplar", exemplar=file)
        return failure(host, prompt)

    (folder / "damaged.safetensors").write_bytes(b"\x80\x04 a pickle, say")
    assert "damaged.safetensors cannot be read as weights: it is a Python pickle" in error(
        "damaged.safetensors"
    )
    save_file({"x": torch.ones(2)}, folder / "other.safetensors")
    assert "other.safetensors holds no encoded exemplar" in error("other.safetensors")
    tokens = torch.ones(1, 1, 64)
    save_exemplar(folder / "narrow.safetensors", EncodedExemplar(tokens, tokens))
    width = TINY.unet.context_dim
    assert f"positive has tokens of 64 numbers, but the model takes {width}" in error(
        "narrow.safetensors"
    )
    for outside in ("../paint_by_example/" + CHECKPOINT, "/etc/hostname", "none.safetensors"):
        assert "Value not in list" in error(outside)

    swapped = encoding("first")
    swapped["3"]["inputs"] |= {"positive": ["2", 1], "negative": ["2", 0]}
    assert failure(host, swapped).startswith("positive and negative are swapped")
    combined = encoding("first")
    combined["4"] = node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["2", 0])
    combined["3"]["inputs"]["positive"] = ["4", 0]
    assert "positive combines 2 conditionings" in failure(host, combined)


def test_many_tokens_are_saved_and_paint(host: Host, pictures):
    """The ablation's model: the class token and every patch."""
    torch.manual_seed(1)
    path = host.base / "models/paint_by_example/every-token.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, PaintByExample(replace(TINY, tokens="all")).eval())
    prompt = encoding("first", file="every") | painting(["2", 0], ["2", 1])
    prompt["1"]["inputs"]["checkpoint"] = "paint_by_example/every-token.safetensors"
    direct = ran(host, prompt)
    file = direct.outputs["3"]["exemplars"][0]["filename"]
    assert load_exemplar(host.base / "output/exemplars" / file).positive.shape[1] > 1
    prompt["21"]["inputs"] |= {"positive": ["10", 0], "negative": ["10", 1]}
    prompt["10"] = node("PBELoadExemplar", exemplar=file)
    again = ran(host, prompt)
    assert np.array_equal(host.images(direct, "22")[0], host.images(again, "22")[0])


# ---- Mask Augmenter ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": "as is", "drop_specks": 50},
        {"shape": "as is", "drop_specks": 50, "fill_holes": True},
        {"shape": "box", "drop_specks": 5, "expand": 3},
        {"shape": "hull", "drop_specks": 5, "feather": 4},
        {"shape": "bezier", "variations": 4, "seed": 7},
        {"shape": "bezier", "variations": 2, "seed": 2**64 - 1, "drop_specks": 5, "expand": -2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_masks_are_the_package_s(host: Host, settings: dict):
    mask = np.zeros((120, 160, 3), np.uint8)
    mask[30:80, 40:100] = 255
    mask[45:55, 60:70] = 0  # a hole in it
    mask[100:102, 140:142] = mask[5, 5] = 255  # specks
    Image.fromarray(mask).save(host.base / "input/specks.png")
    widgets = {"expand": 0, "feather": 0, "fill_holes": False, "seed": 0, "variations": 1}
    prompt = {
        "1": node("LoadImageMask", image="specks.png", channel="red"),
        "2": node("PBEMaskAugmenter", mask=["1", 0], **widgets | settings),
        "3": node("MaskToImage", mask=["2", 0]),
        "4": node("PreviewImage", images=["3", 0]),
    }
    results = host.images(ran(host, prompt), "4")
    hole_mask = torch.from_numpy(mask[..., 0]) / 255
    expected = augment(hole_mask, **settings)
    assert len(results) == len(expected) == settings.get("variations", 1)
    for result, tensor in zip(results, expected, strict=True):
        assert np.abs(result[..., 0] - 255 * tensor.numpy()).max() < 1
