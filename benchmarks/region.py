"""What a 400-pixel hole costs in a 640 x 480 and in a 2048 x 1536 photo, here and in diffusers.

`edit` crops around the hole, so the photo's size should cost nothing but the reading and writing
of its pixels. diffusers' pipeline, like the nodes that wrap it, runs the denoiser on the whole
photo. It gets networks of the bundled model's size with random weights: cost does not depend on
them, and its classes cannot hold the bundled ones. It makes single evaluations of smaller photos:
at 640 x 480 one took more than a minute, and at 2048 x 1536 the largest self-attention has 105
times as many pairs of pixels.

    python -m benchmarks.region [--runs 5] [--steps 20]

Runs are interleaved, and the table shows medians. Two cores, about two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PaintByExamplePipeline, PNDMScheduler
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import (
    PaintByExampleImageEncoder,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig

from benchmarks.gpu.speed import peer_unet
from pbe_model import PaintByExample, PBEConfig, edit
from pbe_model.image_io import read_image, read_mask, write_image

SMALL, LARGE = (640, 480), (2048, 1536)  # width, height
HOLE = 400
PEER_SIZES = [(256, 192), (384, 288)]


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description="Cost of a hole by the size of its photo.")
    parser.add_argument("--runs", type=int, default=5, help="of each case [%(default)s]")
    parser.add_argument("--steps", type=int, default=20, help="of our edit [%(default)s]")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    model = PaintByExample.from_checkpoint()
    exemplar = torch.rand(200, 200, 3)
    with tempfile.TemporaryDirectory() as folder:
        files = {size: write_case(Path(folder), size) for size in (SMALL, LARGE)}
        pictures = {size: (read_image(a), read_mask(b)) for size, (a, b) in files.items()}

        def painting(size: tuple[int, int]) -> None:
            edit(model, *pictures[size], exemplar, steps=args.steps)

        def files_only(size: tuple[int, int]) -> None:
            photo, mask = files[size]
            read_mask(mask)
            write_image(Path(folder) / "out.png", read_image(photo))

        ours = interleaved([painting, files_only], [SMALL, LARGE], args.runs)

    pipe = peer(model.config)

    def whole_photo(size: tuple[int, int]) -> None:
        photo, hole = (Image.fromarray(array) for array in case(size))
        example = photo.resize((200, 200))
        # One step of PNDM is one evaluation with guidance.
        pipe(image=photo, mask_image=hole, example_image=example, num_inference_steps=1)

    theirs = interleaved([whole_photo], PEER_SIZES, 1)

    small, large = ours[painting, SMALL], ours[painting, LARGE]
    print(f"{'':44}{'640 x 480':>12}{'2048 x 1536':>14}{'ratio':>8}")
    row = "{:44}{:>10.2f} s{:>12.2f} s{:>8.2f}"
    print(row.format(f"edit, {args.steps} steps, {HOLE} px hole", small, large, large / small))
    files_small, files_large = ours[files_only, SMALL], ours[files_only, LARGE]
    print(row.format("reading and writing", files_small, files_large, files_large / files_small))
    print(row.format("both", small + files_small, large + files_large,
                     (large + files_large) / (small + files_small)))  # fmt: skip
    print()
    for (width, height), seconds in ((size, theirs[whole_photo, size]) for size in PEER_SIZES):
        print(
            f"diffusers, whole photo of {width} x {height}, one evaluation: {seconds:.2f} s, "
            f"{seconds / (small / args.steps):.0f} times one of our steps"
        )


def interleaved(
    jobs: list[Callable[[tuple[int, int]], None]], sizes: list[tuple[int, int]], runs: int
) -> dict[tuple[Callable[[tuple[int, int]], None], tuple[int, int]], float]:
    """Median seconds of each job at each size, after one run that does not count."""
    times = {(job, size): [] for job in jobs for size in sizes}
    for run in range(runs + 1):
        for (job, size), seconds in times.items():
            start = time.perf_counter()
            job(size)
            if run:
                seconds.append(time.perf_counter() - start)
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def case(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Photo and hole mask of 8 bits; a smooth photo, since noise would make PNG files slow."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    photo = np.stack([x * 255 // width, y * 255 // height, (x + y) // 8 % 256], -1)
    hole = np.zeros((height, width), np.uint8)
    top, left = (height - HOLE) // 2, (width - HOLE) // 2
    hole[max(0, top) : top + HOLE, max(0, left) : left + HOLE] = 255
    return photo.astype(np.uint8), hole


def write_case(folder: Path, size: tuple[int, int]) -> tuple[Path, Path]:
    """Files of `case`."""
    paths = folder / f"photo{size[0]}.png", folder / f"mask{size[0]}.png"
    for path, array in zip(paths, case(size), strict=True):
        Image.fromarray(array).save(path)
    return paths


def peer(config: PBEConfig) -> PaintByExamplePipeline:
    """diffusers' pipeline with random networks of these sizes."""
    unet, vae, tower = config.unet, config.vae, config.exemplar
    levels = len(vae.ch_mult)
    encoder = CLIPVisionConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=4 * tower.hidden_size,
        num_hidden_layers=tower.num_layers,
        num_attention_heads=tower.num_heads,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
    )
    square = {"height": tower.image_size, "width": tower.image_size}
    pipe = PaintByExamplePipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(vae.ch * m for m in vae.ch_mult),
            layers_per_block=vae.num_res_blocks,
            latent_channels=vae.z_channels,
        ),
        image_encoder=PaintByExampleImageEncoder(encoder, proj_size=unet.context_dim),
        unet=peer_unet(config),
        scheduler=PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size=square, crop_size=square),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    main()
