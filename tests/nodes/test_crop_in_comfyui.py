"""Crops for any model, outpainting, exemplars for single holes and finer control, in a ComfyUI.

What another model paints is stood in for by the host's own image nodes: they invert the crop, move
it and scale it. Pictures come back as 8-bit PNG files, which the host rounds down.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_model import TINY, CropSettings, PaintByExample, edit
from pbe_model.checkpoints.save import save_model
from pbe_model.image_io import read_image, read_mask

from .host import Host, Prompt, node, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]

CHECKPOINT = "crop.safetensors"
SCENE = Path(__file__).resolve().parents[2] / "pbe_model/assets/scenes/leaves"
BOXES = {"left": (40, 60, 120, 130), "right": (380, 200, 450, 280)}


def box_mask(*names: str) -> torch.Tensor:
    mask = torch.zeros(347, 507)
    for x0, y0, x1, y1 in (BOXES[name] for name in names):
        mask[y0:y1, x0:x1] = 1
    return mask


@pytest.fixture(scope="module")
def model(host: Host) -> PaintByExample:
    """A tiny model with random weights in the host's folder, and masks in its input."""
    torch.manual_seed(0)
    path = host.base / "models/paint_by_example" / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, PaintByExample(TINY).eval())
    for names in (("left",), ("right",), ("left", "right"), ()):
        levels = (box_mask(*names) * 255).byte()[..., None].expand(-1, -1, 3)
        Image.fromarray(levels.numpy()).save(host.base / f"input/{'_'.join(names) or 'empty'}.png")
    return PaintByExample.from_checkpoint(path)


def masks_of(*files: str) -> Prompt:
    """Node `masks` is a MASK batch of these files."""
    prompt = {f"file {name}": node("LoadImage", image=f"{name}.png") for name in files}
    link = [f"file {files[0]}", 0]
    for name in files[1:]:
        prompt[f"to {name}"] = node("ImageBatch", image1=link, image2=[f"file {name}", 0])
        link = [f"to {name}", 0]
    return prompt | {"masks": node("ImageToMask", image=link, channel="red")}


# ---- crop and stitch ---------------------------------------------------------------------------


def cropped(**settings) -> Prompt:
    """Inputs 1, crop 2, the other model's picture 3, stitch 4, pictures 5 (result), 6 (photo)."""
    crop = {"region": "auto", "context": 1.8, "resolution": 512, "width": 0, "height": 0}
    crop |= {"multiple": 16, "blend": -1, "mask_threshold": 0.5, "invert_mask": False}
    crop |= {"empty_mask": "error", "image": ["1", 0], "mask": ["1", 1]}
    return {
        "1": node("PBEExampleInputs", scene="leaves"),
        "2": node("PBECrop", **crop | settings),
        "3": node("ImageInvert", image=["2", 0]),
        "4": node("PBEStitch", stitch=["2", 2], image=["3", 0]),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("PreviewImage", images=["1", 0]),
        "7": node("PreviewImage", images=["2", 0]),
        "8": node("MaskToImage", mask=["2", 1]),
        "9": node("PreviewImage", images=["8", 0]),
        "10": node("PreviewAny", source=["4", 1]),
    }


def test_any_models_crop_goes_back_and_the_rest_keeps_its_bits(host: Host):
    run = ran(host, cropped(resolution=500, width=640, height=400))
    (result,), (photo,) = host.images(run, "5"), host.images(run, "6")
    (crop,), (hole,) = host.images(run, "7"), host.images(run, "9")
    assert crop.shape == hole.shape == (400, 640, 3)  # 500 would be 496
    mask = read_mask(SCENE / "hole_mask.png").numpy() > 0.5
    inside, outside = mask, np.abs(result.astype(int) - photo).max(-1) == 0
    assert outside.mean() > 0.4 and not outside[inside].all()
    assert np.abs(result[inside].astype(int) + photo[inside] - 255).mean() < 6
    y, x = np.nonzero(mask)
    far = np.ones_like(mask)
    far[max(0, y.min() - 20) : y.max() + 20, max(0, x.min() - 20) : x.max() + 20] = False
    assert outside[far].all()


