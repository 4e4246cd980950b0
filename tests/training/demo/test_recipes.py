"""Endless composites: the object is in its hole, and whole in its exemplar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.augment import SampleGeometry
from training.demo.composite import MARGIN
from training.demo.recipes import Prepared, RecipeConfig, Recipes, endless, read_pictures
from training.demo.textures import Textures, layer

from .pictures import write_objects

SIZE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("objects"))


def recipes(pictures: list[Prepared], config: RecipeConfig | None = None, seed: int = 0) -> Recipes:
    return Recipes(pictures, config or RecipeConfig(), SampleGeometry(), size=SIZE, seed=seed)


def alphas(pictures: list[Prepared], layers: np.ndarray, size: int) -> np.ndarray:
    """The uppermost layer's alpha of each, `(N, S, S)`."""
    textures = Textures([picture.pixels for picture in pictures], torch.device("cpu"))
    return textures.draw(torch.from_numpy(layers), size)[1][:, 0].numpy()


def test_objects_lie_in_their_holes_and_in_the_photo(root: Path) -> None:
    pictures = read_pictures(root, "train")
    # Of all sizes, with room for the jitter.
    made = recipes(pictures, RecipeConfig(extent=(0.35, 0.62), off_centre=0.1, room=0.3))
    layers, holes = zip(*(made.photo(number) for number in range(40)), strict=True)
    objects = alphas(pictures, np.stack(layers), SIZE)
    outside = np.stack(holes)[objects > 0.6] < 128
    assert outside.mean() < 1e-3  # jitter may cut a corner off a hole
    assert ((objects > 0.6).sum(axis=(1, 2)) > 15).all()
    shares = (np.stack(holes) / 255).mean(axis=(1, 2))
    assert shares.min() < 0.15 and shares.max() > 0.35


def test_objects_lie_where_an_edit_has_its_hole(root: Path) -> None:
    pictures = read_pictures(root, "train")
    config = RecipeConfig(extent=(0.5, 0.6), off_centre=0.05)
    layers = np.stack([recipes(pictures, config).photo(number)[0] for number in range(40)])
    for alpha in alphas(pictures, layers, SIZE) > 0.5:
        spans = [np.flatnonzero(alpha.any(axis=axis)) for axis in (0, 1)]
        sides = [(span[-1] + 1 - span[0]) / SIZE for span in spans]
        middles = [(span[-1] + 1 + span[0]) / 2 / SIZE for span in spans]
        assert 0.4 < max(sides) < 0.62  # small pictures are not enlarged without end
        assert all(abs(middle - 0.5) < 0.05 + 2 / SIZE for middle in middles), middles


def test_objects_fill_their_holes_in_one_direction_at_least(root: Path) -> None:
    pictures = read_pictures(root, "train")
    inside = RecipeConfig(extent=(0.4, 0.7), off_centre=0.05)  # no hole is cut at the photo's edge
    made = Recipes(pictures, inside, SampleGeometry(bezier=0), size=SIZE, seed=0)
    layers, holes = zip(*(made.photo(number) for number in range(40)), strict=True)
    for alpha, hole in zip(alphas(pictures, np.stack(layers), SIZE) > 0.5, holes, strict=True):
        spans = [
            [np.flatnonzero(a.any(axis=axis))[[0, -1]] for axis in (0, 1)]
            for a in (alpha, hole >= 128)
        ]
        (object_x, object_y), (hole_x, hole_y) = spans
        free = np.array([np.ptp(hole_x) - np.ptp(object_x), np.ptp(hole_y) - np.ptp(object_y)])
        longer = max(np.ptp(object_x), np.ptp(object_y))
        assert free.min() <= 0.1 * longer + 3 and free.max() <= 0.25 * longer + 3
        # Pixels of the object and of the hole, twice the distance of their middles.
        for inner, outer in ((object_x, hole_x), (object_y, hole_y)):
            assert abs(inner.sum() - outer.sum()) <= 4


def test_exemplars_show_the_whole_object_with_a_margin(root: Path) -> None:
    pictures = read_pictures(root, "train")
    made = recipes(pictures)
    layers = np.stack([made.exemplar(number, 100 + number) for number in range(40)])
    objects = alphas(pictures, layers, SIZE) > 0.5
    for alpha in objects:
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        for found in (rows, columns):
            assert found[0] >= 0.5 * MARGIN * SIZE / (1 + 3 * MARGIN) - 2
            assert found[-1] < SIZE
            assert len(found) > 0.7 * SIZE


def test_a_photo_and_its_exemplars_share_object_and_colours(root: Path) -> None:
    made = recipes(read_pictures(root, "train"), RecipeConfig(recolour=1.0))
    for number in range(8):
        photo, exemplar = made.photo(number)[0][-1], made.exemplar(number, 5)[-1]
        assert photo[0] == exemplar[0]
        # But for the light of the place, a factor.
        ratio = photo[7:][np.abs(exemplar[7:]) > 1e-3] / exemplar[7:][np.abs(exemplar[7:]) > 1e-3]
        assert np.ptp(ratio) < 1e-3


def test_everything_depends_on_seed_and_number_alone(root: Path) -> None:
    pictures = read_pictures(root, "train")
    one, again, other = recipes(pictures), recipes(pictures), recipes(pictures, seed=1)
    for number in (3, 70, 4):
        assert np.array_equal(one[number]["exemplar_layers"], again[number]["exemplar_layers"])
        assert np.array_equal(one.photo(number)[1], again.photo(number)[1])
        assert not np.array_equal(one.photo(number)[0], other.photo(number)[0])
    assert not np.array_equal(one.photo(3)[0], one.photo(4)[0])


def test_samples_take_the_newest_photos(root: Path) -> None:
    made = recipes(read_pictures(root, "train"), RecipeConfig(reuse=4, pool=10))
    assert [made.photo_of(sample) for sample in range(4)] == [0] * 4
    taken = [made.photo_of(sample) - sample // 4 for sample in range(400, 2400)]
    assert set(taken) == set(range(-9, 1))
    assert np.bincount(-np.array(taken)).min() > 120  # of 200 each


def test_an_unchanged_colour_is_kept(root: Path) -> None:
    made = recipes(read_pictures(root, "train"), RecipeConfig(recolour=0.0))
    for row in made.photo(0)[0]:
        colour = row[7:].reshape(3, 4)
        assert np.allclose(colour, colour[0, 0] * np.eye(3, 4))
    assert layer(0, np.eye(2, 3), np.eye(3, 4)).dtype == np.float32


def test_a_folder_without_the_set_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pbe-train prepare demo"):
        read_pictures(tmp_path, "train")


@pytest.mark.parametrize("line", ['{"split": "train"}', "[1]", '{"file": 3, "split": "train"}'])
def test_a_line_that_names_no_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "objects.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_pictures(tmp_path, "train")


def test_too_few_pictures(tmp_path: Path) -> None:
    root = write_objects(tmp_path / "few", cutouts=1, backgrounds=1)
    with pytest.raises(ValueError, match="1 cut-outs and 1 backgrounds"):
        endless(
            root, RecipeConfig(), SampleGeometry(), size=SIZE, seed=0, device=torch.device("cpu")
        )
