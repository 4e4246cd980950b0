"""The `pbe` command; `python -m pbe_model` is the same.

Exit codes: 0 done, 1 a result that is not as promised, 2 bad input (one sentence on stderr, and
nothing written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from torch import Tensor
from tqdm import tqdm

from . import checkpoint, demo, download
from .attention import BACKENDS
from .commandline import DTYPES, Parser, add_command, check_parent, run, usable_device
from .edit import POSTERIORS, PRESETS, edit
from .exemplar import Fit
from .image_io import image_format, read_exemplar, read_image, read_mask, write_image
from .model import PaintByExample
from .region import MODES
from .samplers import SAMPLERS, Callback

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
        "help": "what the model sees: the hole and its surroundings, the photo, or the photo "
        "squashed to a square",
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
"""Options of a command that paints: keyword argument of `edit`, and what `add_argument` takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; `None` takes the process's own.

    Returns:
        The exit code.
    """
    return run(_parser(), argv)


def _parser() -> Parser:
    parser = Parser(prog="pbe", description="Paint an example image into a photo.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = add_command(
        commands, "demo", _demo, "paint the bundled scenes with the bundled model"
    )
    command.add_argument(
        "--out", type=Path, default=Path("demo_out"), metavar="DIR", help="folder [%(default)s]"
    )

    command = add_command(commands, "edit", _edit, "paint an exemplar into the hole of a photo")
    add = command.add_argument
    add("--image", required=True, metavar="FILE", help="photo")
    add("--mask", required=True, metavar="FILE", help="where to paint: white = repaint")
    add("--exemplar", required=True, metavar="FILE", help="picture of what to paint there")
    add(
        "--out", required=True, type=Path, metavar="FILE", help="result; the suffix says the format"
    )
    add("--checkpoint", metavar="FILE", help="model; the bundled demo model if left out")
    add("--exemplar-mask", metavar="FILE", help="which part of the exemplar counts: white")
    _add_painting(command)
    add("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one, else cpu]")
    add("--dtype", choices=DTYPES, default="fp32", help="type of the weights [%(default)s]")
    add("--attention", choices=["auto", *BACKENDS], default="auto", help="[%(default)s]")

    command = add_command(commands, "inspect", _inspect, "say what a checkpoint holds")
    command.add_argument("file", metavar="FILE", help=".safetensors, .ckpt or folder")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add_command(commands, "convert", _convert, "write a checkpoint in another layout")
    add = command.add_argument
    add("source", metavar="IN", help=".safetensors, .ckpt or a folder of diffusers")
    add("out", type=Path, metavar="OUT", help="file, or for diffusers folder, to write")
    add("--to", choices=get_args(checkpoint.Layout), required=True, help="layout")
    add("--dtype", choices=DTYPES, help="type of the weights [as they are]")
    add("--ema", action="store_true", help="take the denoiser's moving average, if IN has one")

    command = add_command(
        commands, "download", _download, "fetch the published weights from the hub"
    )
    add = command.add_argument
    add(
        "--out", type=Path, metavar="DIR",
        help="folder [ComfyUI's models/paint_by_example, of $COMFYUI_PATH or around this pack]",
    )  # fmt: skip
    add(
        "--what", default="diffusers", metavar="diffusers|official|PATH",
        help="the parts for diffusers, without training state; the authors' model.ckpt; or a "
        "checkpoint of the repository [%(default)s]",
    )  # fmt: skip
    add("--repo", default=download.REPOSITORY, metavar="ID", help="repository [%(default)s]")
    add("--revision", metavar="REV", help="branch, tag or commit [the main branch]")
    add(
        "--dtype", choices=DTYPES, default="fp16",
        help="type of the weights in the one safetensors file that is made [%(default)s]",
    )  # fmt: skip
    add(
        "--as-published", action="store_true",
        help="keep the files as they come and make none of them",
    )  # fmt: skip
    return parser


def _add_painting(command: argparse.ArgumentParser) -> None:
    """Give a command `--preset` and the options of `PAINTING`, shown with the defaults of `edit`.

    What is not on the command line parses to `None`: so `_painting` can tell it from an option
    that overrides a preset with the usual value.
    """
    command.add_argument(
        "--preset", choices=PRESETS,
        help="defaults for the options below; official: as the paper's own script paints",
    )  # fmt: skip
    usual = signature(edit).parameters
    for name, how in PAINTING.items():
        action = command.add_argument(f"--{name.replace('_', '-')}", **how)
        action.help = f"{how['help']} [{usual[name].default}]"


def _painting(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `edit`: the preset's, under those that were given."""
    given = {name: getattr(args, name) for name in PAINTING}
    given = {name: value for name, value in given.items() if value is not None}
    return PRESETS.get(args.preset, {}) | given


