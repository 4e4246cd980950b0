"""Any edit: outside its blend zone the photo is untouched, and bad values end in a sentence."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given, target
from hypothesis import strategies as st
from torch import Tensor

from pbe_model import edit
from pbe_model.editing.batch import EditResult
from pbe_model.editing.crop_settings import CropSettings
from pbe_model.sampling.samplers import SAMPLERS

from ..pbe_model.small import small_model, uniform
from .examples import bounded, examples, refusal

MODEL = small_model()
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RESOLUTIONS = st.sampled_from((32, 48, 64))
SEEDS = st.integers(0, 2**63 - 8)


@st.composite
def pictures(draw: st.DrawFn, smallest: int = 1, largest: int = 90) -> Tensor:
    """(H, W, 3) in [0, 1]: noise or one colour, of any floating type."""
    height, width = (draw(st.integers(smallest, largest)) for _ in range(2))
    if draw(st.booleans()):
        values = uniform(height, width, 3, seed=draw(st.integers(0, 9)))
    else:
        values = torch.full((height, width, 3), draw(st.sampled_from((0.0, 0.5, 1.0))))
    return values.to(draw(st.sampled_from(DTYPES)))


@st.composite
def hole_masks(draw: st.DrawFn, height: int, width: int) -> Tensor:
    """(H, W) with at least one pixel above 0.5: boxes, specks, soft edges, or all of it."""
    mask = torch.zeros(height, width)
    for _ in range(draw(st.integers(1, 3))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        mask[top:bottom, left:right] = draw(st.sampled_from((0.6, 1.0)))
    if draw(st.booleans()):
        mask += uniform(height, width, seed=draw(st.integers(0, 9))) * 0.4 * (mask == 0)
    return mask.to(draw(st.sampled_from(DTYPES)))


@st.composite
def crops(draw: st.DrawFn, size: tuple[int, int]) -> CropSettings:
    """Everything that one may choose of a crop, in its range."""
    maybe = st.none() | hole_masks(*size)
    return CropSettings(
        context=draw(st.floats(1, 4) | st.sampled_from((100.0, 10_000.0))),
        blend=draw(st.none() | st.floats(0, 20)),
        resolution=draw(st.none() | RESOLUTIONS),
        height=draw(st.none() | RESOLUTIONS),
        width=draw(st.none() | RESOLUTIONS),
        context_mask=draw(maybe),
        blend_mask=draw(maybe),
    )


@st.composite
def edits(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `edit` that all are in their range."""
    image = draw(pictures())
    size = image.shape[0], image.shape[1]
    exemplar = draw(pictures(8, 40))
    exemplar_size = st.just((exemplar.shape[0], exemplar.shape[1]))
    whole = exemplar_size.map(lambda s: torch.ones(s).to(exemplar))
    start, end = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return {
        "image": image,
        "hole_mask": draw(hole_masks(*size)),
        "exemplar": exemplar,
        "steps": draw(st.integers(1, 3)),
        "similarity": draw(st.sampled_from((0.0, 1.0, 5.0)) | st.floats(0, 20)),
        "seed": draw(SEEDS),
        "sampler": draw(st.sampled_from(sorted(SAMPLERS))),
        "num_images": draw(st.sampled_from((1, 1, 2, 3))),
        "region": draw(st.sampled_from(("auto", "whole", "squash", "each"))),
        "strength": draw(st.just(1.0) | st.floats(0.4, 1)),
        "fit": draw(st.sampled_from(("squash", "crop", "pad"))),
        "exemplar_mask": draw(st.none() | whole),
        "crop": draw(st.just(CropSettings()) | crops(size)),
        "colour_match": draw(st.booleans()),
        "posterior": draw(st.sampled_from(("mode", "sample"))),
        "paste_back": draw(st.sampled_from((True, True, False))),
        "truncate": draw(st.booleans()),
        "guidance_interval": (start, end),
    }


def tensors_of(arguments: dict[str, Any]) -> list[Tensor]:
    """All tensors among the arguments of an edit."""
    crop = arguments["crop"]
    values = (*arguments.values(), crop.context_mask, crop.blend_mask)
    return [value for value in values if isinstance(value, Tensor)]


def check(result: EditResult, arguments: dict[str, Any]) -> None:
    """What holds of every result."""
    image, count = arguments["image"], arguments["num_images"]
    images = result.images
    assert images.dtype == image.dtype and images.isfinite().all()
    assert images.min() >= 0 and images.max() <= 1
    if not arguments["paste_back"]:
        assert len(images) == count * len(result.regions)
        return
    assert images.shape == (count, *image.shape)
    untouched = result.blend_mask == 0
    assert (images[:, untouched] == image[untouched]).all()
    target(float((~untouched).float().mean()), label="share of the photo that may change")


