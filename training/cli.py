"""The `pbe-train` command; `python -m training` is the same.

Exit codes: 0 done, 2 bad input or settings (one sentence on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pbe_model.commandline import (
    DTYPES,
    Parser,
    add_command,
    check_parent,
    positive,
    run,
    usable_device,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; `None` takes the process's own.

    Returns:
        The exit code.
    """
    return run(_parser(), argv, "interrupted; the same command goes on from there")


def _parser() -> Parser:
    parser = Parser(prog="pbe-train", description="Train Paint by Example models.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = add_command(commands, "prepare", _prepare, "make a picture set to train on")
    add = command.add_argument
    add("set", choices=["demo"], help="the bundled model's, from Debian packages")
    add("--out", required=True, type=Path, metavar="DIR", help="folder; a second call resumes")
    add(
        "--debs", type=Path, metavar="DIR",
        help="folder with the packages, where apt-get cannot download them",
    )  # fmt: skip
    add("--cache", type=Path, metavar="DIR", help="for the packages, unpacked [OUT/cache]")
    add("--count", type=positive, default=24_000, metavar="N", help="photos [%(default)s]")
    add("--pairs", type=positive, default=512, metavar="N", help="held-out pairs [%(default)s]")
    add("--size", type=positive, default=128, metavar="PIXELS", help="of a side [%(default)s]")
    add("--seed", type=int, default=0, metavar="K", help="[%(default)s]")
    add("--processes", type=positive, default=2, metavar="N", help="[%(default)s]")

    command = add_command(
        commands, "train", _train, "train, from the newest checkpoint if there is"
    )
    # What follows the name is RunConfig's: `training.config` checks it and answers --help.
    command.add_argument("config", help="bundled name, for example demo, or a TOML file")
    command.add_argument(
        "overrides", nargs=argparse.REMAINDER,
        help="entries of the file, such as --steps 100 --optim.lr 1e-4; CONFIG --help lists them",
    )  # fmt: skip

    command = add_command(commands, "export", _export, "write the model of a run to a file")
    add = command.add_argument
    add("folder", type=Path, metavar="RUN", help="folder of the run")
    add("out", type=Path, metavar="OUT", help="file to write")
    add(
        "--to", choices=["safetensors", "official"], default="safetensors",
        help="layout: ours, or the published checkpoint's [%(default)s]",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, default="fp32", help="of the weights in ours [%(default)s]")

    command = add_command(commands, "evaluate", _evaluate, "measure how well exemplars are painted")
    add = command.add_argument
    add("set", choices=["demo"], help="the bundled model's picture set")
    add("--data", required=True, type=Path, metavar="DIR", help="made by `prepare demo`")
    add("--checkpoint", type=Path, metavar="FILE", help="[the bundled model]")
    add("--pairs", type=positive, default=256, metavar="N", help="[%(default)s]")
    add("--steps", type=positive, default=20, metavar="N", help="of sampling [%(default)s]")
    add("--batch", type=positive, default=16, metavar="N", help="edits at once [%(default)s]")
    add("--seed", type=int, default=0, metavar="K", help="[%(default)s]")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... [%(default)s]")
    add(
        "--out", type=Path, metavar="DIR",
        help="folder for evaluation.json and a sheet of pictures, evaluation.png",
    )  # fmt: skip
    return parser


# The imports below are heavy, and each command needs its own.


def _prepare(args: argparse.Namespace) -> int:
    from training.prepare import prepare_demo

    prepare_demo(
        args.out,
        debs=args.debs,
        cache=args.cache,
        count=args.count,
        pairs=args.pairs,
        size=args.size,
        seed=args.seed,
        processes=args.processes,
    )
    return 0


def _train(args: argparse.Namespace) -> int:
    from training.config import load_config
    from training.loop import train

    train(load_config(args.config, args.overrides))
    return 0


def _export(args: argparse.Namespace) -> int:
    from training.export import export

    check_parent(args.out)
    record = export(args.folder, args.out, layout=args.to, dtype=DTYPES[args.dtype])
    figures = ", ".join(f"{name} {value:.4g}" for name, value in record["validation"].items())
    print(f"{args.out}: after {record['steps']} steps; {figures}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from pbe_model import PaintByExample
    from pbe_model.image_io import write_image
    from training.evaluate import evaluate_demo, format_table

    model = PaintByExample.from_checkpoint(args.checkpoint, device=usable_device(args.device))
    if args.out:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder {args.out}: {error.strerror}") from error
    evaluation = evaluate_demo(
        args.data, model, pairs=args.pairs, steps=args.steps, seed=args.seed, batch=args.batch
    )
    print(format_table(evaluation))
    if args.out:
        (args.out / "evaluation.json").write_text(evaluation.to_json(), encoding="utf-8")
        write_image(args.out / "evaluation.png", evaluation.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