def _demo(args: argparse.Namespace) -> int:
    model = PaintByExample.from_checkpoint()
    done = demo.run(model, args.out, progress=_progress)
    print(f"{done.grid}: all of it on one sheet")
    print(f"{len(done.images)} single results beside it, {done.images[0].name} and so on")
    print(
        f"{done.pixels_outside - done.pixels_changed:,} of {done.pixels_outside:,} pixels outside "
        "the blend zones are bit-identical to the photos"
    )
    print(f"{done.seconds:.1f} seconds")
    return 1 if done.pixels_changed else 0


def _edit(args: argparse.Namespace) -> int:
    image_format(args.out)
    check_parent(args.out)
    image = read_image(args.image)
    hole_mask = read_mask(args.mask, size=(image.shape[0], image.shape[1]))
    exemplar, exemplar_mask = _read_exemplar(args.exemplar, args.exemplar_mask)
    model = PaintByExample.from_checkpoint(
        args.checkpoint,
        device=usable_device(args.device),
        dtype=DTYPES[args.dtype],
        attention=args.attention,
    )
    result = edit(
        model,
        image,
        hole_mask,
        exemplar,
        exemplar_mask=exemplar_mask,
        callback=_progress("painting"),
        **_painting(args),
    )
    for number, painted in enumerate(result.images, start=1):
        suffix = f"-{number}" if len(result.images) > 1 else ""
        path = args.out.with_name(f"{args.out.stem}{suffix}{args.out.suffix}")
        write_image(path, painted)
        print(path)
    return 0


def _read_exemplar(path: str, mask_path: str | None) -> tuple[Tensor, Tensor | None]:
    """The exemplar, and its mask: from a file of its own, or from its transparency."""
    exemplar, exemplar_mask = read_exemplar(path)
    if mask_path is not None:
        brightness, exemplar_mask = read_exemplar(mask_path)
        if exemplar_mask is None:  # not a cut-out but a drawing
            exemplar_mask = brightness.mean(-1)
    return exemplar, exemplar_mask


def _progress(label: str) -> Callback:
    """A progress line on a terminal, from the first step to the last."""
    bar: tqdm | None = None

    def step(index: int, total: int, latent: Tensor) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=label, total=total, unit="step", leave=False, disable=None)
        bar.update()
        if index + 1 == total:
            bar.close()

    return step


def _inspect(args: argparse.Namespace) -> int:
    report = checkpoint.inspect(args.file)
    metadata = {name: _decoded(value) for name, value in report.metadata.items()}
    if args.json:
        print(json.dumps({**asdict(report), "path": str(report.path), "metadata": metadata}))
        return 0
    config = report.config.to_dict()
    rows: dict[str, Any] = {
        "file": report.path,
        "format": report.format,
        "size": f"{report.size / 1e6:,.1f} MB",
        "weights": f"{report.parameters:,} parameters, {', '.join(report.dtypes)}",
        "model": {name: value for name, value in config.items() if not isinstance(value, dict)},
        **{name: value for name, value in config.items() if isinstance(value, dict)},
        "renamed": f"{len(report.renamed):,}",
        "missing": _names(report.missing),
        "unexpected": _names(report.unexpected),
        "dropped": _names(report.dropped),
        "not run": _names(report.foreign),
        **metadata,
    }
    for name, value in rows.items():
        print(f"{name:<12}{_short(value)}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    check_parent(args.out)
    if args.out.is_dir() and args.to != "diffusers":
        raise ValueError(f"cannot write {args.out}: it is a folder; give the name of a file")
    if args.out.suffix != ".safetensors" and args.to == "safetensors":
        raise ValueError(f"{args.out} would not be found as safetensors; end it in .safetensors")
    report = checkpoint.convert(
        args.source,
        args.out,
        layout=args.to,
        dtype=DTYPES[args.dtype] if args.dtype else None,
        ema=args.ema,
    )
    print(f"{args.out}: {len(report.kept):,} tensors kept, {len(report.renamed):,} names changed")
    for label in ("dropped", "missing"):
        print(f"{label:<12}{_names(getattr(report, label))}")
    return 0


def _download(args: argparse.Namespace) -> int:
    out = args.out or download.comfyui_folder()
    release = download.look_up(args.what, repo=args.repo, revision=args.revision)
    print(
        f"{release.repo} at {release.commit[:10]}: {len(release.files)} files, "
        f"{release.size / 1e6:,.1f} MB, into {out}"
    )
    dtype = None if args.as_published else DTYPES[args.dtype]
    path = download.download(release, out, dtype=dtype)
    print(f"{path}: every file has the hash that the hub gives")
    print(f"next: Load Paint by Example in ComfyUI, or pbe edit --checkpoint {path}")
    return 0


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value  # a plain string


def _names(names: list[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}" if names else "none"


def _short(value: Any) -> str:
    """One line: of a dictionary its own entries, of what is nested in it only the names."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{name} {{{', '.join(entry)}}}" if isinstance(entry, dict) else f"{name}={entry}"
        for name, entry in value.items()
    )
