"""What the product computes, as hashes: to see that a change of the code changed nothing.

    python -m benchmarks.fingerprint before.json          # on the old tree
    python -m benchmarks.fingerprint after.json --compare before.json

Pictures of the demonstration, forty regions, twelve edits by command and twelve by node (in the
ComfyUI that the tests find, unless `--without-host`), thirty updates of each stage of training, an
evaluation, and a checkpoint through every layout and back. Hashes are of pixels and of tensors, so
a file may say the same in other bytes; figures of the training log and of the evaluation are
compared to 1e-6. Equal hashes are to be expected on one machine only, with the same packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pbe_model import TINY, PaintByExample, edit
from pbe_model.checkpoints.save import save_model

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "pbe_model/assets/scenes"

REGION_SIZES = ((64, 64), (40, 150), (150, 40), (97, 203), (11, 17), (240, 320), (1, 60), (33, 31))
REGION_HOLES = (
    [(0, 0, 0.2, 0.25)],
    [(0.4, 0.8, 0.75, 1)],
    [(0, 0, 1, 1)],
    [(0.6, 0.3, 0.6, 0.3)],
    [(0.05, 0.1, 0.12, 0.2), (0.85, 0.7, 1, 0.9)],
)
EDITS: tuple[tuple[str, dict[str, str]], ...] = (
    ("meadow", {}),
    ("deck", {"seed": "7", "similarity": "5"}),
    ("dune", {"sampler": "plms", "steps": "10"}),
    ("sky", {"sampler": "ddim", "steps": "8", "region": "whole"}),
    ("table", {"region": "squash", "fit": "crop"}),
    ("leaves", {"exemplar-mask": "exemplar_mask.png", "fit": "pad"}),
    ("meadow", {"num-images": "2", "strength": "0.6"}),
    ("deck", {"preset": "official", "steps": "10"}),
    ("dune", {"region": "each", "context": "2", "blend": "6"}),
    ("sky", {"context-mask": "hole_mask.png", "colour-match": ""}),
    ("table", {"blend-mask": "hole_mask.png", "resolution": "192"}),
    ("leaves", {"posterior": "sample", "no-paste-back": "", "truncate": ""}),
)
NODE_EDITS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 7, "similarity": 5.0},
    {"sampler_name": "euler", "scheduler": "normal"},
    {"sampler_name": "ddim", "scheduler": "ddim_uniform"},
    {"sampler_name": "uni_pc"},
    {"region": "whole"},
    {"region": "squash"},
    {"region": "each", "context": 1.4},
    {"denoise": 0.6},
    {"blend": 6},
    {"resolution": 192},
    {"colour_match": True},
)


SUFFIXES = {"official": ".ckpt", "diffusers": "", "safetensors": ".safetensors"}


class Hashes:
    """Results by name."""

    def __init__(self) -> None:
        self.found: dict[str, str | float] = {}

    def add(self, name: str, *values: object) -> None:
        """Note the hash of pictures, tensors, plain values, or dictionaries and lists of them."""
        digest = hashlib.sha256()
        for part in _parts(values):
            digest.update(part)
        self.found[name] = digest.hexdigest()[:16]
        print(f"{name:<40}{self.found[name]}", flush=True)


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        yield f"{array.dtype}{tuple(array.shape)}".encode()
        yield array.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, Path):
        yield from _parts(np.asarray(Image.open(value)))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    else:
        yield repr(value).encode()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Hash what the product computes.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path, metavar="JSON", help="of another tree")
    parser.add_argument("--without-host", action="store_true", help="leave the nodes out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hashes = Hashes()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        demo(hashes, folder)
        regions(hashes)
        commands(hashes, folder)
        layouts(hashes, folder)
        training(hashes, folder)
        evaluation(hashes, folder)
        if not args.without_host:
            nodes(hashes, folder)
    args.out.write_text(json.dumps(hashes.found, indent=1))
    if args.compare:
        sys.exit(compare(json.loads(args.compare.read_text()), hashes.found))


def run(module: str, *arguments: object) -> None:
    """A command of ours, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def demo(hashes: Hashes, folder: Path) -> None:
    """Every picture of `pbe demo`."""
    run("pbe_model", "demo", "--out", folder / "demo")
    for path in sorted((folder / "demo").glob("*.png")):
        hashes.add(f"demo {path.stem}", path)


