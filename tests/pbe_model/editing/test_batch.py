"""Several photos at once: what is painted goes back to where it was cut out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pbe_model import CropSettings, PaintByExample, edit
from pbe_model.editing.batch import BatchEditor, repeat_rows
from pbe_model.editing.denoise import encode_crops, encode_exemplar, initial_noise, paint_crops
from pbe_model.editing.region import crop, match_colour

from ..small import small_model, uniform

AT_32 = CropSettings(resolution=32, multiple=16, context=1.2)
PHOTOS = [uniform(40, 52, 3), uniform(64, 48, 3, seed=1), uniform(33, 70, 3, seed=2)]


def hole(number: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    """Mask of a photo's size."""
    mask = torch.zeros(PHOTOS[number].shape[:2])
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 1
    return mask


HOLES = [
    hole(0, (3, 4, 12, 12), (36, 26, 46, 36)),
    hole(1, (20, 20, 30, 34)),
    hole(2, (2, 2, 10, 9), (30, 12, 38, 20), (58, 24, 66, 31)),
]


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model()


@pytest.fixture(scope="module")
def editor() -> BatchEditor:
    return BatchEditor(PHOTOS, HOLES, [AT_32] * 3, mode="each")


def test_the_crops_of_all_photos_are_one_batch(editor: BatchEditor) -> None:
    assert editor.owners == [0, 0, 1, 2, 2, 2]
    assert editor.crops.shape == (6, 32, 32, 3) and editor.hole_masks.shape == (6, 32, 32)
    flat = [region for regions in editor.regions for region in regions]
    for i, (owner, region) in enumerate(zip(editor.owners, flat, strict=True)):
        image, hole_mask = crop(PHOTOS[owner][None], HOLES[owner][None], region)
        assert torch.equal(editor.crops[i], image[0])
        assert torch.equal(editor.hole_masks[i], hole_mask[0])


def test_every_variation_goes_back_to_its_place(editor: BatchEditor) -> None:
    """Crop i of variation n is painted in a grey of its own."""

    def paint(crops: Tensor, hole_masks: Tensor) -> Tensor:
        assert crops is editor.crops and hole_masks is editor.hole_masks
        greys = torch.arange(12) / 12  # two variations
        return greys[:, None, None, None].expand(12, *crops.shape[1:])

    results = editor.edit(paint)
    first = 0
    for photo, mask, result in zip(PHOTOS, HOLES, results, strict=True):
        holes = len(result.regions)
        assert result.images.shape == (2, *photo.shape) and len(result.crops) == 2 * holes
        for n, image in enumerate(result.images):
            kept = result.blend_mask == 0
            assert torch.equal(image[kept], photo[kept])
            assert result.region.photo_size == tuple(mask.shape)
            for k, region in enumerate(result.regions):
                inside = (region.photo_blend_mask == 1)[..., None].expand_as(image)
                grey = torch.tensor((6 * n + first + k) / 12)
                torch.testing.assert_close(image[inside].mean(), grey)
                torch.testing.assert_close(result.crops[n * holes + k].mean(), grey)
        first += holes


def test_what_is_painted_is_matched_truncated_and_pasted_as_asked(editor: BatchEditor) -> None:
    painted = uniform(12, 32, 32, 3, seed=5)

    def edited(**options: bool) -> Tensor:
        results = editor.edit(lambda crops, hole_masks: painted, **options)
        return torch.cat([r.crops.unflatten(0, (2, -1)) for r in results], dim=1).flatten(0, 1)

    assert torch.equal(edited(), painted)
    assert torch.equal(edited(truncate=True), (painted * 255).floor() / 255)
    originals, holes = editor.crops.repeat(2, 1, 1, 1), editor.hole_masks.repeat(2, 1, 1)
    assert torch.equal(edited(colour_match=True), match_colour(painted, originals, holes))
    for result in editor.edit(lambda crops, hole_masks: painted, paste_back=False):
        assert torch.equal(result.images, result.crops)


def test_photos_painted_together_are_those_painted_alone(
    model: PaintByExample, editor: BatchEditor
) -> None:
    """Each with an exemplar and a seed of its own."""
    exemplars = [uniform(20, 12, 3, seed=i) for i in range(3)]

    def paint(crops: Tensor, hole_masks: Tensor) -> Tensor:
        contexts = torch.cat([encode_exemplar(model, exemplar) for exemplar in exemplars])
        noises = [
            initial_noise(7 + i, (4, 16, 16), num_crops=len(regions))
            for i, regions in enumerate(editor.regions)
        ]
        return paint_crops(
            model,
            encode_crops(model, crops, hole_masks),
            contexts[editor.owners],
            torch.cat(noises),
            similarity=3.0,
            steps=2,
            sampler="dpmpp_2m",
        )

    with torch.inference_mode():
        results = editor.edit(paint)
    for i, result in enumerate(results):
        alone = edit(model, PHOTOS[i], HOLES[i], exemplars[i], steps=2, similarity=3.0,
                     seed=7 + i, region="each", crop=CropSettings(context=1.2))  # fmt: skip
        torch.testing.assert_close(result.images, alone.images, rtol=0, atol=1e-4)


def test_masks_are_brought_to_their_photos() -> None:
    small = torch.zeros(20, 26)
    small[6:11, 9:15] = 1
    shown = torch.zeros(80, 104)
    shown[:4, :4] = 1
    settings = CropSettings(resolution=32, multiple=16, context_mask=shown)
    editor = BatchEditor(PHOTOS[:1], [small], [settings])
    [[region]] = editor.regions
    assert region.photo_size == (40, 52) and region.box[:2] == (0, 0)


