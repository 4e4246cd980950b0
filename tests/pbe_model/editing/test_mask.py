"""Mask shapes: the paper's random holes, the artist's operations, the network's two tensors."""

import numpy as np
import pytest
import torch

from pbe_model.editing.mask import (
    SHAPES,
    augment,
    bounding_box,
    convex_hull,
    expand_hole,
    feather_hole,
    fill_enclosed,
    remove_specks,
    with_threshold,
)
from pbe_model.editing.mask_shapes import bezier_mask, bezier_outline, box_mask, extend_box
from pbe_model.networks.masked_inputs import latent_keep_mask, masked_image


def disc(size: int = 65, radius: float = 20) -> torch.Tensor:
    y, x = np.mgrid[:size, :size] - size // 2
    return torch.from_numpy((x**2 + y**2 <= radius**2).astype(np.float32))


# ---- shapes drawn in training ---------------------------------------------------------------


def test_box_mask_is_the_box_cut_off_at_the_rim():
    mask = box_mask(4, 5, (-2, 1, 3, 9))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0] * 5] + [[1, 1, 1, 0, 0]] * 3


def test_extend_box_takes_up_to_the_amount_of_the_free_space_a_side():
    rng = np.random.default_rng(0)
    boxes = np.array([extend_box((40, 10, 60, 90), 100, 120, rng) for _ in range(4000)])
    # Free: left 40, top 10, right 60, bottom 10; 40 % of it, both ends of the range included.
    assert boxes.min(0).tolist() == [24, 6, 60, 90]
    assert boxes.max(0).tolist() == [40, 10, 84, 94]
    assert np.abs(boxes.mean(0) - [32, 8, 72, 92]).max() < 0.5


def test_bezier_curves_reach_half_way_to_the_extended_box():
    rng = np.random.default_rng(0)
    mask = bezier_mask(200, 200, (60, 60, 140, 140), (20, 40, 190, 140), rng, jitter=0)
    x0, y0, x1, y1 = bounding_box(torch.from_numpy(mask))
    assert (x0, y0, x1, y1) == pytest.approx((40, 50, 165, 140), abs=2)


def test_bezier_jitter_moves_points_by_whole_steps_of_at_most_its_size():
    box = (100, 100, 200, 200)
    edges = []
    for seed in range(200):
        mask = bezier_mask(300, 300, box, box, np.random.default_rng(seed), jitter=10)
        edges.append(bounding_box(torch.from_numpy(mask)))
    # A side that is not extended keeps one point; four jittered points make the outline.
    low, high = np.min(edges, 0), np.max(edges, 0)
    assert (low[:2] >= 89).all() and (high[2:] <= 212).all()
    assert (high - low).min() > 10


def test_bezier_masks_have_the_area_of_boxes_somewhat_extended():
    rng = np.random.default_rng(0)
    box = (300, 250, 700, 600)
    ratios = []
    for _ in range(60):
        mask = bezier_mask(768, 1024, box, extend_box(box, 768, 1024, rng), rng)
        ratios.append(mask.sum() / (400 * 350))
        assert mask.shape == (768, 1024) and mask.dtype == np.uint8 and mask.max() == 1
        assert mask[260:590, 310:690].mean() > 0.99  # the object is covered
    assert min(ratios) > 0.97 and max(ratios) < 1.45
    assert 1.1 < np.mean(ratios) < 1.25 and np.std(ratios) > 0.02


def test_bezier_mask_follows_its_generator():
    arguments = (64, 64, (20, 20, 44, 44), (10, 12, 50, 60))
    same = [bezier_mask(*arguments, np.random.default_rng(7), jitter=2) for _ in range(2)]
    other = bezier_mask(*arguments, np.random.default_rng(8), jitter=2)
    assert np.array_equal(same[0], same[1]) and not np.array_equal(same[0], other)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (63, 63, 64, 64), (0, 0, 64, 64), (0, 30, 64, 31)])
def test_bezier_mask_is_never_empty(box):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert bezier_mask(64, 64, box, extend_box(box, 64, 64, rng), rng).any()


# ---- what an artist does to a mask ----------------------------------------------------------


def test_bounding_box_is_strict_at_the_threshold():
    mask = torch.zeros(6, 8)
    mask[2, 3:5] = 1.0
    mask[5, 7] = 0.5
    assert bounding_box(mask) == (3, 2, 5, 3)
    assert bounding_box(mask, 0.4) == (3, 2, 8, 6)
    with pytest.raises(ValueError, match=r"empty.*8x6.*paint white"):
        bounding_box(torch.full((6, 8), 0.5))


