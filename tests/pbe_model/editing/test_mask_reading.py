"""Masks mean what people see, however a program stored them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pbe_model.editing.mask_reading import is_mostly_hole, picture_mask

HEIGHT, WIDTH = 120, 160
RNG = np.random.default_rng(0)


def grid() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return x, y


def ellipse() -> Tensor:
    """The hole as the user sees it, 0 or 1."""
    x, y = grid()
    return (((x - 80) / 25) ** 2 + ((y - 58) / 17) ** 2 < 1).float()


def soft_ellipse() -> Tensor:
    """The same with a smooth edge, as a soft brush draws it."""
    x, y = grid()
    distance = (((x - 80) / 25) ** 2 + ((y - 58) / 17) ** 2).sqrt()
    return (1.5 - distance).clamp(0, 1) ** 2 * (3 - 2 * (1.5 - distance).clamp(0, 1))


def corners() -> Tensor:
    """Opacity of a picture with rounded corners."""
    x, y = grid()
    dx = (x - WIDTH / 2).abs() - (WIDTH / 2 - 14)
    dy = (y - HEIGHT / 2).abs() - (HEIGHT / 2 - 14)
    return (dx.clamp_min(0) ** 2 + dy.clamp_min(0) ** 2 < 14**2).float()


def flat(*rgb: float) -> Tensor:
    return torch.tensor(rgb).expand(HEIGHT, WIDTH, 3)


def grey(tone: Tensor) -> Tensor:
    return tone[..., None].expand(-1, -1, 3)


def photo(chroma: float = 1.0) -> Tensor:
    """Smooth varied colours with some grain."""
    x, y = grid()
    tone = 0.5 + 0.4 * torch.sin(x / 13) * torch.cos(y / 17)
    rgb = torch.stack([tone, 0.2 + 0.6 * x / WIDTH, 0.9 - 0.6 * y / HEIGHT], -1)
    rgb = chroma * rgb + (1 - chroma) * rgb.mean(-1, keepdim=True)
    return (rgb + 0.03 * torch.from_numpy(RNG.standard_normal(rgb.shape)).float()).clamp(0, 1)


def levels(picture: Tensor) -> Tensor:
    """As a file of 8 bits keeps it."""
    return (picture * 255).round() / 255


def stored(colour: Tensor, alpha: Tensor, multiplied: bool = False) -> tuple[Tensor, Tensor]:
    alpha = levels(alpha)
    return levels(colour * alpha[..., None] if multiplied else colour), alpha


def through_premultiplied(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """As a browser's canvas exports: multiplied, rounded, divided, rounded."""
    colour, alpha = stored(colour, alpha, multiplied=True)
    return levels((colour / alpha[..., None].clamp_min(1e-6)).clamp(0, 1)), alpha


HARD, SOFT = ellipse(), soft_ellipse()
BLACK_AND_WHITE = grey(HARD)
COLOURS = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "red": (0.8, 0.1, 0.1),
    "dark grey": (0.2, 0.2, 0.2),
    "orange": (1.0, 0.55, 0.1),
}
NOISE = torch.from_numpy(RNG.standard_normal((HEIGHT, WIDTH, 3))).float()

DRAWINGS: dict[str, tuple[Tensor, Tensor | None]] = {
    "black and white": (BLACK_AND_WHITE, None),
    "opacity 254": (BLACK_AND_WHITE, torch.full_like(HARD, 254 / 255)),
    "opacity 252 to 255": (BLACK_AND_WHITE, 1 - (grid()[0] % 4).floor() / 255),
    "rounded corners": (BLACK_AND_WHITE, corners()),
    "white below the corners": (grey(torch.maximum(HARD, 1 - corners())), corners()),
    "grey ramp, rounded corners": (grey(HARD * 0.8 + 0.2 * grid()[0] / WIDTH), corners()),
    "half opaque": (BLACK_AND_WHITE, torch.full_like(HARD, 0.5)),
    "half opaque, multiplied": stored(BLACK_AND_WHITE, torch.full_like(HARD, 0.5), True),
    "half of it half opaque": (BLACK_AND_WHITE, 0.5 + 0.5 * (grid()[0] > 80)),
    "on a transparent rim": (BLACK_AND_WHITE, ((grid()[1] - 58).abs() < 40).float()),
    "soft, half opaque": stored(grey(SOFT), torch.full_like(HARD, 0.6)),
    "noise of a JPEG, half opaque": (
        (BLACK_AND_WHITE + 0.03 * NOISE).clamp(0, 1),
        torch.full_like(HARD, 0.5),
    ),
    "photo with the hole erased": (photo(), 1 - HARD),
    "photo with the hole erased, multiplied": stored(photo(), 1 - HARD, True),
    "grey photo with the hole erased": (photo(0), 1 - HARD),
    "photo with the hole softly erased": stored(photo(), 1 - SOFT),
    "white below the colours": (flat(1, 1, 1), HARD),
    "only opacity": (BLACK_AND_WHITE, HARD),
}
for name, rgb in COLOURS.items():
    for opacity in (1.0, 0.5, 0.1):
        for edge, brush in (("hard", HARD), ("soft", SOFT)):
            DRAWINGS[f"{edge} {name} brush of opacity {opacity}"] = stored(
                flat(*rgb), opacity * brush
            )
            DRAWINGS[f"{edge} {name} brush of opacity {opacity}, multiplied"] = stored(
                flat(*rgb), opacity * brush, True
            )
            DRAWINGS[f"{edge} {name} brush of opacity {opacity}, canvas"] = through_premultiplied(
                flat(*rgb), opacity * brush
            )


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_mask_is_what_one_sees(name: str) -> None:
    colour, alpha = DRAWINGS[name]
    expected = SOFT if "soft" in name else HARD
    tolerance = 0.05 if "0.1" in name or "noise" in name or "ramp" in name else 0.03
    mask = picture_mask(colour, alpha)
    assert mask.shape == (HEIGHT, WIDTH) and mask.min() >= 0 and mask.max() <= 1 + 1e-6
    if "ramp" in name:
        assert (mask - colour[..., 0] * corners()).abs().max() < 1e-5
    elif "noise" in name:
        assert ((mask > 0.5) == (expected > 0.5)).all()
    else:
        assert (mask - expected).abs().max() <= tolerance
    if "0.1" not in name:  # 26 levels are too few for this
        area, seen = (mask > 0.5).sum(), (expected > 0.5).sum()
        assert abs(area - seen) <= 0.03 * seen