def test_an_empty_mask_is_named_by_its_number(model: PaintByExample) -> None:
    empty = torch.full_like(HOLES[1], 0.4)
    with pytest.raises(ValueError, match="photo 2 of 3: the mask is empty: none of its 48x64"):
        BatchEditor(PHOTOS, [HOLES[0], empty, HOLES[2]], [AT_32] * 3)
    masks = torch.stack([HOLES[0], torch.zeros(40, 52), HOLES[0]])
    with pytest.raises(ValueError, match=r"mask 2 of 3 is empty: nothing in it is above 0\.5"):
        edit(model, PHOTOS[0], masks, [uniform(20, 12, 3)] * 3, region="each", steps=1)
    for none in (masks[1:2], masks[:0]):
        with pytest.raises(ValueError, match=r"mask 1 of 1 is empty|there are no hole masks"):
            BatchEditor(PHOTOS[:1], [none], [AT_32], mode="each", numbered=True)


def test_what_does_not_go_together_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"crops of 3 sizes.*region mode 'auto'"):
        BatchEditor(PHOTOS, HOLES, [CropSettings(resolution=32, multiple=4)] * 3, mode="whole")
    with pytest.raises(ValueError, match=r"image has shape \(1, 40, 52, 3\)"):
        BatchEditor([PHOTOS[0][None]], HOLES[:1], [AT_32])
    with pytest.raises(ValueError, match=r"hole_mask is of type torch\.bool"):
        BatchEditor(PHOTOS[:1], [HOLES[0] > 0.5], [AT_32])


def test_rows_are_repeated_as_a_whole() -> None:
    rows = torch.arange(6).view(2, 3)
    assert torch.equal(repeat_rows(rows, 4), torch.cat([rows, rows]))
    assert torch.equal(repeat_rows(rows[:1], 3), rows[:1].expand(3, -1))


def two_holes() -> tuple[Tensor, Tensor]:
    """A photo (100, 160, 3) and its mask with two holes far apart."""
    photo = uniform(100, 160, 3, seed=3)
    hole = torch.zeros(100, 160)
    hole[40:50, 20:30] = hole[50:62, 130:142] = 1
    return photo, hole


def test_a_photo_without_a_hole_passes_through_beside_others():
    photo, hole = two_holes()
    seen = []

    def paint(crops, hole_masks):
        seen.append(hole_masks)
        return torch.cat([torch.zeros_like(crops), torch.ones_like(crops)])  # two variations

    empty = torch.full_like(hole, 0.3)
    editor = BatchEditor(
        [photo] * 3, [hole, empty, hole], [AT_32] * 3, mode="each", skip_empty=True
    )
    assert editor.to_paint == [0, 1, 3, 4] and len(editor.crops) == 5
    assert not editor.hole_masks[2].any()
    painted, passed, _ = editor.edit(paint)
    assert [len(masks) for masks in seen] == [4] and all(m.any() for m in seen[0])
    assert torch.equal(passed.images, photo.expand(2, -1, -1, -1))
    assert not passed.blend_mask.any() and len(passed.crops) == 2
    for level, image in enumerate(painted.images):
        assert ((image[hole == 1] - level).abs() < 1e-5).all()

    nothing = BatchEditor([photo], [empty], [AT_32], mode="whole", skip_empty=True)
    (passed,) = nothing.edit(paint)
    assert len(seen) == 1 and torch.equal(passed.images, photo[None])
    with pytest.raises(ValueError, match="the mask is empty"):
        BatchEditor([photo], [empty], [AT_32])


def test_crops_of_any_size_are_pasted_with_masks_drawn_on_them():
    photo, hole = two_holes()
    editor = BatchEditor([photo], [hole], [AT_32], mode="each")
    painted = torch.ones(4, 200, 200, 3)  # two variations
    shares = torch.zeros(4, 100, 100)
    shares[0, :50] = shares[3] = 1
    (result,) = editor.paste(painted, shares=shares)
    first, second = ((image != photo).any(-1) for image in result.images)
    boxes = [region.box for region in result.regions]
    x0, y0, x1, y1 = boxes[0]
    middle = (y0 + y1) // 2
    assert first[y0 : middle - 1, x0:x1].all() and not first[middle + 2 :].any()
    assert first.sum() == first[y0:y1, x0:x1].sum()
    x0, y0, x1, y1 = boxes[1]
    assert second[y0:y1, x0:x1].all() and second.sum() == (x1 - x0) * (y1 - y0)

    for wrong, masks, message in (
        (painted[:3], None, "3 crops and 1 photos with 2 regions do not match"),
        (painted, shares[:3], "3 blend masks and 4 crops do not match"),
    ):
        with pytest.raises(ValueError, match=message):
            editor.paste(wrong, shares=masks)


def test_colours_are_matched_at_the_size_of_the_painted_crop():
    photo, hole = two_holes()
    editor = BatchEditor([photo * 0.5 + 0.2], [hole], [AT_32], mode="each")
    large = editor.crops.repeat_interleave(2, 1).repeat_interleave(2, 2)
    (result,) = editor.paste(large + 0.1, colour_match=True)
    torch.testing.assert_close(result.crops, large, rtol=0, atol=0.01)
