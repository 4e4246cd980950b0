"""Pictures drawn through affine maps, in batches."""

from __future__ import annotations

import numpy as np
import torch

from training.demo.textures import EMPTY, Textures, layer

CPU = torch.device("cpu")
SAME = np.eye(3, 4)


def square(left: float, top: float, side: float) -> np.ndarray:
    """The map that shows a square of a picture."""
    return np.array([[side, 0, left], [0, side, top]])


def draw(textures: Textures, *layers: np.ndarray, size: int = 16) -> torch.Tensor:
    return textures.draw(torch.from_numpy(np.stack(layers))[None], size)[0][0]


def test_a_slope_is_drawn_where_the_map_says() -> None:
    across = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (80, 100, 3))
    textures = Textures([np.zeros((9, 9, 3), np.uint8), across], CPU)
    place = np.array([[8.0, 16.0, 20.0], [16.0, -8.0, 40.0]])  # turned, and not of whole pixels
    found = draw(textures, layer(1, place, SAME), size=8)
    centre = (torch.arange(8) + 0.5) / 8
    wanted = 8 * centre[None, :] + 16 * centre[:, None] + 20 - 0.5  # pixel 0 has its centre at 0.5
    torch.testing.assert_close(found[0] * 255, wanted, rtol=0, atol=1e-3)


def test_what_is_made_small_is_averaged() -> None:
    fine = np.indices((128, 128)).sum(axis=0) % 2 * 255
    textures = Textures([np.repeat(fine[..., None], 3, axis=2).astype(np.uint8)], CPU)
    found = draw(textures, layer(0, square(0, 0, 128), SAME), size=16)
    assert (found - 0.5).abs().max() < 0.01


def test_cut_outs_are_transparent_outside_and_backgrounds_go_on() -> None:
    red = np.zeros((10, 10, 4), np.uint8)
    red[..., 0] = red[..., 3] = 255
    blue = np.zeros((20, 20, 3), np.uint8)
    blue[..., 2] = 255
    textures = Textures([red, blue], CPU)
    below, above = layer(1, square(0, 0, 20), SAME), layer(0, square(-10, 0, 20), SAME)
    found = draw(textures, below, above)
    wanted = torch.zeros(3, 16, 16)
    wanted[2] = 1
    wanted[0, :8, 8:], wanted[2, :8, 8:] = 1, 0
    for rows, columns in ((slice(1, 7), slice(1, 7)), (slice(1, 7), slice(9, 15)), (9, 9)):
        assert torch.equal(found[:, rows, columns], wanted[:, rows, columns])
    nothing = layer(EMPTY, square(0, 0, 1), SAME)
    assert torch.equal(draw(textures, below, nothing), draw(textures, below))
    beyond = draw(textures, layer(1, square(-30, 50, 20), SAME))
    assert torch.equal(beyond, draw(textures, below))


def test_soft_edges_keep_their_colour() -> None:
    """Interpolated premultiplied: no halo of what transparent pixels hold."""
    soft = np.zeros((12, 12, 4), np.uint8)
    soft[..., 1] = 255  # green where it is transparent too
    soft[4:8, 4:8] = (255, 0, 0, 128)
    textures = Textures([soft, np.zeros((8, 8, 3), np.uint8)], CPU)
    black = layer(1, square(0, 0, 8), SAME)
    found = draw(textures, black, layer(0, square(0, 0, 12), SAME), size=24)
    assert found[1].max() == 0
    assert abs(found[0].max() - 128 / 255) < 0.01


def test_colours_change_with_their_alpha() -> None:
    half = np.full((8, 8, 4), 128, np.uint8)
    half[..., :3] = (200, 100, 0)
    textures = Textures([half, np.zeros((8, 8, 3), np.uint8)], CPU)
    swap = np.array([[0, 1, 0, 0.1], [1, 0, 0, 0.0], [0, 0, 1, 0.2]])
    layers = np.stack([layer(1, square(0, 0, 8), SAME), layer(0, square(1, 1, 6), swap)])
    found, alpha = textures.draw(torch.from_numpy(layers)[None], 4)
    wanted = torch.tensor([100 / 255 + 0.1, 200 / 255, 0.2]) * 128 / 255
    torch.testing.assert_close(found[0, :, 1, 1], wanted, rtol=0, atol=0.01)
    torch.testing.assert_close(alpha, torch.full((1, 1, 4, 4), 128 / 255))