@pytest.mark.parametrize("radius", [1, 3, 7.5])
def test_expand_is_dilation_and_erosion_by_a_disc(radius):
    rng = np.random.default_rng(0)
    hole = torch.from_numpy(rng.random((40, 50)) > 0.97)
    y, x = np.mgrid[:40, :50]
    distance = np.min(
        [np.hypot(y - row, x - column) for row, column in hole.nonzero().tolist()], axis=0
    )
    grown = expand_hole(hole.float(), radius)
    assert np.array_equal(grown.numpy() == 1, distance <= radius)
    # Shrinking a hole is growing what it leaves; the picture's rim is no background.
    shrunk = expand_hole((~hole).float(), -radius)
    assert torch.equal(shrunk, 1 - grown)


def test_expand_by_nothing_keeps_soft_values_and_rim():
    soft = torch.rand(5, 6)
    assert torch.equal(expand_hole(soft, 0), soft)
    assert torch.equal(expand_hole(torch.ones(5, 6), -3), torch.ones(5, 6))
    assert torch.equal(expand_hole(torch.zeros(5, 6), 3), torch.zeros(5, 6))


def test_feather_is_a_ramp_through_the_edge():
    hole = torch.zeros(3, 12)
    hole[:, 6:] = 1
    ramp = feather_hole(hole, 2)[1]
    expected = [0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]
    assert torch.allclose(ramp, torch.tensor(expected))
    assert torch.equal(feather_hole(disc(), 6) > 0.5, disc() > 0.5)
    with pytest.raises(ValueError, match="feather is -1"):
        feather_hole(hole, -1)


def test_fill_enclosed_fills_islands_and_keeps_soft_edges():
    ring = disc(radius=20) - disc(radius=10)
    assert torch.equal(fill_enclosed(ring), disc(radius=20))
    open_ring = ring.clone()
    open_ring[32, :] = 0  # a gap from inside to outside
    assert torch.equal(fill_enclosed(open_ring), open_ring)
    assert torch.equal(fill_enclosed(feather_hole(disc(), 5)) < 0.5, disc() < 0.5)


def test_specks_of_too_few_pixels_are_removed():
    mask = torch.zeros(20, 20)
    mask[2:6, 2:6] = 1  # 16 pixels
    mask[10, 10] = mask[11, 11] = mask[12, 12] = 1  # 3, joined by their corners
    mask[18, 18] = 1
    parts = [mask, mask.clone(), mask.clone()]
    parts[1][18, 18] = 0
    parts[2][10:] = 0
    for pixels, left in [(0, 0), (1, 0), (1.5, 1), (3, 1), (3.5, 2), (4, 2), (16, 2), (999, 2)]:
        assert torch.equal(remove_specks(mask, pixels), parts[left]), pixels
    # Each mask of a batch by itself, and what has no parts stays as it is.
    batch = torch.stack([mask, torch.zeros(20, 20), torch.ones(20, 20), parts[1] - parts[2]])
    result = remove_specks(batch, 999)
    assert torch.equal(result, torch.stack([parts[2], *batch[1:]]))


def test_a_soft_edge_goes_with_its_part():
    object_, speck = torch.zeros(40, 40), torch.zeros(40, 40)
    object_[5:20, 5:20] = 1
    speck[32:34, 32:34] = 1
    soft, soft_speck = feather_hole(object_, 4), feather_hole(speck, 4)
    result = remove_specks(torch.maximum(soft, soft_speck), 10)
    assert torch.equal(result, soft) and soft_speck.max() > 0.5


