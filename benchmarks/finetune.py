"""What a few minutes of fine-tuning on 30 of one's own photos do to edits with those objects.

The objects are cut-outs that the bundled model was never trained on, ten of ten groups, each pasted
into three photos: the photos are prepared and trained on as a user's would be, by the commands of
`pbe-train`. Then other pictures of the same objects are painted into other photos, before other
backgrounds, by the model before and after, and a plain descriptor has to tell the right exemplar
from seven others (`training.evaluation`).

    pbe-train prepare demo --out data/demo --count 1        # cut-outs and backgrounds
    python -m benchmarks.finetune --data data/demo --out runs/finetune-benchmark

Two cores: 8 minutes of training, and three minutes for each of the two evaluations.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from training import cli
from training.demo.composite import Composer, Pair
from training.demo.make import CATALOGUE, to_image
from training.demo.sources import load, read_catalogue

OBJECTS, PHOTOS = 10, 30
PHOTO_SIDE, PAIR_SIDE = 256, 128
OWN, HELD_OUT = 1001, 1002  # seeds of the photos trained on, and of the pairs to be painted


def main() -> None:
    """Make the photos, train, evaluate before and after, print both tables."""
    parser = argparse.ArgumentParser(description="Fine-tune the bundled model on 30 photos.")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="made by pbe-train prepare demo")
    add("--out", type=Path, required=True, help="folder for everything")
    add("--pairs", type=int, default=60, help="painted in each evaluation [%(default)s]")
    add("--steps", type=int, help="of training [those of demo-finetune]")
    args = parser.parse_args()
    out: Path = args.out
    photos, pairs = write_photos(args.data, out / "photos"), out / "pairs"
    write_pairs(args.data, pairs, args.pairs)

    run = ["--data.root", str(out / "prepared"), "--out", str(out / "run")]
    if args.steps:
        run += ["--steps", str(args.steps)]
    model = out / "model.safetensors"
    command("prepare", "boxes", "--images", str(photos), "--annotations",
            str(photos / "boxes.jsonl"), "--out", str(out / "prepared"), "--val", "3")  # fmt: skip
    started = time.perf_counter()
    command("train", "demo-finetune", *run)
    print(f"trained in {(time.perf_counter() - started) / 60:.1f} minutes")
    command("export", str(out / "run"), str(model))
    evaluate = ["evaluate", "demo", "--data", str(pairs), "--pairs", str(args.pairs)]
    print("before")
    command(*evaluate, "--out", str(out / "before"))
    print("after")
    command(*evaluate, "--out", str(out / "after"), "--checkpoint", str(model))


def command(*words: str) -> None:
    """A command of `pbe-train`; the end where it fails."""
    if code := cli.main(words):
        raise SystemExit(code)


def composer(data: Path, *, backgrounds: str, size: int, seed: int) -> Composer:
    """Makes pictures of the ten objects before backgrounds of one split."""
    cutouts, scenes = read_catalogue(CATALOGUE)
    by_group = {cutout.group: cutout for cutout in cutouts if cutout.split == "val"}
    chosen = list(by_group.values())[:OBJECTS]
    return Composer(
        cutouts=[load(source, data) for source in chosen],
        backgrounds=[load(scene, data) for scene in scenes if scene.split == backgrounds],
        size=size,
        seed=seed,
    )


def write_photos(data: Path, out: Path) -> Path:
    """The photos to train on, with their boxes as lines."""
    maker = composer(data, backgrounds="train", size=PHOTO_SIDE, seed=OWN)
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(PHOTOS):
        made = maker.pair(number)  # objects take turns in it
        name = f"{number:02d}.jpg"
        to_image(made.photo).save(out / name, quality=95)
        lines.append({"image": name, "box": made.objects[0][1]})
    (out / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def write_pairs(data: Path, out: Path, count: int) -> None:
    """Photos with a box, and other pictures of the boxes' objects, as `evaluate` reads them."""
    maker = composer(data, backgrounds="val", size=PAIR_SIDE, seed=HELD_OUT)
    (out / "val").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        made: Pair = maker.pair(number)
        cutout, box = made.objects[0]
        entry = {"box": box, "id": cutout.id, "group": cutout.group}
        for name, pixels in (("photo", made.photo), ("exemplar", made.exemplar)):
            entry[name] = f"val/{name}-{number:03d}.png"
            to_image(pixels).save(out / str(entry[name]))
        lines.append(entry)
    (out / "val/pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