def regions(hashes: Hashes) -> None:
    """Forty edits: every size and aspect with every kind of hole, in all ways to crop."""
    model = PaintByExample.from_checkpoint()
    generator = torch.Generator().manual_seed(0)
    modes, counts = cycle(("auto", "whole", "auto", "squash", "each")), cycle((1, 2, 3))
    for (height, width), boxes in product(REGION_SIZES, REGION_HOLES):
        hole = torch.zeros(height, width)
        for x0, y0, x1, y1 in boxes:
            left, top = int(x0 * width), int(y0 * height)
            right, bottom = max(left + 1, int(x1 * width)), max(top + 1, int(y1 * height))
            hole[top:bottom, left:right] = 1
        photo, exemplar = (
            torch.rand(*size, 3, generator=generator) for size in ((height, width), (20, 12))
        )
        mode = "each" if len(boxes) > 1 else next(modes)
        result = edit(
            model, photo, hole, exemplar, steps=1, similarity=1.0, region=mode,
            num_images=next(counts),
        )  # fmt: skip
        name = f"region {height}x{width} {len(hashes.found)} {mode}"
        hashes.add(name, result.images, result.crops, result.blend_mask)


def commands(hashes: Hashes, folder: Path) -> None:
    """Twelve edits by command."""
    for number, (scene, options) in enumerate(EDITS):
        out = folder / f"edit-{number}"
        out.mkdir()
        files = {"image": "photo.jpg", "mask": "hole_mask.png", "exemplar": "exemplar.jpg"}
        words: list[object] = []
        for name, value in {**files, **options}.items():
            path = SCENES / scene / value
            words += [
                f"--{name}",
                *([path if value and path.is_file() else value] if value else []),
            ]
        run("pbe_model", "edit", *words, "--out", out / "a.png")
        hashes.add(f"edit {number} {scene} {' '.join(options)}", sorted(out.iterdir()))


def layouts(hashes: Hashes, folder: Path) -> None:
    """A model with what every layout can hold, through all of them and back."""
    torch.manual_seed(0)
    config = replace(TINY, exemplar=replace(TINY.exemplar, mapper_layers=1))
    source = folder / "one-layer.safetensors"
    save_model(source, PaintByExample(config))
    order = ("official", "diffusers", "safetensors", "diffusers", "official", "safetensors")
    for number, layout in enumerate(order):
        name = f"{number}{SUFFIXES[layout]}"
        run("pbe_model", "convert", source, folder / name, "--to", layout, "--dtype", "fp32")
        source = folder / name
        if layout == "safetensors":
            hashes.add(f"converted {name}", load_file(source))
        elif layout == "official":
            hashes.add(f"converted {name}", torch.load(source, weights_only=True))
        else:
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                content = load_file(file) if file.suffix == ".safetensors" else file.read_text()
                hashes.add(f"converted {name} {file.relative_to(source)}", content)


def training(hashes: Hashes, folder: Path) -> None:
    """Thirty updates of each stage."""
    write_photos(folder / "photos")
    first, second = folder / "first", folder / "second"
    common = ("--data.root", folder / "photos", "--data.workers", 0, "--threads", 1, "--steps", 30,
              "--log.every", 10, "--log.sample-every", 30, "--checkpoint.every", 30)  # fmt: skip
    run("training", "train", "demo-first-stage", "--out", first, *common)
    run("training", "export", first, folder / "first.safetensors")
    hashes.add("first stage exported", load_file(folder / "first.safetensors"))
    run("training", "train", "demo", "--out", second, "--init", folder / "first.safetensors",
        "--batch-size", 4, *common)  # fmt: skip
    for name, out in (("first stage", first), ("diffusion", second)):
        (path,) = (out / "checkpoints").glob("*.pt")
        saved = torch.load(path, weights_only=True)
        for entry in ("module", "optimizer", "ema"):
            hashes.add(f"{name} {entry}", saved[entry])
        for line in (out / "log.jsonl").read_text().splitlines():
            figures = json.loads(line)
            for key, value in figures.items():
                if key not in ("images_per_second", "peak_memory_gb", "mfu"):
                    hashes.found[f"{name} log {figures['step']} {key}"] = value


