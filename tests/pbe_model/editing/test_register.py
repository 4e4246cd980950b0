"""The drift of a painted crop is measured on real photos, or not at all."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from pbe_model.editing.batch import BatchEditor
from pbe_model.editing.crop_settings import CropSettings
from pbe_model.editing.region import resize
from pbe_model.editing.register import Drift, describe, find_drift, undo_drift
from pbe_model.scenes import Scene, load_scenes

SIDE = 512
AT_512 = CropSettings(resolution=SIDE, multiple=64)


@functools.cache
def scenes() -> dict[str, Scene]:
    return {scene.name: scene for scene in load_scenes()}


def edit_of(name: str) -> BatchEditor:
    scene = scenes()[name]
    return BatchEditor([scene.photo], [scene.hole_mask], [AT_512])


def scaled(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resize(picture.movedim(-1, 0)[None], size)[0].movedim(0, -1).clamp(0, 1)


def drifted(picture: torch.Tensor, zoom: float, right: float, down: float) -> torch.Tensor:
    """A picture (h, w, C) zoomed around its centre, then shifted, by SciPy's cubic splines."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(float)
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    places = [middle_y + (y - middle_y - down) / zoom, middle_x + (x - middle_x - right) / zoom]
    channels = [
        ndimage.map_coordinates(channel, places, order=3, mode="nearest")
        for channel in picture.movedim(-1, 0).numpy()
    ]
    return torch.from_numpy(np.stack(channels, -1)).float().clamp(0, 1)


def painted_over(editor: BatchEditor, exemplar: torch.Tensor) -> torch.Tensor:
    """The crop with a hole of quite another look, (h, w, 3)."""
    crop, hole = editor.crops[0], editor.hole_masks[0][..., None]
    return torch.where(hole > 0.5, scaled(exemplar, (SIDE, SIDE)), crop)


