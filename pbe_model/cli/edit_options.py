"""The options of an edit as commands take them: `pbe edit`, and each line of `pbe batch`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ..atomic import check_writable, replacing_all
from ..config import EditDefaults
from ..editing.batch import EditResult
from ..editing.crop_plan import MODES
from ..editing.crop_settings import DEFAULT_CROP, CropSettings
from ..editing.edit import POSTERIORS, PRESETS, check_options, edit
from ..editing.exemplar_image import Fit
from ..editing.mask_reading import is_mostly_hole
from ..editing.opacity import over_white, with_opacity
from ..image_io import image_format, read_exemplar, read_mask, read_with_alpha, write_image
from ..model import PaintByExample
from ..sampling.samplers import SAMPLERS, Callback
from ..untrusted import shown

FILES = {
    "image": "photo",
    "mask": "where to paint: white = repaint",
    "exemplar": "picture of what to paint there",
    "exemplar_mask": "which part of the exemplar counts: white",
    "context_mask": "what else the model should see: white",
    "blend_mask": "share of the result in each pixel: white = all; in place of --blend",
}
"""Options that name a picture file, and what it shows."""

_OPTIONAL_FILES = ("exemplar_mask", "context_mask", "blend_mask")

_OF_EDIT = (
    *("steps", "similarity", "seed", "sampler", "num_images", "region", "strength", "fit"),
    *("colour_match", "posterior", "paste_back", "truncate", "guidance_interval"),
)
DEFAULTS: dict[str, Any] = {
    **{name: signature(edit).parameters[name].default for name in _OF_EDIT},
    "context": DEFAULT_CROP.context,
    "blend": DEFAULT_CROP.blend,
    "resolution": DEFAULT_CROP.resolution,
}
"""The other options, and their defaults in Python."""

SWITCHES = {name for name, value in DEFAULTS.items() if isinstance(value, bool)}
"""Options that are on or off."""

WHOLE = {"steps", "seed", "num_images", "resolution"}
NUMBERS = {"similarity", "strength", "context", "blend"}

_OWN = "the model's own; of the published weights"


def add_files(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `FILES`."""
    for name, what in FILES.items():
        required = name not in _OPTIONAL_FILES
        command.add_argument(_flag(name), required=required, metavar="FILE", help=what)