def write_photos(root: Path, count: int = 12) -> None:
    """Photos of noise with a plain box."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            photo = rng.integers(0, 256, (80, 80, 3), np.uint8)
            photo[20:60, 20:60] = rng.integers(0, 256, 3)
            Image.fromarray(photo).save(root / split / f"{number}.png")
            entry = {"image": f"{split}/{number}.png", "box": [20, 20, 60, 60], "id": str(number)}
            lines.append(json.dumps(entry))
        (root / split / "boxes.jsonl").write_text("\n".join(lines))


def evaluation(hashes: Hashes, folder: Path) -> None:
    """The table of twelve pairs, and what was painted for it."""
    from tests.training.runs import write_pairs

    pairs, out = write_pairs(folder / "pairs"), folder / "evaluation"
    run("training", "evaluate", "demo", "--data", pairs, "--pairs", 12, "--steps", 2,
        "--batch", 5, "--out", out)  # fmt: skip
    hashes.add("evaluation pictures", out / "evaluation.png")
    for row in json.loads((out / "evaluation.json").read_text())["rows"]:
        for key, value in row.items():
            hashes.found[f"evaluation {row['name']} {key}"] = value


def nodes(hashes: Hashes, folder: Path) -> None:
    """Twelve edits by the nodes, in a real ComfyUI."""
    from tests.nodes.host import Host, find_host

    found = find_host()
    if found is None:
        sys.exit("no ComfyUI found, see tests/nodes/conftest.py; --without-host leaves it out")
    with Host.start(*found, ROOT, folder / "host") as host:
        for number, options in enumerate(NODE_EDITS):
            done = host.run(graph(options))
            if done.error:
                sys.exit(f"node edit {number}: {done.error_text}")
            pictures = [host.images(done, node) for node in ("5", "6")]
            hashes.add(f"node {number} {' '.join(options)}", pictures)


def graph(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The basic edit with the bundled model, in the form of the host's API."""
    sampler = {
        "model": ["1", 0], "positive": ["3", 0], "negative": ["3", 1], "vae": ["1", 2],
        "image": ["2", 0], "mask": ["2", 1], "seed": 3, "steps": 4, "similarity": 2.0,
        "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0, "region": "auto",
        "context": 1.8, "resolution": 0, "blend": -1, **options,
    }  # fmt: skip
    loader = {"checkpoint": "bundled demo", "weight_dtype": "default", "attention": "auto"}
    encoder = {"encoder": ["1", 1], "exemplar": ["2", 2], "fit": "squash", "merge": "one each"}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("PBELoader", loader),
        "2": ("PBEExampleInputs", {"scene": "meadow"}),
        "3": ("PBEExemplarEncoder", encoder),
        "4": ("PBEInpaintSampler", sampler),
        "5": ("PreviewImage", {"images": ["4", 0]}),
        "6": ("PreviewImage", {"images": ["4", 2]}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in kinds.items()}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Say what differs; 1 if anything does."""
    differing = [
        name
        for name in sorted(before.keys() | after.keys())
        if not _equal(before.get(name), after.get(name))
    ]
    for name in differing:
        print(f"differs: {name}: {before.get(name)} before, {after.get(name)} after")
    print(f"{len(before)} before, {len(after)} after, {len(differing)} differ")
    return 1 if differing else 0


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return one == other


if __name__ == "__main__":
    main()
