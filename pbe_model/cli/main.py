"""The `pbe` command; `python -m pbe_model` is the same.

Exit codes: 0 done, 1 a result that breaks a promise, 2 bad input (one sentence on stderr, and
nothing written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from ..atomic import check_writable, replacing_all
from ..checkpoints import download
from ..checkpoints import load as checkpoint
from ..checkpoints import save as saving
from ..checkpoints.adapter_convert import convert_adapter
from ..checkpoints.lora import apply_lora, parse_lora
from ..image_io import write_image
from ..model import PaintByExample
from ..networks.attention import BACKENDS
from ..sampling.samplers import Callback
from ..untrusted import parse_json, shown
from . import batch, demo
from .common import DTYPES, Parser, add_command, run, usable_device
from .edit_options import (
    add_files,
    add_painting,
    check_numbers,
    check_out,
    given_options,
    paint,
    read_pictures,
    write_results,
)

_LESS_MEMORY = "lower --resolution, take --dtype fp16 or another --device, or close other programs"
_LINE = 2000  # longest line in characters that repeats what a file says


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

    command = add_command(
        commands,
        "edit",
        _edit,
        "paint an exemplar into the hole of a photo",
        more_memory=_LESS_MEMORY,
    )
    add = command.add_argument
    add_files(command)
    add(
        "--out", required=True, type=Path, metavar="FILE", help="result; the suffix says the format"
    )
    add(
        "--show-mask", type=Path, metavar="FILE",
        help="also write how the mask was understood, at the size of the photo: white is the hole",
    )  # fmt: skip
    add_painting(command)
    _add_model(command)

    command = add_command(
        commands,
        "batch",
        _batch,
        "paint many edits, resumable, on one or more processes",
        more_memory=_LESS_MEMORY,
    )
    command.add_argument(
        "edits", type=Path, metavar="EDITS.jsonl",
        help="an edit a line: a JSON object with the options of pbe edit, files relative to this "
        "one; out is a name in DIR [the line's number]",
    )  # fmt: skip
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the results, PNG files"
    )
    add_painting(command)
    _add_model(command)

    command = add_command(
        commands, "inspect", _inspect, "say what a checkpoint holds", is_text=True
    )
    command.add_argument("file", metavar="FILE", help=".safetensors, .ckpt or folder")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add_command(commands, "convert", _convert, "write a checkpoint in another layout")
    add = command.add_argument
    add("source", metavar="IN", help=".safetensors, .ckpt or a folder of diffusers")
    add("out", type=Path, metavar="OUT", help="file, or for diffusers folder, to write")
    add(
        "--to", choices=[*get_args(saving.Layout), "lora"], required=True,
        help="layout; lora writes an adapter as ComfyUI's LoRA loaders read it",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, help="type of the weights [as they are]")
    add("--ema", action="store_true", help="take the denoiser's moving average, if IN has one")

    command = add_command(
        commands, "download", _download, "fetch the published weights from the hub"
    )
    add = command.add_argument
    add(
        "--out", type=Path, metavar="DIR",
        help="folder [models/paint_by_example of $COMFYUI_PATH, or of ComfyUI around this pack]",
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
        help="keep the files as they are instead of making one of them",
    )  # fmt: skip
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", metavar="FILE", help="model; the bundled demo model if left out")
    add(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]",
        help="adapter to merge into it, of strength 1 if left out; may be given several times",
    )  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one, else cpu]")
    add("--dtype", choices=DTYPES, default="fp32", help="type of the weights [%(default)s]")
    add("--attention", choices=["auto", *BACKENDS], default="auto", help="[%(default)s]")


def _model(args: argparse.Namespace) -> PaintByExample:
    adapters = [parse_lora(text) for text in args.lora]
    model = PaintByExample.from_checkpoint(
        args.checkpoint,
        device=usable_device(args.device),
        dtype=DTYPES[args.dtype],
        attention=args.attention,
    )
    for path, strength in adapters:
        applied = apply_lora(model, path, strength)
        if not applied.complete:
            print(f"note: {applied}", file=sys.stderr)
    return model


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
    options = given_options(args)
    check_numbers(options)
    check_out(args, options.get("num_images", 1))
    pictures, model = read_pictures(args), _model(args)
    if pictures.remark is not None:
        print(f"pbe: {pictures.remark}", file=sys.stderr)
    result = paint(model, pictures, options, _progress("painting"))
    with ExitStack() as stack:
        if args.show_mask is not None:
            [part] = stack.enter_context(replacing_all([args.show_mask]))
            write_image(part, pictures.hole_mask)
        paths = write_results(args.out, result.images)
    for path in paths:
        print(path)
    return 0


def _batch(args: argparse.Namespace) -> int:
    processes = batch.Processes.of_environment()
    if args.device is None and torch.cuda.is_available():
        args.device = f"cuda:{processes.local_rank}"
    model = {"checkpoint": args.checkpoint, **({"lora": args.lora} if args.lora else {})}
    edits, problems = batch.read_edits(args.edits, args.out, given_options(args), model)
    if processes.rank == 0:
        for line, problem in problems.items():
            batch.report(line, problem)
    done = batch.run(edits, lambda: _model(args), processes, more_memory=args.more_memory)
    failed = done.failed + len(problems)
    if processes.rank == 0:
        print(
            f"{args.out}: {done.painted} edits painted, {done.kept} were there already, "
            f"{failed} failed"
        )
    return 1 if failed else 0


def _progress(label: str) -> Callback:
    """A progress line on a terminal, from the first step to the last."""
    bar: tqdm | None = None

    def step(index: int, total: int, latent: Tensor) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=label, total=total, unit="step", leave=False, disable=None)
        # Where memory runs out, the steps of an attempt are taken again, and there are more in all.
        bar.total = total
        bar.update(index + 1 - bar.n)
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
        "notes": "; ".join(report.notes) or "none",
        "missing": _names(report.missing),
        "misshapen": _names(report.misshapen),
        "unexpected": _names(report.unexpected),
        "dropped": _names(report.dropped),
        "not run": _names(report.foreign),
        **metadata,
    }
    for name, value in rows.items():
        print(f"{shown(name):<12}{shown(_short(value), _LINE)}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    check_writable(args.out, folder=args.to == "diffusers")
    if args.out.suffix.lower() != ".safetensors" and args.to in ("safetensors", "lora"):
        raise ValueError(
            f"{args.out} would not be recognised as safetensors; end it in .safetensors"
        )
    if args.to == "lora":
        return _convert_adapter(args)
    report = saving.convert(
        args.source,
        args.out,
        layout=args.to,
        dtype=DTYPES[args.dtype] if args.dtype else None,
        ema=args.ema,
    )
    print(f"{args.out}: {len(report.kept):,} tensors kept, {len(report.renamed):,} names changed")
    for label in ("dropped", "missing"):
        print(f"{label:<12}{shown(_names(getattr(report, label)), _LINE)}")
    for note in report.notes:
        print(f"{'note':<12}{shown(note, _LINE)}")
    return 0


def _convert_adapter(args: argparse.Namespace) -> int:
    if args.ema:
        raise ValueError("--ema is for models, and an adapter has no moving average; leave it out")
    dtype = DTYPES[args.dtype] if args.dtype else None
    done = convert_adapter(args.source, args.out, dtype)
    print(f"{args.out}: an adapter of {done.layers:,} layers")
    for label, names in (("text encoder", done.of_text_encoder), ("unknown", done.unknown)):
        print(f"{label:<14}{shown(_names(names), _LINE)}")
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
    print(f"{path}: every file has the hash that the hub lists")
    print(f"next: Load Paint by Example in ComfyUI, or pbe edit --checkpoint {path}")
    return 0


def _decoded(value: str) -> Any:
    try:
        return parse_json(value)
    except ValueError:
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