def add_painting(command: argparse.ArgumentParser) -> None:
    """Give a parser `--preset` and the options of `DEFAULTS`.

    An option that is not given parses to `None`, so that `given_options` can tell it from one that
    overrides a preset with the default.
    """
    add, usual, own = command.add_argument, DEFAULTS, EditDefaults()
    add(
        "--preset", choices=PRESETS,
        help="defaults for the options below; official: as the paper's own script paints",
    )  # fmt: skip
    add("--steps", type=int, metavar="N", help=f"sampling steps [{_OWN} {own.steps}]")
    add(
        "--similarity", type=float, metavar="S",
        help=f"how closely to follow the exemplar; 0 ignores it [{_OWN} {own.similarity:g}]",
    )  # fmt: skip
    add(
        "--seed", type=int, metavar="K",
        help=f"seed of the noise, 0 to 2**64 - 1 [{usual['seed']}]",
    )  # fmt: skip
    add(
        "--sampler", choices=SAMPLERS,
        help=f"how the noise is removed [{_OWN} {own.sampler}]",
    )  # fmt: skip
    add(
        "--num-images", type=int, metavar="N",
        help="variations, with the seeds K, K+1, ...; above 1 they are named OUT-1, OUT-2, ... "
        f"[{usual['num_images']}]",
    )  # fmt: skip
    add(
        "--region", choices=MODES,
        help="what the model sees: the hole and its surroundings, the photo, the photo squashed "
        f"to a square, or each of several holes by itself [{usual['region']}]",
    )  # fmt: skip
    add(
        "--context", type=float, metavar="C",
        help=f"side of the crop over the hole's longer side [{usual['context']}]",
    )  # fmt: skip
    add(
        "--blend", type=float, metavar="PIXELS",
        help="width over which the result fades out [by the size of the crop]",
    )  # fmt: skip
    add(
        "--resolution", type=int, metavar="PIXELS",
        help="side of the crop that the model paints [as it was trained]",
    )  # fmt: skip
    add(
        "--colour-match", action=argparse.BooleanOptionalAction,
        help="remove a colour cast from what was painted, by comparing what is around the hole "
        f"[{usual['colour_match']}]",
    )  # fmt: skip
    add(
        "--strength", type=float, metavar="S",
        help=f"below 1 the hole keeps some of its content [{usual['strength']}]",
    )  # fmt: skip
    add("--fit", choices=get_args(Fit), help=f"how the exemplar is made square [{usual['fit']}]")
    add(
        "--posterior", choices=POSTERIORS,
        help=f"latent of the photo around the hole: likeliest, or drawn [{usual['posterior']}]",
    )  # fmt: skip
    add(
        "--paste-back", action=argparse.BooleanOptionalAction,
        help="stitch the result into the photo, or write the model's whole picture "
        f"[{usual['paste_back']}]",
    )  # fmt: skip
    add(
        "--truncate", action=argparse.BooleanOptionalAction,
        help=f"round down to 8 bits instead of to the nearest [{usual['truncate']}]",
    )  # fmt: skip
    start, end = usual["guidance_interval"]
    add(
        "--guidance-interval", type=_interval, metavar="START,END",
        help="part of the schedule in which similarity counts, from 0, pure noise, to 1; the other "
        f"steps take half the time [{start}, {end}]",
    )  # fmt: skip


def _interval(text: str) -> tuple[float, float]:
    """Two numbers with a comma between."""
    try:
        start, end = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not an interval; give two numbers from 0 to 1, such as 0.2,0.7"
        ) from None
    return start, end


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `DEFAULTS` that were given, and those of the preset, by name."""
    given = {name: getattr(args, name) for name in DEFAULTS}
    given = {name: value for name, value in given.items() if value is not None}
    return PRESETS.get(args.preset, {}) | given


def check_numbers(options: dict[str, Any]) -> None:
    """Check the numbers of `given_options` before a model is there, whose own limits come on top.

    Raises:
        ValueError: One of them is out of range.
    """
    chosen = argparse.Namespace(**(DEFAULTS | options))
    check_options(
        steps=chosen.steps,
        similarity=chosen.similarity,
        seed=chosen.seed,
        num_images=chosen.num_images,
        strength=chosen.strength,
        guidance_interval=chosen.guidance_interval,
    )
    CropSettings(context=chosen.context, blend=chosen.blend, resolution=chosen.resolution)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What an edit reads: pictures `(H, W, 3)` and masks `(H, W)` in [0, 1].

    Attributes:
        colour: The photo as it is stored; `image` is what it looks like on white.
        alpha: The photo's opacity, None where all is opaque.
    """

    colour: Tensor
    alpha: Tensor | None
    hole_mask: Tensor
    exemplar: Tensor
    exemplar_mask: Tensor | None
    context_mask: Tensor | None
    blend_mask: Tensor | None

    @property
    def image(self) -> Tensor:
        """The photo on white."""
        return over_white(self.colour, self.alpha)

    @property
    def remark(self) -> str | None:
        """What the user should know about these pictures before they look at the result."""
        if not is_mostly_hole(self.hole_mask):
            return None
        share = float((self.hole_mask > 0.5).float().mean())
        return (
            f"the mask makes {share:.1%} of the photo the hole; if the rest is meant, invert it "
            "(pbe edit --show-mask FILE writes what was understood)"
        )