@pytest.mark.parametrize("rgba", [(1, 1, 1, 1), (0, 0, 0, 1), (1, 0, 0, 1), (0, 0, 0, 0)])
@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_hangs_on_a_single_pixel(name: str, rgba: tuple[float, ...]) -> None:
    colour, alpha = DRAWINGS[name]
    expected = picture_mask(colour, alpha)
    colour = colour.clone()
    alpha = torch.ones_like(HARD) if alpha is None else alpha.clone()
    stray = RNG.choice(HEIGHT * WIDTH, 5, replace=False)
    for place in stray:
        row, column = divmod(int(place), WIDTH)
        colour[row, column], alpha[row, column] = torch.tensor(rgba[:3]).float(), float(rgba[3])
    difference = (picture_mask(colour, alpha) - expected).abs()
    difference.view(-1)[stray] = 0
    assert difference.max() <= 0.03


def test_brightness_without_transparency_is_that_of_pillow() -> None:
    colour = photo()
    expected = colour @ torch.tensor([0.299, 0.587, 0.114])
    assert torch.equal(picture_mask(colour), expected)
    assert torch.equal(picture_mask(colour, torch.ones_like(HARD)), expected)


def test_a_small_hole_in_a_large_photo() -> None:
    alpha = torch.ones(HEIGHT, WIDTH)
    alpha[50:62, 70:84] = 0  # 0.9 %
    assert (alpha >= 250 / 255).float().mean() > 0.99
    assert torch.equal(picture_mask(photo(), alpha), 1 - alpha)


def test_a_small_white_hole_in_black_under_any_opacity() -> None:
    hole = torch.zeros(HEIGHT, WIDTH)
    hole[50:60, 70:80] = 1  # 0.5 %
    for opacity in (0.97, 0.5, 0.1):
        alpha = torch.full_like(hole, opacity)
        for multiplied in (False, True):
            mask = picture_mask(*stored(grey(hole), alpha, multiplied))
            assert (mask - hole).abs().max() < 0.03


@pytest.mark.parametrize("alpha", [0.0, 1 / 255, 2 / 255])
def test_a_transparent_layer_is_an_empty_mask(alpha: float) -> None:
    for colour in (flat(1, 1, 1), flat(0, 0, 0), photo()):
        assert not picture_mask(colour, torch.full_like(HARD, alpha)).any()


def test_thin_strokes_and_tiny_pictures() -> None:
    line = torch.zeros(HEIGHT, WIDTH)
    line[60, 20:140] = 0.7
    assert torch.equal(picture_mask(flat(0, 0, 1), line), (line > 0).float())
    for height, width in ((1, 1), (1, 5), (2, 2)):
        white = torch.ones(height, width, 3)
        for opacity in (0.5, 1.0):
            mask = picture_mask(white, torch.full((height, width), opacity))
            assert (mask - 1).abs().max() < 0.01


def test_large_layers_are_told_from_a_sample() -> None:
    colour, alpha = photo(), 1 - HARD
    colour, alpha = colour.repeat(8, 8, 1), alpha.repeat(8, 8)
    assert torch.equal(picture_mask(colour, alpha), 1 - alpha)


def test_mostly_hole() -> None:
    assert not is_mostly_hole(HARD) and is_mostly_hole(1 - HARD)
    mask = torch.zeros(10, 10)
    mask[:9] = 1
    assert not is_mostly_hole(mask)
