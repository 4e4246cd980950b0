"""The `pbe` command; `python -m pbe_model` is the same.

Exit codes: 0 done, 1 a result that is not as promised, 2 bad input (one sentence on stderr, and
nothing written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from torch import Tensor
from tqdm import tqdm

from . import checkpoint, demo
from .attention import BACKENDS
from .commandline import DTYPES, Parser, add_command, check_parent, run, usable_device
from .edit import edit
from .exemplar import Fit
from .image_io import image_format, read_exemplar, read_image, read_mask, write_image
from .model import PaintByExample
from .region import MODES
from .samplers import SAMPLERS, Callback


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
    add("--steps", type=int, default=20, metavar="N", help="sampling steps [%(default)s]")
    add(
        "--similarity", type=float, default=5.0, metavar="S",
        help="how closely to follow the exemplar; 0 ignores it [%(default)s]",
    )  # fmt: skip
    add("--seed", type=int, default=0, metavar="K", help="of the noise [%(default)s]")
    add("--sampler", choices=SAMPLERS, default="dpmpp_2m", help="[%(default)s]")
    add(
        "--num-images", type=int, default=1, metavar="N",
        help="variations, with the seeds K, K+1, ...; above 1 they are named OUT-1, OUT-2, ...",
    )  # fmt: skip
    add(
        "--region", choices=MODES, default="auto",
        help="what the model sees: the hole and its surroundings, or the photo [%(default)s]",
    )  # fmt: skip
    add(
        "--strength", type=float, default=1.0, metavar="S",
        help="below 1 the hole keeps some of its content [%(default)s]",
    )  # fmt: skip
    add("--exemplar-mask", metavar="FILE", help="which part of the exemplar counts: white")
    add(
        "--fit", choices=get_args(Fit), default="squash",
        help="how the exemplar is made square [%(default)s]",
    )  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one, else cpu]")
    add("--dtype", choices=DTYPES, default="fp32", help="type of the weights [%(default)s]")
    add("--attention", choices=["auto", *BACKENDS], default="auto", help="[%(default)s]")

    command = add_command(commands, "inspect", _inspect, "say what a checkpoint holds")
    command.add_argument("file", metavar="FILE", help=".safetensors or .ckpt")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add_command(commands, "convert", _convert, "write a checkpoint in another layout")
    add = command.add_argument
    add("source", metavar="IN", help=".safetensors, .ckpt or a folder of diffusers")
    add("out", type=Path, metavar="OUT", help="file, or for diffusers folder, to write")
    add("--to", choices=get_args(checkpoint.Layout), required=True, help="layout")
    add("--dtype", choices=DTYPES, default="fp32", help="type of the weights [%(default)s]")
    return parser


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
        steps=args.steps,
        similarity=args.similarity,
        seed=args.seed,
        sampler=args.sampler,
        num_images=args.num_images,
        region=args.region,
        strength=args.strength,
        fit=args.fit,
        exemplar_mask=exemplar_mask,
        callback=_progress("painting"),
    )
    for number, painted in enumerate(result.images, start=1):
        suffix = f"-{number}" if args.num_images > 1 else ""
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
        "missing": _names(report.missing),
        "unexpected": _names(report.unexpected),
        "dropped": _names(report.dropped),
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
    file = checkpoint.convert(args.source, args.out, layout=args.to, dtype=DTYPES[args.dtype])
    print(f"{args.out}: {len(file.tensors)} tensors kept; dropped {_names(file.dropped)}")
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