def read_pictures(args: argparse.Namespace) -> Pictures:
    """Read the files that the options in `FILES` name.

    Raises:
        ValueError: One of them is missing or damaged, or a mask is empty.
    """
    colour, alpha = read_with_alpha(args.image)
    hole_mask = read_mask(args.mask, size=(colour.shape[0], colour.shape[1]))
    exemplar, exemplar_mask = read_exemplar(args.exemplar)
    if args.exemplar_mask is not None:
        exemplar_mask = read_mask(args.exemplar_mask)
    return Pictures(
        colour=colour,
        alpha=alpha,
        hole_mask=hole_mask,
        exemplar=exemplar,
        exemplar_mask=exemplar_mask,
        context_mask=None if args.context_mask is None else read_mask(args.context_mask),
        blend_mask=None if args.blend_mask is None else read_mask(args.blend_mask),
    )


def paint(
    model: PaintByExample,
    pictures: Pictures,
    options: dict[str, Any],
    callback: Callback | None = None,
) -> EditResult:
    """Edit a photo with the options of `given_options`; the others have their defaults.

    Returns:
        The result; its images have a fourth channel, the photo's opacity, where the photo has one.
    """
    chosen = argparse.Namespace(**(DEFAULTS | options))
    result = edit(
        model,
        pictures.image,
        pictures.hole_mask,
        pictures.exemplar,
        steps=chosen.steps,
        similarity=chosen.similarity,
        seed=chosen.seed,
        sampler=chosen.sampler,
        num_images=chosen.num_images,
        region=chosen.region,
        strength=chosen.strength,
        fit=chosen.fit,
        exemplar_mask=pictures.exemplar_mask,
        crop=CropSettings(
            context=chosen.context,
            blend=chosen.blend,
            resolution=chosen.resolution,
            context_mask=pictures.context_mask,
            blend_mask=pictures.blend_mask,
        ),
        colour_match=chosen.colour_match,
        posterior=chosen.posterior,
        paste_back=chosen.paste_back,
        truncate=chosen.truncate,
        guidance_interval=chosen.guidance_interval,
        callback=callback,
    )
    if pictures.alpha is None or not chosen.paste_back:
        return result
    images = with_opacity(
        result.images, pictures.colour, pictures.alpha, result.blend_mask, pictures.hole_mask
    )
    return replace(result, images=images)


def numbered(out: Path, count: int) -> list[Path]:
    """Paths of `count` results: `out` itself, or `out` with -1, -2, ... before its suffix."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, count + 1)]


def check_out(args: argparse.Namespace, count: int) -> None:
    """Check, before the work, that what an edit makes can be written and costs nothing.

    Args:
        args: With the options of `add_files`, and with --out and --show-mask.
        count: Number of images.

    Raises:
        ValueError: Unknown suffix, a path that cannot be written, or a picture that is read.
    """
    made = [("--out", path) for path in numbered(args.out, count)]
    if args.show_mask is not None:
        made.append(("--show-mask", args.show_mask))
    read = [(_flag(name), getattr(args, name)) for name in FILES]
    for i, (flag, path) in enumerate(made):
        image_format(path)
        check_writable(path)
        others = read if flag == "--out" else [*made[:i], *read]
        for other, given in others:
            if given is not None and _is_same(path, Path(given)):
                raise ValueError(
                    f"{flag} and {other} name the same file, {shown(path)}; give another name to "
                    f"{flag}"
                )


def _is_same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)  # in a loop of links as well


def write_results(out: Path, images: Tensor, note: str | None = None) -> list[Path]:
    """Write the results of an edit, `(N, H, W, 3 or 4)` in [0, 1], to files of these names.

    Args:
        out: As for `numbered`.
        images: As many files are written, all of them or none.
        note: Text for PNG files; see `image_io.write_image`.

    Raises:
        ValueError: They cannot be written.
    """
    paths = numbered(out, len(images))
    if len(paths) == 1:
        write_image(out, images[0], note=note)
        return paths
    with replacing_all(paths) as parts:
        for part, painted in zip(parts, images, strict=True):
            write_image(part, painted, note=note)
    return paths
