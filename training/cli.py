"""The `pbe-train` command; `python -m training` is the same.

Exit codes: 0 done, 2 bad input or settings (one sentence on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pbe_model.atomic import check_makeable, check_writable, made_folder, replacing_all
from pbe_model.cli.common import DTYPES, Parser, add_command, positive, run, seed, usable_device
from pbe_model.config import EditDefaults
from training.prepare.command import add_prepare

DRY_RUN = "--dry-run"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; `None` takes the process's own.

    Returns:
        The exit code.
    """
    return run(_parser(), argv, "interrupted; the same command resumes from there")


def _parser() -> Parser:
    parser = Parser(prog="pbe-train", description="Train Paint by Example models.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    add_prepare(commands)

    command = add_command(
        commands,
        "train",
        _train,
        "train, or resume from the newest checkpoint",
        more_memory="lower batch_size, raise accumulate, which splits a batch, or set "
        "gradient_checkpointing",
    )
    # What follows the name is RunConfig's: `training.config` checks it and answers --help.
    command.add_argument("config", help="bundled name, for example demo, or a TOML file")
    command.add_argument(
        "overrides", nargs=argparse.REMAINDER,
        help="settings of the file, such as --steps 100 --optim.lr 1e-4; CONFIG --help lists them; "
        "with --dry-run the settings and their plan are printed, what a start needs is checked, "
        "and nothing is trained",
    )  # fmt: skip

    command = add_command(commands, "plan", _plan, "estimate what a run will take", is_text=True)
    _plan_options(command)
    command.add_argument("config", help="as for train")
    command.add_argument(
        "overrides", nargs=argparse.REMAINDER, help="as for train; the options may come here too"
    )

    command = add_command(commands, "export", _export, "write the model of a run, finished or not")
    add = command.add_argument
    add("folder", type=Path, metavar="RUN", help="folder of the run; the photos are not needed")
    add("out", type=Path, metavar="OUT", help="file, or for diffusers folder, to write")
    add(
        "--to", choices=["safetensors", "official", "diffusers", "lora"], default="safetensors",
        help="layout: ours, the published checkpoint's, diffusers' folder, or the adapters of a "
        "LoRA run alone; in the others they are merged [%(default)s]",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, default="fp32", help="dtype of the weights [%(default)s]")
    add(
        "--weights", metavar="ema|raw|LENGTH",
        help="the classic average, the last weights, or the average of a relative length in "
        "ema.lengths [ema where the run keeps it, else raw]",
    )  # fmt: skip
    add(
        "--ema-length", type=float, metavar="X",
        help="an average of any relative length, put together from the run's snapshots",
    )  # fmt: skip
    add("--step", type=int, metavar="N", help="step of the checkpoint [the newest]")
    add("--init", type=Path, metavar="FILE", help="file that the run started from, if it has moved")
    add("--init-tower", type=Path, metavar="FILE", help="its image tower, if that has moved")
    for entry in fields(EditDefaults):
        add(
            f"--{entry.name}", type=type(entry.default), metavar=entry.name.upper(),
            help="what the model paints with when nothing else is said [as that which it started "
            "from]",
        )  # fmt: skip

    command = add_command(
        commands,
        "evaluate",
        _evaluate,
        "measure how well exemplars are painted",
        more_memory="lower --batch",
        is_text=True,
    )
    add = command.add_argument
    add(
        "set", choices=["demo", "photos"],
        help="the bundled model's picture set, or photos of one's own that were held out",
    )  # fmt: skip
    add("--data", required=True, type=Path, metavar="DIR", help="made by `prepare`")
    add("--checkpoint", type=Path, metavar="FILE", help="[the bundled model]")
    add(
        "--split", "--index", default="val", metavar="NAME",
        help="folder in DIR with the pairs, such as seen for objects of the demo's training, or "
        "the index of the photos [%(default)s]",
    )  # fmt: skip
    add(
        "--pairs",
        type=positive,
        metavar="N",
        help="[256; of photos 64, or all where there are fewer]",
    )
    add("--steps", type=positive, metavar="N", help="sampling steps [the model's own]")
    add("--batch", type=positive, default=16, metavar="N", help="edits at once [%(default)s]")
    add("--seed", type=seed, default=0, metavar="K", help="[%(default)s]")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... [%(default)s]")
    add(
        "--out", type=Path, metavar="DIR",
        help="folder for evaluation.json and a sheet of pictures, evaluation.png",
    )  # fmt: skip
    return parser


def _plan_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gpus", type=positive, default=1, metavar="N", help="one process each [%(default)s]")
    add(
        "--kind", action="append", default=[], metavar="CARD",
        help="kind of card, such as a100; may be repeated [all known]",
    )  # fmt: skip
    add(
        "--mfu", type=float, default=0.35, metavar="X",
        help="share of their peak rate that the cards reach [%(default)s]",
    )  # fmt: skip
    add("--price", type=float, metavar="P", help="price of a card per hour")
    add("--json", action="store_true", help="print the plan as JSON")


# The commands import what they need themselves: some of it takes seconds.


def _train(args: argparse.Namespace) -> int:
    from training.config import load_config

    config = load_config(args.config, [word for word in args.overrides if word != DRY_RUN])
    if DRY_RUN in args.overrides:
        from training.planning.report import describe
        from training.preflight import check_start

        print(describe(config), flush=True)
        for notice in check_start(config):
            print(f"# {notice}")
    else:
        from training.loop import Trainer

        Trainer(config).run()
    return 0


def _plan(args: argparse.Namespace) -> int:
    from training.config import load_config
    from training.planning.report import make_plan

    # argparse hands over all that follows the name, so the options are picked out of it here.
    options = Parser(prog="pbe-train plan", add_help=False, allow_abbrev=False)
    _plan_options(options)
    args, overrides = options.parse_known_args(args.overrides, args)
    plan = make_plan(
        load_config(args.config, overrides),
        measured=True,
        gpus=args.gpus,
        kinds=args.kind,
        mfu=args.mfu,
        price=args.price,
    )
    print(json.dumps(plan.to_dict(), indent=2) if args.json else plan)
    return 0


def _export(args: argparse.Namespace) -> int:
    from training.export import export

    check_writable(args.out, folder=args.to == "diffusers")
    record = export(
        args.folder,
        args.out,
        layout=args.to,
        dtype=DTYPES[args.dtype],
        weights=args.weights,
        ema_length=args.ema_length,
        step=args.step,
        init=args.init,
        init_tower=args.init_tower,
        defaults={e.name: getattr(args, e.name) for e in fields(EditDefaults)},
    )
    figures = [f"{name} {value:.4g}" for name, value in record["validation"].items()]
    print(
        f"{args.out}: " + "; ".join([f"after {record['steps']} steps", record["weights"], *figures])
    )
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from pbe_model import PaintByExample
    from pbe_model.image_io import write_image
    from training.evaluation.evaluate import evaluate_demo, evaluate_photos
    from training.evaluation.table import format_table

    if args.out:
        check_makeable(args.out)
    model = PaintByExample.from_checkpoint(args.checkpoint, device=usable_device(args.device))
    evaluate, usual = (evaluate_demo, 256) if args.set == "demo" else (evaluate_photos, 64)
    evaluation = evaluate(
        args.data,
        model,
        split=args.split,
        pairs=args.pairs or usual,
        steps=args.steps,
        seed=args.seed,
        batch=args.batch,
    )
    print(format_table(evaluation))
    if args.out:
        files = [args.out / "evaluation.json", args.out / "evaluation.png"]
        with made_folder(args.out), replacing_all(files) as (figures, sheet):
            figures.write_text(evaluation.to_json(), encoding="utf-8")
            write_image(sheet, evaluation.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
