"""Region editing in a real ComfyUI: several holes, masks of their own, batches; equal to `edit`.

Pictures come back as 8-bit PNG files, which the host rounds down, so equal results differ by up to
one grey level from floating-point ones.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_model import TINY, CropSettings, PaintByExample, edit
from pbe_model.checkpoints.save import save_model
from pbe_model.image_io import read_image

from .host import Host, Prompt, node, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]

CHECKPOINT = "region.safetensors"
SCENE = Path(__file__).resolve().parents[2] / "pbe_model/assets/scenes/meadow"
SIZE = (384, 512)
HOLES = {
    "one": [(40, 60, 140, 150)],
    "two": [(40, 60, 140, 150), (400, 250, 470, 330)],
    "three": [(20, 20, 60, 80), (230, 150, 300, 200), (440, 300, 500, 370)],
    "shown": [(60, 180, 150, 200)],
    "blend": [(30, 90, 130, 160), (420, 240, 480, 300)],
}


def mask_of(name: str) -> torch.Tensor:
    """Mask `(H, W)`, one in these boxes."""
    mask = torch.zeros(SIZE)
    for x0, y0, x1, y1 in HOLES[name]:
        mask[y0:y1, x0:x1] = 1
    return mask


@pytest.fixture(scope="module")
def model(host: Host) -> PaintByExample:
    """A tiny model with random weights, also in the host's model folder; masks in its input."""
    torch.manual_seed(0)
    path = host.base / "models/paint_by_example" / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, PaintByExample(TINY).eval())
    for name in HOLES:
        levels = (mask_of(name) * 255).byte()[..., None].expand(-1, -1, 3)
        Image.fromarray(levels.numpy()).save(host.base / f"input/{name}.png")
    return PaintByExample.from_checkpoint(path)


def graph(mask: str, **sampler) -> Prompt:
    """Loader 1, inputs 2, encoder 3, sampler 4; a node for each mask, under its name."""
    settings = {"seed": 3, "steps": 3, "similarity": 2.0, "denoise": 1.0, "region": "each"}
    settings |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    settings |= {"context": 1.8, "resolution": 0, "blend": -1}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 1], "vae": ["1", 2]}
    links |= {"image": ["2", 0], "mask": [mask, 0]}
    loader = {"weight_dtype": "default", "attention": "auto"}
    return {
        "1": node("PBELoader", checkpoint=f"paint_by_example/{CHECKPOINT}", **loader),
        "2": node("PBEExampleInputs", scene="meadow"),
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
        "7": node("MaskToImage", mask=["4", 3]),
        "8": node("PreviewImage", images=["7", 0]),
        **{
            name: node("LoadImageMask", image=f"{name}.png", channel="red") for name in HOLES
        },
    }  # fmt: skip


def batch_of(prompt: Prompt, *names: str) -> list:
    """Adds the nodes that make one MASK batch of several masks; the link to it."""
    pictures = [f"picture of {name}" for name in names]
    for name, picture in zip(names, pictures, strict=True):
        prompt[picture] = node("LoadImage", image=f"{name}.png")
    batch = pictures[0]
    for picture in pictures[1:]:
        prompt[f"to {picture}"] = node("ImageBatch", image1=[batch, 0], image2=[picture, 0])
        batch = f"to {picture}"
    prompt["masks"] = node("ImageToMask", image=[batch, 0], channel="red")
    return ["masks", 0]


def expected(model: PaintByExample, mask: str, **settings):
    photo, exemplar = (read_image(SCENE / f"{name}.jpg") for name in ("photo", "exemplar"))
    settings = {"steps": 3, "similarity": 2.0, "seed": 3, "region": "each"} | settings
    return photo, edit(model, photo, mask_of(mask), exemplar, **settings)


def assert_same(pictures: list[np.ndarray], tensors: torch.Tensor) -> None:
    for picture, tensor in zip(pictures, tensors, strict=True):
        assert np.abs(picture - 255 * tensor.numpy()).max() <= 1.01