@examples(12)
@given(arguments=edits())
def test_an_edit_leaves_the_rest_as_it_is_and_can_be_repeated(arguments: dict[str, Any]):
    before = [tensor.clone() for tensor in tensors_of(arguments)]
    with bounded():
        result = edit(MODEL, **arguments)
    check(result, arguments)
    for tensor, copy in zip(tensors_of(arguments), before, strict=True):
        assert torch.equal(tensor, copy), "an input was changed"
    assert torch.equal(edit(MODEL, **arguments).images, result.images)


@examples(6)
@given(arguments=edits(), number=st.integers(0, 2))
def test_one_of_several_images_is_that_of_its_own_seed(arguments: dict[str, Any], number: int):
    several = edit(MODEL, **{**arguments, "num_images": 3}).images
    alone = {**arguments, "num_images": 1, "seed": arguments["seed"] + number}
    [image] = edit(MODEL, **alone).images.unflatten(0, (1, -1))
    found = several.unflatten(0, (3, -1))[number]
    # Sums over a batch of another size are rounded otherwise; truncated values may fall by a level.
    few = 2 / 255 if arguments["truncate"] or image.dtype in DTYPES[2:] else 1e-3
    assert (found.float() - image.float()).abs().max() <= few


NUMBERS = st.one_of(
    st.sampled_from((math.nan, math.inf, -math.inf, -1, -0.5, 0, 2**70, -(2**70), 10**400, 1e308)),
    st.integers(-(2**70), -1),
    st.integers(2**64, 2**70),
)
"""Numbers that hardly anything takes; none of them asks for hours of work."""

SHAPES = st.lists(st.integers(0, 12), max_size=4)


@st.composite
def odd_tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of any shape and type, some without elements, some with values that are none."""
    shape = draw(SHAPES)
    tensor = uniform(*shape, seed=1) if shape else torch.ones(())
    dtype = draw(st.sampled_from((*DTYPES, torch.uint8, torch.bool, torch.int64)))
    tensor = tensor.to(dtype)
    if tensor.is_floating_point() and draw(st.booleans()):
        tensor = tensor * draw(st.sampled_from((math.nan, math.inf, -5.0, 1e4)))
    return tensor


ODD: dict[str, st.SearchStrategy] = {
    "image": odd_tensors(),
    "hole_mask": odd_tensors(),
    "exemplar": odd_tensors() | st.just([]) | st.lists(odd_tensors(), max_size=3),
    "exemplar_mask": odd_tensors() | st.lists(st.none() | odd_tensors(), max_size=3),
    "steps": NUMBERS.filter(lambda n: isinstance(n, int)),
    "similarity": NUMBERS,
    "seed": NUMBERS.filter(lambda n: isinstance(n, int)),
    "sampler": st.text(max_size=5),
    "num_images": NUMBERS.filter(lambda n: isinstance(n, int)),
    "region": st.text(max_size=5),
    "strength": NUMBERS,
    "fit": st.text(max_size=5),
    "posterior": st.text(max_size=5),
    "guidance_interval": st.tuples(NUMBERS, NUMBERS),
}
ODD_CROPS: dict[str, st.SearchStrategy] = {
    **dict.fromkeys(("context", "blend"), NUMBERS),
    **dict.fromkeys(
        ("resolution", "height", "width", "multiple"),
        NUMBERS.filter(lambda n: isinstance(n, int)) | st.integers(1, 65),
    ),
    **dict.fromkeys(("context_mask", "blend_mask"), odd_tensors()),
}


@examples(60)
@given(data=st.data(), arguments=edits())
def test_a_bad_value_is_refused_in_a_sentence(data: st.DataObject, arguments: dict[str, Any]):
    """What is refused is a matter of other tests; here, that nothing else comes of it."""
    name = data.draw(st.sampled_from(sorted(ODD)))
    arguments |= {"steps": 1, "num_images": 1, "crop": CropSettings(), name: data.draw(ODD[name])}
    try:
        with bounded():
            result = edit(MODEL, **arguments)
    except ValueError as error:
        refusal(error)
    else:
        assert result.images.isfinite().all() or not arguments["image"].isfinite().all()


@examples(40)
@given(data=st.data(), arguments=edits())
def test_a_bad_crop_is_refused_in_a_sentence(data: st.DataObject, arguments: dict[str, Any]):
    name = data.draw(st.sampled_from(sorted(ODD_CROPS)))
    arguments |= {"steps": 1, "num_images": 1}
    try:
        with bounded():
            arguments["crop"] = CropSettings(**{name: data.draw(ODD_CROPS[name])})
            check(edit(MODEL, **arguments), arguments)
    except ValueError as error:
        refusal(error)
