"""Edits on the device against those on the CPU: of the bundled model, and of the published size."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.gpu.networks import random_model, sizes
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report, free
from pbe_model import CropSettings, PaintByExample, edit
from pbe_model.scenes import load_scenes

# Mean difference in levels of 8 bits. The noise is the same: `edit` draws it on the CPU.
# A CPU's float16 is 0.05 away from its float32, its bfloat16 0.6.
LIMITS = {
    ("float32", False): 0.02,
    ("float16", False): 0.3,
    ("bfloat16", False): 2.5,
    ("float32", True): 0.3,
}
FULL_SIZE_LIMITS = {"float32": 0.02, "float16": 2.0}
FULL_SIZE_SIDE = 128
"""Pixels, because the CPU is slow."""
_references: dict[Options, Tensor] = {}
_full_size: dict[Options, tuple[PaintByExample, Tensor]] = {}


def prepare(options: Options) -> None:
    """Paint on the CPU, in float32."""
    _references[options] = _painted(options, "cpu", torch.float32)
    model = random_model(sizes(options.small), torch.device("cpu"))
    _full_size[options] = model, _paint_with(model, options)


def run(report: Report, options: Options) -> None:
    """Paint scenes with the default edit in each type of weights, TF32 off and on."""
    if options not in _references:
        prepare(options)
    for (dtype, tf32), limit in LIMITS.items():
        note = ", TF32 convolutions (torch's default)" if tf32 else ""
        name = f"edit in {dtype} against the CPU's in float32{note}"
        if not options.cuda and (tf32 or dtype == "float16"):  # a CPU takes long for it
            report.skip(name, "needs CUDA")
            continue

        def compared(
            name: str = name, dtype: str = dtype, tf32: bool = tf32, limit: float = limit
        ) -> None:
            torch.backends.cudnn.allow_tf32 = tf32
            try:
                found = _painted(options, options.device, getattr(torch, dtype))
            finally:
                torch.backends.cudnn.allow_tf32 = False
            difference = 255 * (found - _references[options]).abs()
            worst = f"{len(found)} edits, largest difference {difference.max().item():.3g}"
            report.check(name, difference.mean().item(), limit, "levels", worst)

        report.attempt(name, compared)
    for dtype, limit in FULL_SIZE_LIMITS.items():
        name = f"edit of a random model of the published size in {dtype} against the CPU's"
        if not options.cuda and dtype == "float16":
            report.skip(name, "needs CUDA")
            continue

        def held(name: str = name, dtype: str = dtype, limit: float = limit) -> None:
            model, expected = _full_size[options]
            moved = copy.deepcopy(model).to(options.on, getattr(torch, dtype))
            difference = 255 * (_paint_with(moved, options) - expected).abs()
            worst = f"largest difference {difference.max().item():.3g}"
            report.check(name, difference.mean().item(), limit, "levels", worst)

        report.attempt(name, held)
        free()
    del _full_size[options]


def _paint_with(model: PaintByExample, options: Options) -> Tensor:
    """Two steps on a small crop of the first scene, `(1, h, w, 3)` in [0, 1]."""
    scene = load_scenes()[0]
    crop = CropSettings(resolution=None if options.small else FULL_SIZE_SIDE)
    result = edit(model, scene.photo, scene.hole_mask, scene.exemplar, steps=2, crop=crop)
    return result.crops.float().cpu()


def _painted(options: Options, device: str, dtype: torch.dtype) -> Tensor:
    """What the bundled model paints of the first scenes, `(N, h, w, 3)` in [0, 1]."""
    model = PaintByExample.from_checkpoint(device=device, dtype=dtype)
    scenes = load_scenes()[: 1 if options.small else 3]
    edits = [
        edit(model, s.photo, s.hole_mask, s.exemplar, exemplar_mask=s.exemplar_mask,
             steps=6 if options.small else 20)
        for s in scenes
    ]  # fmt: skip
    return torch.cat([result.crops for result in edits]).float()