def test_a_drifted_crop_is_registered(host: Host):
    """The host's own nodes zoom by 2 %: larger, then the middle of it."""
    prompt = cropped()
    prompt["30"] = node(
        "ImageScale",
        image=["2", 0],
        upscale_method="bicubic",
        width=522,
        height=522,
        crop="disabled",
    )
    prompt["31"] = node("ImageCrop", image=["30", 0], width=512, height=512, x=5, y=5)
    prompt["4"]["inputs"] |= {"image": ["31", 0]}
    plain = ran(host, prompt)
    prompt["4"]["inputs"] |= {"register": True}
    registered = ran(host, prompt)
    (photo,) = host.images(registered, "6")
    errors = [
        np.abs(host.images(run, "5")[0].astype(int) - photo).mean() for run in (plain, registered)
    ]
    assert errors[1] < errors[0] / 4
    assert plain.outputs["10"]["text"] == ["register is off"]
    (text,) = registered.outputs["10"]["text"]
    assert text.startswith("crop 1: was ") and "+1.9" in text and text.endswith("undone")


def test_what_does_not_tell_is_said(host: Host):
    prompt = cropped()
    prompt["30"] = node("EmptyImage", width=512, height=512, batch_size=1, color=0x808080)
    prompt["4"]["inputs"] |= {"image": ["30", 0], "register": True}
    run = ran(host, prompt)
    (text,) = run.outputs["10"]["text"]
    assert text == (
        "crop 1: what is kept around the hole does not tell, so the crop is left as it is"
    )


def test_a_mask_drawn_on_the_crop_decides_what_is_shown(host: Host):
    prompt = cropped()
    prompt["4"]["inputs"] |= {"blend_mask": ["30", 0]}
    prompt["30"] = node("SolidMask", value=0.0, width=64, height=64)
    run = ran(host, prompt)
    assert np.array_equal(host.images(run, "5")[0], host.images(run, "6")[0])
    prompt["30"]["inputs"]["value"] = 1.0
    run = ran(host, prompt)
    (result,), (photo,) = host.images(run, "5"), host.images(run, "6")
    changed = (result != photo).any(-1)
    y, x = np.nonzero(changed)
    box = changed[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert box.mean() > 0.95  # the whole crop


def test_a_threshold_and_an_inverted_mask_make_other_holes(host: Host):
    inverted = cropped(invert_mask=True, region="whole")
    inverted["30"] = node("InvertMask", mask=["1", 1])
    inverted["2"]["inputs"]["mask"] = ["30", 0]
    plain = cropped(region="whole")
    assert np.array_equal(
        host.images(ran(host, inverted), "9")[0], host.images(ran(host, plain), "9")[0]
    )
    grey = cropped(mask_threshold=0.2, region="whole")
    grey["30"] = node("SolidMask", value=0.3, width=64, height=64)
    grey["2"]["inputs"]["mask"] = ["30", 0]
    assert host.images(ran(host, grey), "9")[0].min() > 127
    grey["2"]["inputs"]["mask_threshold"] = 0.5
    assert "the mask is too faint: it reaches 60%" in host.run(grey).error_text


def test_crops_of_several_holes_and_photos_without_one(host: Host, model):
    prompt = cropped(region="each", image=["30", 0], mask=["masks", 0], empty_mask="pass through")
    prompt["30"] = node("RepeatImageBatch", image=["1", 0], amount=3)
    run = ran(host, prompt | masks_of("left_right", "empty", "right"))
    assert len(host.images(run, "7")) == 4
    both, none, right = host.images(run, "5")
    (photo,) = host.images(run, "6")
    assert np.array_equal(none, photo)
    for result, names in ((both, ("left", "right")), (right, ("right",))):
        changed = (result != photo).any(-1)
        assert changed[box_mask(*names).numpy() == 1].mean() > 0.9
    assert not (right != photo).any(-1)[:, :300].any()
    prompt["2"]["inputs"]["empty_mask"] = "error"
    message = host.run(prompt | masks_of("left_right", "empty", "right")).error_text
    assert "mask 2 of 3 is empty: LoadImage makes its mask" in message


# ---- outpainting -------------------------------------------------------------------------------


def test_a_photo_is_padded_to_an_aspect(host: Host):
    sides = {"left": 10, "top": 0, "right": 0, "bottom": 0}
    prompt = {
        "1": node("PBEExampleInputs", scene="leaves"),
        "2": node("PBEOutpaint", image=["1", 0], **sides, aspect="1:1", place="top", overlap=0),
        "3": node("MaskToImage", mask=["2", 1]),
        "4": node("PreviewImage", images=["2", 0]),
        "5": node("PreviewImage", images=["3", 0]),
        "6": node("PreviewImage", images=["1", 0]),
    }
    run = ran(host, prompt)
    (canvas,), (hole,), (photo,) = (host.images(run, number) for number in "456")
    assert canvas.shape == hole.shape == (517, 517, 3)
    assert np.array_equal(canvas[:347, 10:], photo)
    assert not hole[:347, 10:].any() and (hole[347:] == 255).all() and (hole[:, :10] == 255).all()


# ---- the sampler -------------------------------------------------------------------------------


def sampled(mask: str = "left_right", **sampler) -> Prompt:
    """Loader 1, inputs 2, encoder 3, sampler 4, pictures 5 (result) and 6 (crops)."""
    settings = {"seed": 3, "steps": 3, "similarity": 2.0, "denoise": 1.0, "region": "each"}
    settings |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    settings |= {"context": 1.8, "resolution": 0, "blend": -1}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 1], "vae": ["1", 2]}
    links |= {"image": ["2", 0], "mask": ["masks", 0]}
    loader = {"weight_dtype": "default", "attention": "auto"}
    return {
        "1": node("PBELoader", checkpoint=f"paint_by_example/{CHECKPOINT}", **loader),
        "2": node("PBEExampleInputs", scene="leaves"),
        "3": node(
            "PBEExemplarEncoder",
            encoder=["1", 1],
            exemplar=["2", 2],
            fit="squash",
            merge="one each",
        ),
        "4": node("PBEInpaintSampler", **links | settings | sampler),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("PreviewImage", images=["4", 2]),
        **masks_of(*mask.split()),
    }  # fmt: skip


