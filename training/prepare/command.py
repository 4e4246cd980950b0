"""The arguments of `pbe-train prepare`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from pbe_model.atomic import check_writable
from pbe_model.cli.common import add_command, positive, seed

_FORMATS = {
    "openimages": "OpenImages: table of boxes (.csv), or the text files of the official script",
    "coco": "COCO: instances_*.json",
    "yolo": "YOLO: labels/*.txt beside images/",
    "voc": "Pascal VOC: Annotations/*.xml beside JPEGImages/",
    "masks": "a folder of masks, white = the object, named like the photos",
    "boxes": 'lines {"image": "path", "box": [x0, y0, x1, y1]}',
}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def add_prepare(commands: Any) -> None:
    """Add `prepare` and what it prepares to what `add_subparsers` gave."""
    command = add_command(commands, "prepare", _prepare, "make a picture set to train on")
    kinds = command.add_subparsers(metavar="FORMAT", required=True, dest="format")

    demo = add_command(kinds, "demo", _prepare_demo, "the bundled model's set, of packages")
    add = demo.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="folder; a second call resumes")
    add(
        "--debs", type=Path, metavar="DIR",
        help="folder with the packages, where apt-get and npm cannot download them",
    )  # fmt: skip
    add("--cache", type=Path, metavar="DIR", help="for the packages, unpacked [OUT/cache]")
    add("--count", type=counting, default=24_000, metavar="N", help="photos [%(default)s]")
    add(
        "--pairs", type=counting, default=512, metavar="N",
        help="pairs of held-out objects, and as many of others [%(default)s]",
    )  # fmt: skip
    add("--size", type=positive, default=128, metavar="PIXELS", help="of a side [%(default)s]")
    add("--seed", type=seed, default=0, metavar="K", help="[%(default)s]")
    add("--processes", type=positive, default=2, metavar="N", help="[%(default)s]")

    add("--pack", type=Path, metavar="FILE", help="also one .tar of all but the photos")

    for name, summary in _FORMATS.items():
        _add_format(add_command(kinds, name, _prepare, summary), name)


def _add_format(command: argparse.ArgumentParser, name: str) -> None:
    add = command.add_argument
    found = {"yolo": "labels/ beside images/", "voc": "Annotations/ beside IMAGES"}.get(name)
    add("--images", required=True, type=Path, metavar="DIR", help="folder of photos")
    add(
        "--annotations", type=Path, metavar="PATH", required=found is None,
        help="file or folder" + (f" [{found}]" if found else ""),
    )  # fmt: skip
    add("--out", required=True, type=Path, metavar="DIR", help="folder; a second call resumes")
    if name == "masks":
        add("--whole-masks", action="store_true", help="a box a mask, not one a white blob")
    add(
        "--val", type=float, metavar="N",
        help="photos to hold out, a share or a number, chosen by a hash of the path [one in a "
        "hundred, but at least 8; of fewer than 40 photos a fifth]",
    )  # fmt: skip
    add("--min-area", type=float, default=0.02, metavar="SHARE", help="of a box [%(default)s]")
    add("--max-area", type=float, default=0.8, metavar="SHARE", help="of a box [%(default)s]")
    add("--min-side", type=positive, default=1, metavar="PIXELS", help="of a box [%(default)s]")
    add(
        "--max-aspect", type=float, metavar="RATIO",
        help="longer side to shorter side [no limit]",
    )  # fmt: skip
    add(
        "--drop", nargs="*", metavar="FLAG",
        help="drop boxes marked as group, depiction, inside, occluded, truncated, crowd or "
        "difficult [crowd for coco, as the paper none for openimages]",
    )  # fmt: skip
    add("--include", nargs="+", default=[], metavar="LABEL", help="keep only these [all]")
    add("--exclude", nargs="+", default=[], metavar="LABEL", help="drop these [none]")
    add("--verify", action="store_true", help="decode every photo, not only its header")
    add("--shards", action="store_true", help="copy the photos into tar shards")
    add(
        "--shard-size", type=byte_size, metavar="SIZE", help="such as 256MB, about [256MB]"
    )  # fmt: skip
    add(
        "--max-side", type=positive, metavar="PIXELS",
        help="shrink larger photos on the way into shards [untouched]",
    )  # fmt: skip
    add("--processes", type=positive, default=2, metavar="N", help="[%(default)s]")


def counting(text: str) -> int:
    """Type of an argument that counts something, or nothing."""
    return 0 if text == "0" else positive(text)


def byte_size(text: str) -> int:
    """Type of an argument such as 256MB, 1GiB or 1000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if not match or (size := round(float(match[1]) * _UNITS.get(match[2], 0))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 256MB")
    return size


# The imports below are heavy, and each command needs its own.


def _prepare_demo(args: argparse.Namespace) -> int:
    from training.demo.make import prepare_demo

    if args.pack:
        check_writable(args.pack)
    prepare_demo(
        args.out,
        debs=args.debs,
        cache=args.cache,
        count=args.count,
        pairs=args.pairs,
        size=args.size,
        seed=args.seed,
        processes=args.processes,
        archive=args.pack,
    )
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from training.prepare.annotations import FLAGS, BoxFilter, open_reader
    from training.prepare.collection import prepare
    from training.prepare.packing import Packing

    if unknown := sorted(set(args.drop or ()) - set(FLAGS)):
        raise ValueError(f"--drop {unknown[0]} is no flag; choose from {', '.join(FLAGS)}")
    packing = None
    if args.shards:
        packing = Packing(shard_bytes=args.shard_size or 256 * 10**6, max_side=args.max_side)
    elif args.shard_size or args.max_side:
        raise ValueError("--shard-size and --max-side are about shards; add --shards")
    reader = open_reader(
        args.format, args.images, args.annotations,
        whole_masks=getattr(args, "whole_masks", False),
    )  # fmt: skip
    drop = reader.dropped_flags if args.drop is None else frozenset(args.drop)
    result = prepare(
        reader,
        args.out,
        box_filter=BoxFilter(
            min_area=args.min_area,
            max_area=args.max_area,
            min_side=args.min_side,
            max_aspect=args.max_aspect,
            drop=drop,
            include=frozenset(args.include),
            exclude=frozenset(args.exclude),
        ),
        val=args.val,
        verify=args.verify,
        packing=packing,
        processes=args.processes,
    )
    print(result)
    print(f"\n{args.out / 'samples.jpg'} shows some of them.")
    return 0
