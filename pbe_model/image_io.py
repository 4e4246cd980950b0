"""Pictures from and to files, as tensors; every failure is one sentence that names the file.

Differences between files end here, so that nothing else has to know of them: what `pictures`
decodes is put over white or read as a mask. The suffix of a file to be read does not matter.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .atomic import replacing
from .editing.mask import resize_mask
from .editing.mask_reading import picture_mask
from .editing.opacity import over_white
from .picture_headers import (
    DECODER_ERRORS,
    UnsupportedPicture,
    describe_stranger,
    open_picture,
)
from .pictures import Pixels, decode_picture, quiet_decoders
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

_SAVE_OPTIONS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact: also below what is transparent
}
_OPAQUE_FORMATS = ("JPEG", "BMP")
_NOTE = "pbe"  # keyword of the text chunk in a PNG


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Reads a picture, upright and in sRGB; what is transparent turns white.

    Args:
        path: Any format that Pillow reads.

    Returns:
        (H, W, 3) float32 in [0, 1]. Grey pictures have three equal channels; how more than 8 bits
        are scaled, `pictures` says.

    Raises:
        ValueError: The file is missing, a folder, unreadable, not a picture, damaged or too large,
            or its numbers have no known white.
    """
    return over_white(*read_with_alpha(path))


def read_with_alpha(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor | None]:
    """Reads a picture, and its opacity apart.

    Args:
        path: Any format that Pillow reads.

    Returns:
        Colour as it is stored, (H, W, 3), and opacity, (H, W), float32 in [0, 1]; no opacity where
        all is opaque.

    Raises:
        ValueError: As `read_image`.
    """
    return _tensors(_read(path))


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
    colour, alpha = read_with_alpha(path)
    if alpha is None:
        return colour, None
    if not (alpha > 0.5).any():
        raise ValueError(
            f"{shown(path)} is transparent everywhere; give an exemplar that shows something"
        )
    return over_white(colour, alpha), alpha


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Tensor:
    """Reads a mask: where to repaint, or what belongs to the exemplar.

    Black and white, strokes on transparency, or a photo with the hole erased:
    `editing.mask_reading.picture_mask` tells them apart. Colour profiles do not count.

    Args:
        path: Any format that Pillow reads.
        size: (H, W) of the photo. A mask of another size is resized to it, bilinearly and
            antialiased; one of another aspect is stretched.

    Returns:
        (H, W) float32 in [0, 1], 1 = repaint.

    Raises:
        ValueError: As `read_image`, or nothing in the mask is above 0.5.
    """
    colour, alpha = _tensors(_read(path, managed=False))
    mask = picture_mask(colour, alpha)
    if size is not None:
        mask = resize_mask(mask, size)
    if not (mask > 0.5).any():
        unseen = alpha is not None and not (alpha > 0.01).any()
        reason = (
            "it is transparent everywhere" if unseen else "nothing in it is brighter than mid-grey"
        )
        raise ValueError(
            f"the mask {shown(path)} is empty: {reason}; paint white what it should mark"
        )
    return mask.clamp(0, 1)


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
        image: (H, W, 3), with opacity (H, W, 4), or (H, W), in [0, 1]; rounded to 8 bits. JPEG and
            BMP have no opacity: there, what is transparent turns white.
        note: Text to store with a PNG; `read_note` gives it back.

    Raises:
        ValueError: Unknown suffix, a picture with NaNs, or `path` cannot be written.
    """
    format = image_format(path)
    if not image.isfinite().all():
        raise ValueError(
            f"cannot write {path}: it holds NaN or infinite values; check what made it"
        )
    if image.shape[2:] == (4,) and format in _OPAQUE_FORMATS:
        image = over_white(image[..., :3], image[..., 3])
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
        with quiet_decoders(), open_regular(path) as file, open_picture(file) as picture:
            return picture.info.get(_NOTE)
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None


def _tensors(pixels: Pixels) -> tuple[Tensor, Tensor | None]:
    colour, alpha = torch.from_numpy(pixels.colour), pixels.alpha
    if colour.dtype == torch.uint8:
        colour = colour.float().div_(255)
    return colour, None if alpha is None else torch.from_numpy(alpha).float().div_(255)


def _read(path: str | os.PathLike[str], *, managed: bool = True) -> Pixels:
    """`decode_picture` of a file, its errors as sentences that name the file."""
    name = shown(path)
    if os.path.isdir(path):
        raise ValueError(f"cannot read {name}: it is a folder; give a picture file")
    try:
        with open_regular(path) as file:
            try:
                return decode_picture(file, managed=managed)
            except UnidentifiedImageError as error:
                raise UnsupportedPicture(
                    f"it is {describe_stranger(file)}; give a PNG, JPEG or WebP file, for example"
                ) from error
    except FileNotFoundError as error:
        raise ValueError(f"cannot read {name}: there is no such file; check the path") from error
    except PermissionError as error:
        raise ValueError(f"cannot read {name}: permission denied; make it readable") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"cannot read {name}: it has {first_line(error)}, which is the most for such a file; "
            "make it smaller"
        ) from error
    except UnsupportedPicture as error:
        raise ValueError(f"cannot read {name}: {error}") from error
    except DECODER_ERRORS as error:
        raise ValueError(
            f"cannot read {name}: the picture is damaged ({_reason(error)}); "
            "save or download it again"
        ) from error


def _reason(error: Exception) -> str:
    """An error's message without the path, which the sentence around it names already."""
    return first_line(error).rstrip(".")