def with_two_exemplars(prompt: Prompt) -> Prompt:
    prompt["20"] = node("ImageInvert", image=["2", 2])
    prompt["21"] = node("ImageBatch", image1=["2", 2], image2=["20", 0])
    prompt["3"]["inputs"]["exemplar"] = ["21", 0]
    return prompt


def assert_same(pictures: list[np.ndarray], tensors: torch.Tensor) -> None:
    for picture, tensor in zip(pictures, tensors, strict=True):
        assert np.abs(picture - 255 * tensor.numpy()).max() <= 1.01


@pytest.mark.parametrize("masks", ["left_right", "right left"])
def test_each_hole_gets_an_exemplar_of_its_own(host: Host, model, masks: str):
    prompt = with_two_exemplars(sampled(masks, exemplars="one for each hole"))
    run = ran(host, prompt)
    photo, exemplar = (read_image(SCENE / f"{name}.jpg") for name in ("photo", "exemplar"))
    several = [box_mask(*name.split("_")) for name in masks.split()]
    result = edit(
        model, photo, torch.stack(several) if len(several) > 1 else several[0],
        [exemplar, 1 - exemplar], steps=3, similarity=2.0, seed=3, region="each",
    )  # fmt: skip
    assert_same(host.images(run, "6"), result.crops)
    assert_same(host.images(run, "5"), result.images)
    # As before: a result for each exemplar.
    prompt = with_two_exemplars(sampled("left_right"))
    assert len(host.images(ran(host, prompt), "5")) == 2


def test_exemplars_that_do_not_match_the_holes_are_one_clear_sentence(host: Host, model):
    prompt = with_two_exemplars(sampled("left", exemplars="one for each hole"))
    assert "2 exemplars and 1 holes do not match" in host.run(prompt).error_text
    prompt["4"]["inputs"]["region"] = "auto"
    assert "go with the region mode 'each'" in host.run(prompt).error_text


