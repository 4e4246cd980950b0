"""Pictures from and to files, as tensors; every failure is one sentence that names the file.

Differences between files end here, so that nothing else has to know of them: EXIF rotation,
grey, palette, CMYK and 16-bit pictures, transparency, and the ways in which people store a mask.
Colour profiles are ignored, and an animation is its first frame. Files are untrusted: what may be
decoded is decided in `picture_headers`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .atomic import replacing
from .editing.mask import resize_mask
from .picture_headers import DECODER_ERRORS, check_jpeg_scans, open_picture
from .untrusted import first_line, open_regular, shown

SUFFIXES: dict[str, str] = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Suffixes that `write_image` knows, and Pillow's names for the formats."""

_SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
_NOTE = "pbe"  # keyword of the text chunk in a PNG
_WHITE = 0.9  # brightness from which a stroke counts as white


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Reads a picture, upright; what is transparent turns white.

    Args:
        path: Any format that Pillow reads.

    Returns:
        (H, W, 3) float32 in [0, 1]. Grey pictures have three equal channels; 16-bit grey is
        scaled, not clipped; floating-point pictures are taken to be in [0, 1].

    Raises:
        ValueError: The file is missing, a folder, unreadable, not a picture, damaged or too large.
    """
    colour, alpha = _read(path)
    return colour if alpha is None else _over_white(colour, alpha)


def read_exemplar(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor | None]:
    """Reads an exemplar, and the cut-out that its transparency makes.

    Args:
        path: Any format that Pillow reads.

    Returns:
        The picture as `read_image` gives it, and (H, W) float32 in [0, 1], 1 = object; None where
        the picture is opaque.

    Raises:
        ValueError: As `read_image`, or the picture is transparent everywhere.
    """
    colour, alpha = _read(path)
    if alpha is None:
        return colour, None
    if not (alpha > 0.5).any():
        raise ValueError(f"{path} is transparent everywhere; give an exemplar that shows something")
    return _over_white(colour, alpha), alpha


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Tensor:
    """Reads where to repaint.

    In an opaque picture it is the brightness: white = repaint. In a picture with transparency, what
    is transparent is repainted (ComfyUI's mask editor saves photos this way), unless everything
    visible is white: then that is the hole (a white brush on an empty layer).

    Args:
        path: Any format that Pillow reads.
        size: (H, W) of the photo. A mask of another size is resized to it, bilinearly and
            antialiased; one of another aspect is stretched.

    Returns:
        hole_mask, (H, W) float32 in [0, 1], 1 = repaint.

    Raises:
        ValueError: As `read_image`, or nothing in the mask is above 0.5.
    """
    colour, alpha = _read(path)
    brightness = colour @ colour.new_tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's L
    if alpha is None:
        hole_mask = brightness
    elif (alpha > 0.5).any() and (brightness[alpha > 0.5] > _WHITE).all():
        hole_mask = alpha
    else:
        hole_mask = 1 - alpha
    if size is not None:
        hole_mask = resize_mask(hole_mask, size)
    if not (hole_mask > 0.5).any():
        raise ValueError(
            f"the mask {path} is empty: nothing in it is brighter than mid-grey; "
            "paint white where the exemplar should go"
        )
    return hole_mask.clamp(0, 1)


def image_format(path: str | os.PathLike[str]) -> str:
    """Pillow's name for the format of a path; called before long work whose result goes there.

    Raises:
        ValueError: The suffix is unknown; the error lists the known ones.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"cannot write {path}: unknown suffix {suffix!r}; use one of {', '.join(SUFFIXES)}"
        )
    return SUFFIXES[suffix]


def write_image(path: str | os.PathLike[str], image: Tensor, *, note: str | None = None) -> None:
    """Writes a picture; the file appears whole or not at all.

    Args:
        path: Its suffix is the format (see `SUFFIXES`). All but JPEG are lossless.
        image: (H, W, 3) or (H, W), in [0, 1]; rounded to 8 bits.
        note: Text to store with a PNG; `read_note` gives it back.

    Raises:
        ValueError: Unknown suffix, a picture with NaNs, or `path` cannot be written.
    """
    format = image_format(path)
    if not image.isfinite().all():
        raise ValueError(
            f"cannot write {path}: it holds NaN or infinite values; check what made it"
        )
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    options: dict[str, Any] = dict(_SAVE_OPTIONS.get(format, {}))
    if note is not None:
        assert format == "PNG", format
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(_NOTE, note)
    with replacing(Path(path)) as part, part.open("wb") as file:
        try:
            Image.fromarray(pixels).save(file, format, **options)
        except ValueError as error:
            raise ValueError(f"cannot write {path}: {_reason(error)}; use PNG") from error


def read_note(path: str | os.PathLike[str]) -> str | None:
    """The text that `write_image` stored with a PNG, or None where there is none."""
    try:
        with _quiet(), open_regular(path) as file, open_picture(file) as picture:
            return picture.info.get(_NOTE)
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None


def _read(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor | None]:
    """Colour (H, W, 3) and opacity (H, W), in [0, 1]; no opacity where all is opaque."""
    picture = _open(path)
    if picture.mode == "F" or picture.mode.startswith("I"):  # one channel of more than 8 bits
        scale = 1 if picture.mode == "F" else 65535
        grey = torch.from_numpy(np.asarray(picture, np.float32) / scale)
        return grey.nan_to_num(0).clamp(0, 1)[..., None].expand(-1, -1, 3).contiguous(), None
    transparent = picture.has_transparency_data
    mode = "RGBA" if transparent else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    pixels = torch.from_numpy(np.array(picture))
    picture.close()  # large pictures would be in memory twice
    if not transparent or (pixels[..., 3] == 255).all():
        return _to_float(pixels[..., :3]), None
    return _to_float(pixels[..., :3]), _to_float(pixels[..., 3])


def _open(path: str | os.PathLike[str]) -> Image.Image:
    """A decoded picture, upright."""
    name = shown(path)
    if os.path.isdir(path):
        raise ValueError(f"cannot read {name}: it is a folder; give a picture file")
    try:
        with _quiet(), open_regular(path) as file, open_picture(file) as picture:
            if picture.format in ("JPEG", "MPO"):
                file.seek(0)
                check_jpeg_scans(file.read(), picture.width * picture.height)
            with _quiet_libtiff() if picture.format == "TIFF" else nullcontext():
                picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except FileNotFoundError as error:
        raise ValueError(f"cannot read {name}: there is no such file; check the path") from error
    except PermissionError as error:
        raise ValueError(f"cannot read {name}: permission denied; make it readable") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"cannot read {name}: it has {first_line(error)}, which is the most for such a file; "
            "make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        kind = "an empty file" if not os.path.getsize(path) else "not a picture of a known format"
        raise ValueError(
            f"cannot read {name}: it is {kind}; give a PNG, JPEG or WebP file, for example"
        ) from error
    except DECODER_ERRORS as error:
        raise ValueError(
            f"cannot read {name}: the picture is damaged ({_reason(error)}); "
            "save or download it again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what decoders print about damaged files; the error says it, in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("PIL")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Suppress what libtiff writes to the process's standard error directly."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _to_float(pixels: Tensor) -> Tensor:
    return pixels.float().div_(255)


def _over_white(colour: Tensor, alpha: Tensor) -> Tensor:
    white = torch.ones(()).expand_as(colour)
    return torch.lerp(white, colour, alpha[..., None], out=colour)


def _reason(error: Exception) -> str:
    """An error's message without the path, which the sentence around it names already."""
    return first_line(error).rstrip(".")
