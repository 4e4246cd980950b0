"""The options of an edit as commands take them: `pbe edit`, and each line of `pbe batch`."""

from __future__ import annotations

import argparse
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ..editing.crop_plan import MODES
from ..editing.edit import POSTERIORS, PRESETS, check_num_images, edit
from ..editing.exemplar_image import Fit
from ..image_io import image_format, read_exemplar, read_image, read_mask, write_image
from ..sampling.samplers import SAMPLERS

FILES = {
    "image": "photo",
    "mask": "where to paint: white = repaint",
    "exemplar": "picture of what to paint there",
    "exemplar_mask": "which part of the exemplar counts: white",
    "context_mask": "what the model shall see besides: white",
    "blend_mask": "share of the result in each pixel: white = all; in place of --blend",
}
"""Options that name a picture to read, and what it is."""

_OPTIONAL_FILES = ("exemplar_mask", "context_mask", "blend_mask")

PAINTING: dict[str, dict[str, Any]] = {
    "steps": {"type": int, "metavar": "N", "help": "sampling steps"},
    "similarity": {
        "type": float, "metavar": "S", "help": "how closely to follow the exemplar; 0 ignores it",
    },
    "seed": {"type": int, "metavar": "K", "help": "of the noise"},
    "sampler": {"choices": SAMPLERS, "help": "how the noise is taken away"},
    "num_images": {
        "type": int, "metavar": "N",
        "help": "variations, with the seeds K, K+1, ...; above 1 they are named OUT-1, OUT-2, ...",
    },
    "region": {
        "choices": MODES,
        "help": "what the model sees: the hole and its surroundings, the photo, the photo "
        "squashed to a square, or each of several holes by itself",
    },
    "context": {
        "type": float, "metavar": "C", "help": "side of the crop over the hole's longer side",
    },
    "blend": {
        "type": float, "metavar": "PIXELS",
        "help": "over how many the result fades out; None: by the size of the crop",
    },
    "resolution": {
        "type": int, "metavar": "PIXELS",
        "help": "side at which the model works; None: what it was trained at",
    },
    "colour_match": {
        "action": argparse.BooleanOptionalAction,
        "help": "take a colour cast off what was painted, by what it shows around the hole",
    },
    "strength": {
        "type": float, "metavar": "S", "help": "below 1 the hole keeps some of its content",
    },
    "fit": {"choices": get_args(Fit), "help": "how the exemplar is made square"},
    "posterior": {
        "choices": POSTERIORS, "help": "latent of the photo around the hole: likeliest, or drawn",
    },
    "paste_back": {
        "action": argparse.BooleanOptionalAction,
        "help": "stitch the result into the photo, or write all that the model painted",
    },
    "truncate": {
        "action": argparse.BooleanOptionalAction, "help": "cut to 8 bits instead of rounding",
    },
}  # fmt: skip
"""Options beside the files: keyword argument of `edit`, and what `add_argument` takes."""


def add_files(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `FILES`."""
    for name, what in FILES.items():
        required = name not in _OPTIONAL_FILES
        command.add_argument(_flag(name), required=required, metavar="FILE", help=what)


def add_painting(command: argparse.ArgumentParser) -> None:
    """Give a parser `--preset` and the options of `PAINTING`, shown with the defaults of `edit`.

    What is not on the command line parses to `None`: so `painting` can tell it from an option
    that overrides a preset with the usual value.
    """
    command.add_argument(
        "--preset", choices=PRESETS,
        help="defaults for the options below; official: as the paper's own script paints",
    )  # fmt: skip
    usual = signature(edit).parameters
    for name, how in PAINTING.items():
        action = command.add_argument(_flag(name), **how)
        action.help = f"{how['help']} [{usual[name].default}]"


def painting(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `edit`: the preset's, under those that were given."""
    given = {name: getattr(args, name) for name in PAINTING}
    given = {name: value for name, value in given.items() if value is not None}
    return PRESETS.get(args.preset, {}) | given


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_inputs(args: argparse.Namespace) -> dict[str, Tensor | None]:
    """The pictures that the options of `FILES` name, as keyword arguments of `edit`.

    Raises:
        ValueError: One of them is missing or damaged, or a mask is empty.
    """
    image = read_image(args.image)
    hole_mask = read_mask(args.mask, size=(image.shape[0], image.shape[1]))
    exemplar, exemplar_mask = read_exemplar(args.exemplar)
    if args.exemplar_mask is not None:
        brightness, exemplar_mask = read_exemplar(args.exemplar_mask)
        if exemplar_mask is None:  # not a cut-out but a drawing
            exemplar_mask = brightness.mean(-1)
    others = {"context_mask": args.context_mask, "blend_mask": args.blend_mask}
    return {
        "image": image,
        "hole_mask": hole_mask,
        "exemplar": exemplar,
        "exemplar_mask": exemplar_mask,
        **{name: path and read_mask(path) for name, path in others.items()},
    }


def numbered(out: Path, count: int) -> list[Path]:
    """Where so many results go: `out` itself, or `out` with -1, -2, ... before its suffix.

    Raises:
        ValueError: A suffix of no known format, or a number that `edit` does not paint.
    """
    image_format(out)
    check_num_images(count)
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, count + 1)]


def write_results(out: Path, images: Tensor, note: str | None = None) -> list[Path]:
    """Write the results of an edit, `(N, H, W, 3)` in [0, 1], to files of these names.

    Args:
        out: See `numbered`.
        images: To write.
        note: See `image_io.write_image`.
    """
    paths = numbered(out, len(images))
    for path, painted in zip(paths, images, strict=True):
        write_image(path, painted, note=note)
    return paths
