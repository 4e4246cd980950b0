"""Crops for a reader who does not know what was painted, and the score of what was picked.

    python -m benchmarks.blind_test draw --data data/demo --split val --out blind-val
    python -m benchmarks.blind_test score blind-val --picks picks.txt

`draw` paints pairs of a demo set as the model does when nothing else is said, one of each group of
near-duplicates, in an order fixed by the seed; none is left out or painted again. Each becomes
`NN-crop.png`, the painted box with some of its surroundings, and `NN-candidates.png`, its exemplar
among those of seven other groups, numbered from 1; all of them squashed to squares, because their
proportions would tell which belong together. The reader describes the crop before seeing the
candidates, and then picks one. `key.json` says which was right, and is not for the reader.

`score` counts right picks: a file with one number a line, in the order of the crops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pbe_model import PaintByExample, edit
from pbe_model.cli.demo import sheet
from pbe_model.editing.exemplar_image import preprocess
from pbe_model.image_io import write_image
from training.data.dataset import Stream, keyed_rng
from training.evaluation.pairs import CANDIDATES, SPLIT, Pair, draw_candidates, load_pairs

KEY = "key.json"
_SIDE = 160
"""Pixels of what the reader sees."""
_AROUND = 0.25
"""How far a crop shows more than the box, in sides of the box."""


def main() -> None:
    """Draw a test or score one."""
    parser = argparse.ArgumentParser(description="Is what was painted recognised?")
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--data", type=Path, required=True, help="of `pbe-train prepare demo`")
    drawing.add_argument("--model", type=Path, help="a checkpoint [the bundled model]")
    drawing.add_argument("--split", default=SPLIT, help=f"val or seen [{SPLIT}]")
    drawing.add_argument("--pairs", type=int, default=256, help="to draw from, the first [256]")
    drawing.add_argument("--count", type=int, default=24, help="crops [24]")
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, required=True, help="a new folder")
    scoring = commands.add_parser("score")
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("--picks", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "draw":
        model = PaintByExample.from_checkpoint(args.model)
        draw(model, load_pairs(args.data, args.pairs, args.split), args.count, args.seed, args.out)
    else:
        picks = [int(word) for word in args.picks.read_text(encoding="utf-8").split()]
        key = json.loads((args.folder / KEY).read_text(encoding="utf-8"))
        right = sum(a == b for a, b in zip(key, picks, strict=True))
        print(f"{right} of {len(key)} right; picking blindly, {len(key) / CANDIDATES:g}")


def draw(model: PaintByExample, pairs: Sequence[Pair], count: int, seed: int, out: Path) -> None:
    """Paint `count` pairs of different groups and write what the reader sees."""
    groups = [pair.group for pair in pairs]
    rng = keyed_rng(seed, 0, Stream.CHOICE)
    of_group = {groups[number]: number for number in rng.permutation(len(pairs)).tolist()}
    out.mkdir(parents=True)
    key = []
    for row, number in enumerate(list(of_group.values())[:count], start=1):
        pair = pairs[number]
        [picture] = edit(model, pair.photo, pair.hole_mask, pair.exemplar, seed=number).images
        x0, y0, x1, y1 = pair.box
        dx, dy = round(_AROUND * (x1 - x0)), round(_AROUND * (y1 - y0))
        crop = picture[max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx]
        write_image(out / f"{row:02}-crop.png", sheet([[("", _square(crop))]]))
        drawn, _ = draw_candidates(groups, number, seed)
        order = rng.permutation(drawn).tolist()
        key.append(order.index(number) + 1)
        cells = [(str(place), _square(pairs[i].exemplar)) for place, i in enumerate(order, start=1)]
        write_image(out / f"{row:02}-candidates.png", sheet([cells[:4], cells[4:]]))
    (out / KEY).write_text(json.dumps(key), encoding="utf-8")


def _square(picture: Tensor) -> Tensor:
    return preprocess(picture, _SIDE).movedim(0, -1)


if __name__ == "__main__":
    main()
