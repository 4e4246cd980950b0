"""What the sampler's node shows in the page: the crop while it is painted, then the result.

As the page gets it: previews that say which node they belong to, and at the end a reference to
files in the temporary folder, which it fetches.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from .host import Host, Prompt, Run, node, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]


def edit(steps: int = 6, **sampler) -> Prompt:
    """The bundled model: sampler 4, pictures 5 (results) and 6 (crops), the mask as picture 8."""
    how = {"seed": 3, "steps": steps, "similarity": 4.0, "sampler_name": "dpmpp_2m"}
    how |= {"scheduler": "karras", "denoise": 1.0, "region": "auto", "context": 1.8}
    how |= {"resolution": 0, "blend": -1, "model": ["1", 0], "vae": ["1", 2]}
    how |= {"positive": ["3", 0], "negative": ["3", 1], "image": ["2", 0], "mask": ["2", 1]}
    exemplar = {"encoder": ["1", 1], "exemplar": ["2", 2], "fit": "squash", "merge": "one each"}
    loader = {"checkpoint": "bundled demo", "weight_dtype": "default", "attention": "auto"}
    return {
        "1": node("PBELoader", **loader),
        "2": node("PBEExampleInputs", scene="leaves"),
        "3": node("PBEExemplarEncoder", **exemplar),
        "4": node("PBEInpaintSampler", **how | sampler),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("PreviewImage", images=["4", 2]),
        "7": node("MaskToImage", mask=["2", 1]),
        "8": node("PreviewImage", images=["7", 0]),
    }


def lines(hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the white line and the black one around it are to be."""
    line, around = (ndimage.binary_dilation(hole, np.ones((n, n), bool)) for n in (3, 5))
    return line & ~hole, around & ~line


def check_outline(shown: np.ndarray, result: np.ndarray, hole: np.ndarray) -> None:
    """The result with lines around its hole, and nothing else changed."""
    assert shown.shape == result.shape
    white, black = lines(hole)
    assert white.sum() > 50
    assert (shown[white] == 255).all() and (shown[black] == 0).all()
    rest = ~(white | black)
    assert np.array_equal(shown[rest], result[rest])


def files(host: Host, run: Run, name: str = "4") -> list[Path]:
    """What a node shows when it has run, as files."""
    shown = run.outputs[name]["images"]
    assert all(image["type"] == "temp" for image in shown)
    return [host.base / "temp" / image["subfolder"] / image["filename"] for image in shown]


def alike(a: Image.Image, b: Image.Image) -> float:
    """Correlation of two pictures, both made small."""
    small = [np.asarray(i.convert("RGB").resize((16, 16)), float).ravel() for i in (a, b)]
    return float(np.corrcoef(*small)[0, 1])


def test_the_node_shows_the_crop_while_it_is_painted_and_then_the_result(host: Host):
    run = ran(host, edit())
    assert run.preview_nodes == ["4"] * 6
    (result,), (crop,) = host.images(run, "5"), host.images(run, "6")
    last = run.previews[-1]
    assert last.width == last.height  # as the crop, not as the photo
    crop, whole = Image.fromarray(crop), Image.fromarray(result)
    assert alike(last, crop) > 0.9 and alike(last, crop) > alike(last, whole) + 0.1
    (shown,), (mask,) = host.images(run, "4"), host.images(run, "8")
    check_outline(shown, result, mask[..., 0] > 127)
    again = ran(host, edit())  # all from the cache, and the page shows it all the same
    assert again.previews == [] and again.outputs["4"] == run.outputs["4"]


def test_the_simple_node_shows_the_same(host: Host):
    paint = {"image": ["2", 0], "mask": ["2", 1], "exemplar": ["2", 2], "seed": 5, "steps": 5}
    paint |= {"similarity": 4.0, "checkpoint": "bundled demo"}
    prompt = {name: edit()[name] for name in ("2", "7", "8")}
    prompt["40"] = node("PBEPaint", **paint)
    prompt["41"] = node("PreviewImage", images=["40", 0])
    run = ran(host, prompt)
    assert run.preview_nodes == ["40"] * 5
    (shown,), (result,), (mask,) = (host.images(run, name) for name in ("40", "41", "8"))
    check_outline(shown, result, mask[..., 0] > 127)


def test_what_is_shown_of_large_and_many_photos_is_small(host: Host):
    large = {"image": ["2", 0], "upscale_method": "bicubic", "scale_by": 4.0}
    prompt = edit(steps=1, image=["21", 0])
    prompt["20"] = node("ImageScaleBy", **large)
    prompt["21"] = node("RepeatImageBatch", image=["20", 0], amount=6)
    run = ran(host, prompt)
    results, paths = host.images(run, "5"), files(host, run)
    assert len(results) == 6 and len(paths) == 4
    height, width = results[0].shape[:2]
    assert width > 2000
    for path, shown, result in zip(paths, host.images(run, "4"), results, strict=False):
        assert shown.shape == (round(height * 768 / width), 768, 3)
        assert path.stat().st_size < 1.5e6
        # Pillow's bicubic resize, but for rounding, outside of the lines.
        small = Image.fromarray(result).resize(shown.shape[1::-1], Image.Resampling.BICUBIC)
        assert (np.abs(np.asarray(small, int) - shown).max(-1) <= 2).mean() > 0.98


def test_a_photo_that_passes_through_has_no_line(host: Host):
    prompt = edit(mask=["30", 0], empty_mask="pass through")
    prompt["30"] = node("SolidMask", value=0.0, width=64, height=64)
    run = ran(host, prompt)
    (shown,), (result,) = host.images(run, "4"), host.images(run, "5")
    assert np.array_equal(shown, result) and run.previews == []


def test_the_masks_of_several_holes_are_all_outlined(host: Host):
    boxes = [(40, 60, 120, 130), (330, 200, 430, 290)]
    holes = []
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        holes.append(np.zeros((347, 507, 3), np.uint8))
        holes[-1][y0:y1, x0:x1] = 255
        Image.fromarray(holes[-1]).save(host.base / f"input/outlined_{number}.png")
    widgets = {"region": "each", "exemplars": "one for each hole"}
    prompt = edit(steps=1, mask=["33", 0], **widgets)
    prompt |= {f"3{i}": node("LoadImage", image=f"outlined_{i}.png") for i in (0, 1)}
    prompt["32"] = node("ImageBatch", image1=["30", 0], image2=["31", 0])
    prompt["33"] = node("ImageToMask", image=["32", 0], channel="red")
    prompt["34"] = node("RepeatImageBatch", image=["2", 2], amount=2)
    prompt["3"]["inputs"]["exemplar"] = ["34", 0]
    run = ran(host, prompt)
    (shown,), (result,) = host.images(run, "4"), host.images(run, "5")
    check_outline(shown, result, np.maximum(*holes)[..., 0] > 0)
