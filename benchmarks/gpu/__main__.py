"""Everything that needs a CUDA card, in a given time: correctness, ComfyUI, speed, training.

    python -m benchmarks.gpu --minutes 10 --out gpu-results [--parts environment correct ...]

The parts run one after another, each in a process of its own that is ended at its share of the
time, so that nothing that hangs or crashes costs more than that. Within a part the most valuable
comes first, and what does not fit is skipped and said so. Results are in the folder after every
measurement: `table.md` to read, `results.json` for programs, `log.txt` with all else that was
printed. See `gpu.md` beside this package.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from benchmarks.gpu.options import Options
from benchmarks.gpu.report import TABLE, Report
from benchmarks.gpu.supervise import Part, supervise
from benchmarks.gpu.waiting import when_told

PARTS = {
    "environment": Part("benchmarks.gpu.environment", 0.1),
    "correct": Part("benchmarks.gpu.correct", 0.6),
    "host": Part("benchmarks.gpu.host", 0.3),
    "speed": Part("benchmarks.gpu.speed", 0.28, timed=True),
    "training": Part("benchmarks.gpu.training", 0.2, timed=True),
    "bundled": Part("benchmarks.gpu.bundled", 1.5),
}


def main(words: list[str] | None = None) -> None:
    """Run the parts, or the one that this process is for."""
    parser = argparse.ArgumentParser(description="What needs a CUDA card, in a given time.")
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="for all parts together [%(default)s]")
    add("--out", type=Path, required=True, help="folder of the results")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="[all of them]")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="[%(default)s]")
    add("--small", action="store_true", help="tiny networks and few repeats")
    add("--host", type=Path, metavar="FILE", help="a ComfyUI's folder, or what pack_host wrote")
    add("--train", metavar="CONFIG", help="configuration for the part bundled, such as demo")
    add("--data", type=Path, metavar="FILE", help="its pictures: `pbe-train prepare demo --pack`")
    add("--init", type=Path, metavar="FILE", help="what it starts from")
    add("--more", default="", metavar="WORDS", help="further words for `pbe-train train`, quoted")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    options = Options(
        out=args.out,
        device=args.device,
        small=args.small,
        host=args.host and args.host.expanduser().resolve(),
        train=args.train,
        data=args.data,
        init=args.init,
        more=tuple(shlex.split(args.more)),
    )
    if args.part:
        run_part(args.part, options)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", *(words or sys.argv[1:])]
    needed = {"host": args.host, "bundled": args.train}
    wanted = [name for name in args.parts if needed.get(name, True)]
    parts = {name: PARTS[name] for name in PARTS if name in wanted}
    supervise(parts, command, args.out, args.minutes)
    print((args.out / TABLE).read_text(encoding="utf-8"))


def run_part(name: str, options: Options) -> None:
    """What the process of a part does."""
    module = importlib.import_module(PARTS[name].module)
    prepare = getattr(module, "prepare", lambda options: None)
    when_told(
        lambda: prepare(options),
        lambda seconds: module.run(Report(folder=options.out, part=name, seconds=seconds), options),
    )


if __name__ == "__main__":
    main()
