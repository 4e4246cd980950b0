"""A batch of exemplars as a list of conditionings, under the host's own nodes and samplers.

One batch goes through `merge` on *separate*, and each of its exemplars through an encoder of its
own, whose conditionings the host's ConditioningCombine puts together: the pictures are the same.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.save import save_model

from .host import Host, Prompt, failure, node, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]

CHECKPOINT = "conditionings.safetensors"
EXEMPLARS = ("one", "two")
SIDE = TINY.resolution


@pytest.fixture(scope="module", autouse=True)
def files(host: Host) -> None:
    """A tiny model with random weights, a photo with its hole, two exemplars, the left half."""
    torch.manual_seed(0)
    path = host.base / "models/paint_by_example" / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    model = PaintByExample(TINY).eval()
    for name, weight in model.unet.named_parameters():
        if name.endswith("attn2.to_v.weight"):
            weight.data *= 50  # so that exemplars show in a picture of random weights
    save_model(path, model)
    rng = np.random.default_rng(0)
    pictures = {"photo": rng.integers(0, 256, (150, 220, 3), np.uint8)}
    pictures |= {
        name: np.full((40, 40, 3), grey, np.uint8)
        for name, grey in zip(EXEMPLARS, (0, 255), strict=True)
    }
    for name, box in (("hole", np.s_[60:100, 80:140]), ("half", np.s_[:, :105])):
        pictures[name] = np.zeros((150, 220, 3), np.uint8)
        pictures[name][box] = 255
    for name, picture in pictures.items():
        Image.fromarray(picture).save(host.base / f"input/cond_{name}.png")


def parts() -> Prompt:
    """What all graphs share: the model, the files, and an encoder for each exemplar."""
    prompt = {
        "model": node(
            "PBELoader",
            checkpoint=f"paint_by_example/{CHECKPOINT}",
            weight_dtype="default",
            attention="auto",
        ),
        "photo": node("LoadImage", image="cond_photo.png"),
        "hole": node("LoadImageMask", image="cond_hole.png", channel="red"),
        "half": node("LoadImageMask", image="cond_half.png", channel="red"),
        "rest": node("InvertMask", mask=["half", 0]),
        "batch": node("ImageBatch", image1=["file one", 0], image2=["file two", 0]),
    }
    for name in EXEMPLARS:
        prompt[f"file {name}"] = node("LoadImage", image=f"cond_{name}.png")
        prompt[name] = encoded([f"file {name}", 0])
    return prompt


def encoded(exemplar: list, **widgets) -> dict:
    widgets = {"fit": "squash", "merge": "one each", **widgets}
    return node("PBEExemplarEncoder", encoder=["model", 1], exemplar=exemplar, **widgets)


def combined(first: list, second: list) -> dict:
    return node("ConditioningCombine", conditioning_1=first, conditioning_2=second)


def sampled(positive: list, negative: list = ("one", 1), **widgets) -> Prompt:
    """PBE Inpaint Sampler, and what its model has painted."""
    how = {"seed": 3, "steps": 4, "similarity": 6.0, "sampler_name": "dpmpp_2m"}
    how |= {"scheduler": "karras", "denoise": 1.0, "region": "auto", "context": 1.8}
    how |= {"resolution": 0, "blend": -1, "vae": ["model", 2], "model": ["model", 0]}
    links = {"positive": positive, "negative": list(negative)}
    links |= {"image": ["photo", 0], "mask": ["hole", 0]}
    return {
        "sampler": node("PBEInpaintSampler", **how | links | widgets),
        "crop": node("PreviewImage", images=["sampler", 2]),
    }


def native(positive: list, negative: list = ("one", 1)) -> Prompt:
    """KSampler on the same crop."""
    cut = {"region": "auto", "context": 1.8, "resolution": SIDE, "width": 0, "height": 0}
    cut |= {"multiple": TINY.size_multiple, "blend": -1, "mask_threshold": 0.5}
    cut |= {"invert_mask": False, "empty_mask": "error", "mask": ["hole", 0]}
    how = {"seed": 3, "steps": 4, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    links = {"model": ["model", 0], "positive": ["inpaint", 0], "negative": ["inpaint", 1]}
    return {
        "cut": node("PBECrop", image=["photo", 0], **cut),
        "half as image": node("MaskToImage", mask=["half", 0]),
        "cut half": node("PBECrop", image=["half as image", 0], **cut),
        "half of crop": node("ImageToMask", image=["cut half", 0], channel="red"),
        "rest of crop": node("InvertMask", mask=["half of crop", 0]),
        "inpaint": node(
            "InpaintModelConditioning",
            positive=positive,
            negative=list(negative),
            vae=["model", 2],
            pixels=["cut", 0],
            mask=["cut", 1],
            noise_mask=False,
        ),
        "empty": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        "sampler": node("KSampler", latent_image=["empty", 0], denoise=1.0, **how | links),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "crop": node("PreviewImage", images=["decoded", 0]),
    }


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """To a grey level: two exemplars are not encoded to the very bits of one."""
    return bool(np.abs(a - b).max() <= 1)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() > 3)


def painted(host: Host, *prompts: Prompt) -> np.ndarray:
    """The crop of a graph that ends in one of the two samplers, signed."""
    prompt = parts()
    for some in prompts:
        prompt |= some
    (crop,) = host.images(ran(host, prompt), "crop")
    return crop.astype(int)


BOTH = {"both": combined(["one", 0], ["two", 0])}
SEPARATE = {"list": encoded(["batch", 0], merge="separate")}


@pytest.mark.parametrize("sampler", [sampled, native])
def test_separate_is_what_combine_makes_of_two_encoders(host: Host, sampler):
    found = painted(host, SEPARATE, sampler(["list", 0], ["list", 1]))
    assert same(found, painted(host, BOTH, sampler(["both", 0])))
    for other in EXEMPLARS:
        assert differ(found, painted(host, sampler([other, 0])))
    average = {"list": encoded(["batch", 0], merge="average")}
    assert differ(found, painted(host, average, sampler(["list", 0], ["list", 1])))


@pytest.mark.parametrize("sampler", [sampled, native])
def test_a_time_range_on_the_list_is_one_on_each(host: Host, sampler):
    def ranged(conditioning: list) -> dict:
        return node("ConditioningSetTimestepRange", conditioning=conditioning, start=0.0, end=0.2)

    late = {"late": node("ConditioningSetTimestepRange", conditioning=["one", 0], start=0.2, end=1)}
    of_list = {"range": ranged(["list", 0]), "all": combined(["range", 0], ["late", 0])}
    found = painted(host, SEPARATE, late, of_list, sampler(["all", 0]))
    of_each = {f"range {name}": ranged([name, 0]) for name in EXEMPLARS}
    of_each["range"] = combined(["range one", 0], ["range two", 0])
    of_each["all"] = of_list["all"]
    assert same(found, painted(host, late, of_each, sampler(["all", 0])))
    assert differ(found, painted(host, SEPARATE, sampler(["list", 0])))


def test_weights_are_the_host_s_strengths(host: Host):
    widgets = {"merge": "separate", "weights": "1, 0.25"}
    found = painted(host, {"list": encoded(["batch", 0], **widgets)}, sampled(["list", 0]))
    weaker = {
        "weak": node("ConditioningSetAreaStrength", conditioning=["two", 0], strength=0.25),
        "both": combined(["one", 0], ["weak", 0]),
    }
    assert same(found, painted(host, weaker, sampled(["both", 0])))
    widgets["weights"] = "0, 3"
    found = painted(host, {"list": encoded(["batch", 0], **widgets)}, sampled(["list", 0]))
    # One left, at another strength: the host divides by it again.
    assert same(found, painted(host, sampled(["two", 0])))
    widgets["weights"] = "1, 2, 3"
    prompt = parts() | {"list": encoded(["batch", 0], **widgets)} | sampled(["list", 0])
    assert "the number of weights is 3 and that of exemplars 2" in failure(host, prompt)


def test_masks_are_drawn_on_the_photo(host: Host):
    """The left half of the photo, not of the crop, as KSampler paints a mask cut out like it."""

    def halves(left: str, right: str) -> Prompt:
        masked = {
            name: node(
                "ConditioningSetMask",
                conditioning=[exemplar, 0],
                mask=[mask, 0],
                strength=1.0,
                set_cond_area="default",
            )
            for name, exemplar, mask in (("left", "one", left), ("right", "two", right))
        }
        return masked | {"both": combined(["left", 0], ["right", 0])}

    found = painted(host, halves("half", "rest"), sampled(["both", 0]))
    expected = painted(host, halves("half of crop", "rest of crop"), native(["both", 0]))
    assert same(found, expected)
    assert differ(found, painted(host, BOTH, sampled(["both", 0])))
    uncut = painted(host, halves("half", "rest"), native(["both", 0]))
    assert differ(found, uncut)  # 105 of 220 pixels are not the middle of the crop


def test_masks_serve_each_result_or_all(host: Host):
    def masked(batch: str, mask: str) -> Prompt:
        photos = node("RepeatImageBatch", image=["photo", 0], amount=2)
        masks = node("MaskToImage", mask=[mask, 0])
        repeated = node("RepeatImageBatch", image=["as image", 0], amount=int(batch))
        back = node("ImageToMask", image=["repeated", 0], channel="red")
        on = node(
            "ConditioningSetMask",
            conditioning=["one", 0],
            mask=["masks", 0],
            strength=1.0,
            set_cond_area="default",
        )
        made = {"photos": photos, "as image": masks, "repeated": repeated, "masks": back}
        return made | {"on": on, "both": combined(["on", 0], ["two", 0])}

    prompts = [
        parts() | masked(count, "half") | sampled(["both", 0], image=["photos", 0])
        for count in ("1", "2", "3")
    ]
    one, two = (host.images(ran(host, prompt), "crop") for prompt in prompts[:2])
    assert len(one) == len(two) == 2
    assert all(same(a.astype(int), b) for a, b in zip(one, two, strict=True))
    said = failure(host, prompts[2])
    assert "a conditioning has 3 masks and there are 2 results" in said


def test_one_for_each_hole_is_refused_for_a_list(host: Host):
    widgets = {"region": "each", "exemplars": "one for each hole"}
    prompt = parts() | SEPARATE | sampled(["list", 0], **widgets)
    assert failure(host, prompt) == (
        "positive holds 2 separate conditionings, and 'one for each hole' takes its exemplars from "
        "one batch; set merge to one each in Exemplar Encoder, or exemplars to 'one for each "
        "result'"
    )


def test_a_list_is_not_saved_in_one_file(host: Host):
    save = node("PBESaveExemplar", positive=["list", 0], negative=["list", 1], name="x")
    said = failure(host, parts() | SEPARATE | {"save": save})
    assert said.startswith("positive combines 2 conditionings, and a file holds one; save each")


def test_it_is_the_last_choice(host: Host):
    """Graphs saved before hold the others by name."""
    info = host.object_info("PBEExemplarEncoder")["PBEExemplarEncoder"]["input"]["required"]
    assert json.dumps(info["merge"]).find("average") < json.dumps(info["merge"]).find("separate")