def test_photos_without_a_hole_pass_through_the_sampler(host: Host, model):
    prompt = sampled("left empty right", image=["9", 0], region="auto", empty_mask="pass through")
    prompt["9"] = node("RepeatImageBatch", image=["2", 0], amount=3)
    prompt["10"] = node("PreviewImage", images=["2", 0])
    prompt["11"] = node("VAEDecode", samples=["4", 1], vae=["1", 2])
    prompt["12"] = node("PreviewImage", images=["11", 0])
    run = ran(host, prompt)
    left, none, right = host.images(run, "5")
    (photo,) = host.images(run, "10")
    assert np.array_equal(none, photo)
    assert not np.array_equal(left, photo) and not np.array_equal(right, photo)
    assert len(host.images(run, "6")) == len(host.images(run, "12")) == 3
    # The third photo keeps the seed that it has in the batch.
    picture = read_image(SCENE / "photo.jpg"), box_mask("right"), read_image(SCENE / "exemplar.jpg")
    assert_same([right], edit(model, *picture, steps=3, similarity=2.0, seed=5).images)

    alone = sampled("empty", empty_mask="pass through", region="auto")
    assert np.array_equal(host.images(ran(host, alone), "5")[0], photo)


def test_sigmas_of_a_scheduler_node_take_the_place_of_steps(host: Host, model):
    plain = ran(host, sampled("left", steps=4))
    prompt = sampled("left", steps=99, scheduler="normal", sigmas=["9", 0])
    prompt["9"] = node("BasicScheduler", model=["1", 0], scheduler="karras", steps=4, denoise=1.0)
    run = ran(host, prompt)
    assert np.array_equal(host.images(plain, "6")[0], host.images(run, "6")[0])
    assert [value for name, value, _ in run.progress if name == "4"][-1] == 4

    # Fewer levels start from the photo, as denoise does.
    prompt["9"]["inputs"]["denoise"] = 0.5
    half = ran(host, sampled("left", steps=4, denoise=0.5))
    assert np.array_equal(host.images(ran(host, prompt), "6")[0], host.images(half, "6")[0])

    prompt["9"] = node("AlignYourStepsScheduler", model_type="SD1", steps=5, denoise=1.0)
    run = ran(host, prompt)
    assert [value for name, value, _ in run.progress if name == "4"][-1] == 5
    prompt["9"]["inputs"]["denoise"] = 0.0
    assert "sigmas holds 0 noise levels" in host.run(prompt).error_text


def test_guidance_in_a_part_of_the_schedule_is_that_of_python(host: Host, model):
    interval = {"guidance_start": 0.2, "guidance_end": 0.6}
    run = ran(host, sampled("left", steps=6, **interval))
    picture = read_image(SCENE / "photo.jpg"), box_mask("left"), read_image(SCENE / "exemplar.jpg")
    options = {"steps": 6, "similarity": 2.0, "seed": 3, "region": "each"}
    assert_same(
        host.images(run, "6"), edit(model, *picture, **options, guidance_interval=(0.2, 0.6)).crops
    )
    plain = edit(model, *picture, **options)
    assert np.abs(host.images(run, "6")[0] / 255 - plain.crops[0].numpy()).max() > 0.01
    unguided = ran(host, sampled("left", steps=6, similarity=1.0))
    none = ran(host, sampled("left", steps=6, guidance_start=1.0, guidance_end=1.0))
    assert np.abs(host.images(none, "6")[0].astype(int) - host.images(unguided, "6")[0]).max() <= 1


def test_the_resolution_snaps_to_what_the_model_takes(host: Host, model):
    run = ran(host, sampled("left", resolution=100))
    picture = read_image(SCENE / "photo.jpg"), box_mask("left"), read_image(SCENE / "exemplar.jpg")
    options = {"steps": 3, "similarity": 2.0, "seed": 3, "crop": CropSettings(resolution=96)}
    assert_same(host.images(run, "6"), edit(model, *picture, **options).crops)