def noisy(picture: torch.Tensor, deviation: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (picture + deviation * torch.randn(picture.shape, generator=generator)).clamp(0, 1)


def assert_found(drift: Drift | None, zoom: float, right: float, down: float) -> None:
    assert drift is not None
    assert abs(drift.shift[0] * SIDE - right) < 0.1 and abs(drift.shift[1] * SIDE - down) < 0.1
    assert abs(drift.zoom - zoom) < 0.0005


@pytest.mark.parametrize(
    ("name", "zoom", "right", "down"),
    [
        ("meadow", 1.03, 8.0, -8.0),
        ("deck", 0.97, -8.0, 5.0),
        ("sky", 1.012, -3.3, 7.7),
        ("table", 1.03, -8.0, -8.0),
        ("leaves", 0.985, 0.4, -0.2),
        ("dune", 1.0, 7.7, 0.0),
    ],
)
def test_shift_and_zoom_are_found_with_noise_other_light_and_another_hole(name, zoom, right, down):
    editor = edit_of(name)
    painted = drifted(painted_over(editor, scenes()[name].exemplar), zoom, right, down)
    painted = noisy(0.93 * painted + 0.04, 0.02)
    assert_found(find_drift(painted, editor.crops[0], editor.hole_masks[0]), zoom, right, down)


@pytest.mark.parametrize("size", [(333, 333), (1024, 1024), (640, 832)])
def test_the_painted_crop_may_have_another_size(size):
    editor = edit_of("dune")
    painted = scaled(drifted(editor.crops[0], 1.02, 6, -4), size)
    assert_found(find_drift(painted, editor.crops[0], editor.hole_masks[0]), 1.02, 6, -4)


def plain_and_repetitive() -> dict[str, torch.Tensor]:
    """Pictures that look the same in many places, (512, 512) each."""
    y, x = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
    tile = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    return {
        "plain": torch.full((SIDE, SIDE), 0.5),
        "gradient": (x + y) / 1024,
        "stripes": (x * 2 * math.pi / 37).sin() * 0.3 + 0.5,
        "edge": (x > 60).float() * 0.5 + 0.2,
        "slanting edge": ((x + y) > 180).float() * 0.5 + 0.2,
        "checkers": (((x // 12) + (y // 12)) % 2) * 0.6 + 0.2,
        "tiles": tile.repeat(26, 26)[:SIDE, :SIDE],
    }


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("name", list(plain_and_repetitive()))
def test_a_plain_or_repetitive_surrounding_does_not_tell(name, noise):
    picture = plain_and_repetitive()[name][..., None].repeat(1, 1, 3)
    hole = torch.zeros(SIDE, SIDE)
    hole[150:380, 140:400] = 1
    painted = drifted(picture, 1.01, 5, -3)
    painted[hole == 1] = torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert find_drift(noisy(painted, noise, 1), noisy(picture, noise, 2), hole) is None


def shapes() -> dict[str, torch.Tensor]:
    """Little to go by: shapes on plain ground, (512, 512) each."""
    y, x = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")

    def distance(right: float, down: float) -> torch.Tensor:
        return ((x - right) ** 2 + (y - down) ** 2).sqrt()

    drawn = {f"disc of {radius}": distance(75, 75) < radius for radius in (20, 40, 60)}
    drawn["two discs"] = (distance(75, 75) < 30) | (distance(440, 430) < 40)
    drawn["square"] = (x > 40) & (x < 100) & (y > 40) & (y < 110)
    pictures = {name: 0.5 * shape.float() + 0.2 for name, shape in drawn.items()}
    pictures["soft disc"] = 0.5 * torch.sigmoid((50 - distance(75, 75)) / 3) + 0.2
    return pictures


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("name", [*shapes(), "sky", "table", "leaves"])
def test_what_is_found_is_right_and_else_nothing_is(name, noise):
    if name in scenes():
        editor = edit_of(name)
        picture, hole = editor.crops[0], editor.hole_masks[0]
    else:
        picture, hole = shapes()[name][..., None].repeat(1, 1, 3), torch.zeros(SIDE, SIDE)
        hole[150:380, 140:400] = 1
    rng = np.random.default_rng(3)
    zoom, right, down = 1 + rng.uniform(-0.03, 0.03), *rng.uniform(-8, 8, 2)
    painted = drifted(picture, zoom, right, down)
    painted[hole > 0.5] = torch.rand(3, generator=torch.Generator().manual_seed(1))
    drift = find_drift(noisy(painted, noise, 1), noisy(picture, noise / 2, 2), hole)
    if drift is not None:
        assert_found(drift, zoom, right, down)
    if name in ("leaves", "table", "two discs"):
        assert drift is not None
    if name in ("disc of 20", "disc of 40", "soft disc", "square"):
        assert drift is None


def test_another_picture_or_nothing_kept_does_not_tell():
    editor, other = edit_of("deck"), edit_of("meadow")
    hole = editor.hole_masks[0]
    assert find_drift(other.crops[0], editor.crops[0], hole) is None
    assert find_drift(editor.crops[0], editor.crops[0], torch.ones_like(hole)) is None


def test_a_crop_in_its_place_stays_to_the_last_bit():
    editor = edit_of("leaves")
    crop = editor.crops[0]
    drift = find_drift(crop, crop, editor.hole_masks[0])
    assert drift is not None and undo_drift(crop, drift) is crop
    assert describe(drift, (SIDE, SIDE)) == "in its place"


@pytest.mark.parametrize("scale", [1, 2])
def test_undoing_a_drift_brings_the_picture_back(scale):
    crop = edit_of("dune").crops[0]
    crop = scaled(crop, (scale * SIDE, scale * SIDE))
    painted = drifted(crop, 1.02, 6 * scale, -4 * scale)
    back = undo_drift(painted, Drift(1.02, (6 / SIDE, -4 / SIDE)))
    inner = slice(20 * scale, -20 * scale)
    before, after = ((picture - crop)[inner, inner].abs().mean() for picture in (painted, back))
    assert after < before / 8
    assert describe(Drift(1.02, (6 / SIDE, -4 / SIDE)), (SIDE, SIDE)).startswith(
        "was +6.0 pixels to the right, -4.0 down and +2.00% larger"
    )


def test_a_drifted_crop_is_pasted_where_it_belongs_and_the_rest_keeps_its_bits():
    scene = scenes()["leaves"]
    editor = edit_of("leaves")
    right = editor.paste(painted_over(editor, scene.exemplar)[None])[0]
    painted = drifted(painted_over(editor, scene.exemplar), 1.02, 6, -4)[None]
    plain = editor.paste(painted)[0]
    registered = editor.paste(painted, registered=True)[0]
    assert plain.drifts == [None]
    assert_found(registered.drifts[0], 1.02, 6, -4)
    untouched = right.blend_mask == 0
    assert torch.equal(registered.images[0][untouched], scene.photo[untouched])
    errors = [(it.images - right.images).abs().mean() for it in (plain, registered)]
    assert errors[1] < errors[0] / 4


def test_a_crop_that_does_not_tell_is_pasted_as_it_is():
    photo = torch.full((300, 400, 3), 0.5)
    hole = torch.zeros(300, 400)
    hole[100:200, 150:250] = 1
    editor = BatchEditor([photo], [hole], [CropSettings(resolution=64, multiple=16)])
    painted = torch.rand(editor.crops.shape, generator=torch.Generator().manual_seed(0))
    plain, registered = (editor.paste(painted, registered=on)[0] for on in (False, True))
    assert registered.drifts == [None] and torch.equal(plain.images, registered.images)
    assert "does not tell" in describe(None, (64, 64))


def test_a_drift_is_undone_in_a_crop_that_came_back_stretched():
    crop = edit_of("dune").crops[0]
    drift = Drift(1.02, (6 / SIDE, -9 / SIDE))
    wide, undone = (
        scaled(picture, (SIDE, 2 * SIDE)) for picture in (crop, drifted(crop, 1.02, 6, -9))
    )
    inner = slice(20, -20), slice(40, -40)
    before, after = ((it - wide)[inner].abs().mean() for it in (undone, undo_drift(undone, drift)))
    assert after < before / 8