def test_convex_hull():
    corners = torch.zeros(40, 40)
    corners[5, 5] = corners[5, 30] = corners[30, 5] = 1
    hull = convex_hull(corners)
    y, x = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    inside = (x >= 5) & (y >= 5) & (x + y <= 35)
    assert torch.equal(hull == 1, inside)
    assert torch.equal(convex_hull(disc()), disc())  # convex already
    point = torch.zeros(5, 5)
    point[2, 2] = 1
    assert torch.equal(convex_hull(point), point)
    assert convex_hull(torch.zeros(2, 5, 5)).shape == (2, 5, 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_augment_shapes_cover_the_hole(shape):
    masks = torch.stack([disc(), disc(radius=8)])
    result = augment(masks, shape, seed=3, variations=3)
    assert result.shape == (6, 65, 65) and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() == 1
    for number, mask in enumerate(masks):
        for variation in result[3 * number : 3 * number + 3]:
            assert (variation[mask == 1]).mean() > 0.98
    assert torch.equal(result, augment(masks, shape, seed=3, variations=3))
    varies = not torch.equal(result[0], result[1])
    assert varies == (shape == "bezier")


def test_variations_are_drawn_by_the_function_that_training_draws_with():
    of_training = pytest.importorskip("training.data.augment")
    assert of_training.bezier_outline is bezier_outline
    assert of_training.extend_box is extend_box
    hole, seed = disc(256, 60), 5
    box = bounding_box(hole)
    for variation, drawn in enumerate(augment(hole, "bezier", seed=seed, variations=3)):
        rng = np.random.default_rng([seed, 0, variation])
        extended = extend_box(box, 256, 256, rng)
        expected = bezier_mask(256, 256, box, extended, rng, jitter=5.0 * 256 / 1024)
        assert np.array_equal(drawn.numpy(), expected)


def test_augment_drops_specks_after_filling_and_before_shaping():
    ring = disc(radius=10) - disc(radius=8)
    ring[0, 0] = 1  # stretches the box
    ring_pixels, disc_pixels = int(ring.sum()) - 1, int(disc(radius=10).sum())
    assert ring_pixels < 150 < disc_pixels
    ring[40:, 40:] = torch.maximum(ring[40:, 40:], disc(25, 6.5))  # 137 pixels, apart from it
    result = augment(ring, "box", fill_holes=True, drop_specks=150, expand=0)[0]
    assert bounding_box(result) == bounding_box(disc(radius=10)) == (22, 22, 43, 43)
    assert bounding_box(augment(ring, "box")[0])[:2] == (0, 0)


def test_augment_order_is_fill_shape_expand_feather():
    ring = disc(radius=20) - disc(radius=10)
    result = augment(ring, expand=4, feather=3, fill_holes=True)[0]
    assert torch.equal(result, feather_hole(expand_hole(disc(radius=20), 4), 3))
    soft = torch.rand(9, 9)
    assert torch.equal(augment(soft)[0], soft)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"shape": "oval"}, "'oval'; choose one of as is, box, bezier, hull"),
        ({"variations": 0}, "variations is 0"),
        ({"expand": -30}, "expand -30 shrinks"),
        ({"feather": -2}, "feather is -2"),
        ({"drop_specks": -3}, "drop specks is -3"),
    ],
)
def test_augment_names_bad_values(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        augment(disc(), **arguments)


def test_augment_refuses_empty_and_misshapen_masks():
    with pytest.raises(ValueError, match="mask is empty"):
        augment(torch.zeros(64, 64), "bezier")
    with pytest.raises(ValueError, match=r"has shape \(1, 1, 4, 4\)"):
        augment(torch.ones(1, 1, 4, 4))


# ---- what the network sees ------------------------------------------------------------------


def test_latent_mask_by_hand():
    # Eight pixels a cell: bilinear without antialias is the mean of the four middle pixels
    # (rows and columns 3 and 4), so 0.5 where the hole takes two of them.
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., :8, 4:] = 1.0  # half of the upper left cell, all of the upper right
    hole[..., 11, 3] = 1.0  # one pixel in the lower left cell, one of its middle four
    hole[..., 8:, 8:] = 0.5  # lower right: not above 0.5, kept
    keep = latent_keep_mask(hole, (2, 2))
    assert torch.equal(keep[0, 0], torch.tensor([[0.5, 0.0], [0.75, 1.0]]))
    # The soft mask of training is not cut at 0.5.
    soft = latent_keep_mask(hole, (2, 2), binarize=False)
    assert torch.equal(soft[0, 0], torch.tensor([[0.5, 0.0], [0.75, 0.5]]))
    # The three traps would each have given something else.
    binary = (hole > 0.5).float()
    nearest = 1 - torch.nn.functional.interpolate(binary, (2, 2), mode="nearest")
    antialiased = 1 - torch.nn.functional.interpolate(
        binary, (2, 2), mode="bilinear", antialias=True
    )
    for trap in (nearest, antialiased, keep.round()):
        assert (trap - keep).abs().max() > 0.1


def test_masked_image_is_grey_in_the_hole():
    image = torch.rand(2, 3, 4, 4) * 2 - 1
    keep = torch.ones(2, 1, 4, 4)
    keep[..., 1:3, 1:3] = 0
    masked = masked_image(image, keep)
    assert (masked[..., 1:3, 1:3] == 0).all()
    assert torch.equal(masked[..., 0, :], image[..., 0, :])


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8])
def test_a_threshold_moves_the_edge_and_keeps_the_order(threshold):
    mask = torch.linspace(0, 1, 256)
    moved = with_threshold(mask, threshold)
    assert torch.equal(moved > 0.5, mask > threshold)
    assert (moved.diff() >= 0).all() and moved[0] == 0 and moved[-1] == 1
    with pytest.raises(ValueError, match="threshold is 1"):
        with_threshold(mask, 1)