@pytest.mark.parametrize(
    ("sampler", "keywords"),
    [
        ({}, {}),
        ({"colour_match": True}, {"colour_match": True}),
        (
            {"resolution": 96, "context": 2.5, "blend": 0},
            {"crop": CropSettings(resolution=96, context=2.5, blend=0)},
        ),
        (
            {"context_mask": ["shown", 0]},
            {"crop": CropSettings(context_mask=mask_of("shown"))},
        ),
        ({"blend_mask": ["blend", 0]}, {"crop": CropSettings(blend_mask=mask_of("blend"))}),
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_node_and_python_paint_the_same_holes(host: Host, model, sampler, keywords):
    prompt = graph("two", image=["9", 0], **sampler)
    prompt["9"] = node("RepeatImageBatch", image=["2", 0], amount=2)
    run = ran(host, prompt)
    photo, result = expected(model, "two", num_images=2, **keywords)
    assert len(result.regions) == 2 and result.crops.shape[0] == 4
    assert_same(host.images(run, "6"), result.crops)
    assert_same(host.images(run, "5"), result.images)
    untouched = (result.blend_mask == 0).numpy()
    for picture, blend in zip(host.images(run, "5"), host.images(run, "8"), strict=True):
        assert np.array_equal(blend[..., 0] == 0, (result.blend_mask * 255).floor().numpy() == 0)
        kept = (photo.numpy() * 255).astype(np.uint8)[untouched]
        assert np.abs(picture[untouched].astype(int) - kept).max() <= 1  # the PNG's rounding


def test_denoise_below_one_starts_every_hole_from_its_own_photo(host: Host, model):
    run = ran(host, graph("two", denoise=0.05, steps=2))
    photo = expected(model, "two", steps=1)[0]
    _, plain = expected(model, "two", steps=1, num_images=1)
    (picture,) = host.images(run, "5")
    inside = mask_of("two").numpy() == 1
    change = np.abs(picture / 255 - photo.numpy())[inside].mean()
    assert change < (plain.images[0] - photo)[torch.from_numpy(inside)].abs().mean()


def test_retouched_crops_are_stitched_back_in_their_order(host: Host, model):
    prompt = graph("two")
    stitch = {"stitch": ["4", 4]}
    prompt["10"] = node("PBEStitch", **stitch, image=["4", 2])
    prompt["11"] = node("ImageScaleBy", image=["4", 2], upscale_method="bicubic", scale_by=2.0)
    prompt["12"] = node("PBEStitch", **stitch, image=["11", 0])
    for number, source in (("13", "10"), ("14", "12")):
        prompt[number] = node("PreviewImage", images=[source, 0])
    run = ran(host, prompt)
    (direct,), (same,), (upscaled,) = (host.images(run, number) for number in ("5", "13", "14"))
    assert np.array_equal(same, direct)
    assert np.abs(upscaled.astype(int) - direct).mean() < 2
    untouched = host.images(run, "8")[0][..., 0] == 0
    assert np.array_equal(upscaled[untouched], direct[untouched])

    prompt["10"]["inputs"]["image"] = ["15", 0]
    prompt["15"] = node("RepeatImageBatch", image=["4", 2], amount=2)
    assert len(host.images(ran(host, prompt), "13")) == 2  # two tries of both crops
    prompt["15"] = node("ImageFromBatch", image=["4", 2], batch_index=0, length=1)
    again = ran(host, prompt)
    assert len(host.images(again, "13")) == 1  # one crop for both places


@pytest.mark.parametrize("photos", [1, 3])
@pytest.mark.parametrize("exemplars", [1, 3])
def test_masks_with_different_numbers_of_holes_make_one_batch(host, model, photos, exemplars):
    prompt = graph("two", image=["9", 0])
    prompt["4"]["inputs"]["mask"] = batch_of(prompt, "one", "two", "three")
    prompt["9"] = node("RepeatImageBatch", image=["2", 0], amount=photos)
    prompt["3"]["inputs"]["exemplar"] = ["16", 0]
    prompt["16"] = node("RepeatImageBatch", image=["2", 2], amount=exemplars)
    prompt["10"] = node("PBEStitch", stitch=["4", 4], image=["4", 2])
    prompt["13"] = node("PreviewImage", images=["10", 0])
    run = ran(host, prompt)
    results, crops = host.images(run, "5"), host.images(run, "6")
    assert len(results) == 3 and len(crops) == 1 + 2 + 3
    for i, name in enumerate(("one", "two", "three")):
        assert_same(results[i : i + 1], expected(model, name, seed=3 + i)[1].images)
    assert all(map(np.array_equal, results, host.images(run, "13")))

    if photos == exemplars == 3:
        prompt["10"]["inputs"]["image"] = ["15", 0]
        prompt["15"] = node("ImageFromBatch", image=["4", 2], batch_index=0, length=4)
        message = host.run(prompt).error_text
        assert "4 crops and 3 photos with 6 regions do not match" in message


@pytest.mark.parametrize(
    ("photos", "masks", "exemplars"), [(3, 1, 1), (1, 1, 3), (3, 3, 1), (3, 3, 3), (1, 3, 3)]
)
def test_every_input_serves_all_or_comes_in_equal_number(host, model, photos, masks, exemplars):
    prompt = graph("one", image=["9", 0], region="auto")
    names = ("one", "two", "three")[:masks]
    prompt["4"]["inputs"]["mask"] = batch_of(prompt, *names) if masks > 1 else ["one", 0]
    prompt["9"] = node("RepeatImageBatch", image=["2", 0], amount=photos)
    prompt["3"]["inputs"]["exemplar"] = ["16", 0]
    prompt["16"] = node("RepeatImageBatch", image=["2", 2], amount=exemplars)
    results = host.images(ran(host, prompt), "5")
    assert len(results) == 3
    for i in range(3):
        wanted = expected(model, names[i % masks], seed=3 + i, region="auto")[1].images
        assert_same(results[i : i + 1], wanted)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"blend_mask": ["empty", 0]}, "the blend mask is empty"),
        ({"context_mask": ["masks", 0], "image": ["9", 0]}, "3 context_masks do not match"),
    ],
)
def test_bad_masks_are_one_clear_sentence(host: Host, model, sampler, message):
    prompt = graph("two", **sampler)
    prompt["empty"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["9"] = node("RepeatImageBatch", image=["2", 0], amount=2)
    batch_of(prompt, "one", "two", "three")
    assert message in host.run(prompt).error_text


def test_an_empty_context_mask_is_none(host: Host, model):
    """LoadImage gives one of 64 x 64 zeros for a file without transparency."""
    prompt = graph("two", context_mask=["empty", 0])
    prompt["empty"] = node("SolidMask", value=0.0, width=64, height=64)
    assert_same(host.images(ran(host, prompt), "5"), expected(model, "two")[1].images)
