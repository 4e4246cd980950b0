"""Denoisers of the bundled model against each other, for the same time and on the same samples.

    python -m benchmarks.variants --data data/demo --model FILE [--seconds 1200] [--only NAME ...]

First stage and exemplar encoder are those of `--model`, frozen: their latents and tokens are made
once. Each variant then starts from nothing and is trained for the same time, on composites as
`pbe-train train bundled` sees them. It is judged on others by the error of the clean latent inside
the hole: at pure noise, where the exemplar alone decides what appears, and at the middle timestep.

To say what such an error means, the same is printed for the true photo whose hole was shrunk to few
pixels: a variant that is as far off as 4 pixels knows some colours and no outline.

Time is that of the processors on a CPU (over the threads), so that other work on the machine counts
little, and the clock's on a card. Half an hour of two cores for each variant at 1200 seconds.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pbe_model import PaintByExample
from pbe_model.config import DEMO, ScheduleConfig, UNetConfig
from pbe_model.networks.exemplar_encoder import normalise
from pbe_model.networks.masked_inputs import unet_input
from pbe_model.networks.unet import UNet
from pbe_model.networks.vae import AutoencoderKL
from pbe_model.sampling.schedule import NoiseSchedule
from training.config import load_config
from training.demo.recipes import Recipes, endless
from training.stages.diffusion import initialise
from training.stages.graphs import Graph
from training.stages.latents import LatentEncoder
from training.stages.loss import hole_mean

EXEMPLARS = 4
"""Exemplars of each photo."""
HELD = 256
"""Photos for the judgement, never trained on."""
TIMESTEPS = (999, 400)
"""Of the judgement: pure noise, where the exemplar alone says what appears, and the middle."""
SCHEDULE = ScheduleConfig(prediction="v", zero_terminal_snr=True)

_AT_ONCE = 32


def _sizes(channels: int, mult: tuple[int, ...], attention: tuple[int, ...], blocks: int = 1):
    return replace(
        DEMO.unet,
        model_channels=channels,
        channel_mult=mult,
        attention_resolutions=attention,
        num_res_blocks=blocks,
    )


FOUR_LEVELS = DEMO.unet
"""What the variants are compared with."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is varied.

    Attributes:
        unet: Sizes.
        lr: Learning rate.
        batch: Samples of an update.
        noisy: Timesteps are drawn as `1000 * u ** noisy` with u uniform: below 1 favours noise.
        muon: Whether matrices are updated by Muon, the rest by AdamW, instead of all by AdamW.
        whitened: Whether tokens are turned so that all of their directions vary alike.
    """

    unet: UNetConfig = FOUR_LEVELS
    lr: float = 1e-3
    batch: int = 32
    noisy: float = 1.0
    muon: bool = False
    whitened: bool = False


VARIANTS = {
    "four levels": Variant(),
    "noisier timesteps": Variant(noisy=0.5),
    "rate 2e-3": Variant(lr=2e-3),
    "batch 64": Variant(batch=64, lr=1.4e-3),
    "Muon": Variant(muon=True),
    "whitened tokens": Variant(whitened=True),
    "two blocks a level": Variant(unet=_sizes(64, (1, 2, 2, 2), (2, 4, 8), 2)),
    "down to 1": Variant(unet=_sizes(64, (1, 2, 2, 2, 2), (4, 8, 16))),
    "down to 1, wide there": Variant(unet=_sizes(64, (1, 2, 2, 2, 4), (8, 16))),
    "down to 1, wide inside": Variant(unet=_sizes(64, (1, 1, 2, 4, 4), (16,))),
    "three levels": Variant(unet=_sizes(128, (1, 1, 1), (2, 4))),
    "wide inside": Variant(unet=_sizes(64, (1, 2, 2, 3), (2, 4, 8))),
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Photos and exemplars as the denoiser sees them, in bfloat16.

    Attributes:
        latent: `(N, z, h, w)`, scaled.
        masked: The same of the photos with grey holes.
        keep: `(N, 1, h, w)`, 1 = keep.
        token: `(N, EXEMPLARS, 1, D)`.
    """

    latent: Tensor
    masked: Tensor
    keep: Tensor
    token: Tensor

    def split(self, held: int) -> tuple[Samples, Samples]:
        """All but the last `held` photos, and these."""
        parts = [(t[:-held], t[-held:]) for t in vars(self).values()]
        names = list(vars(self))
        first, last = ({n: p[i] for n, p in zip(names, parts, strict=True)} for i in (0, 1))
        return Samples(**first), Samples(**last)

    def batch(
        self, photo: Tensor, which: Tensor, timestep: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Of these photos with these of their exemplars, at these timesteps, all `(B,)`."""
        latent = self.latent[photo]
        noise = torch.randn(latent.shape, generator=generator, device=latent.device)
        return {
            "latent": latent,
            "masked": self.masked[photo],
            "keep": self.keep[photo],
            "token": self.token[photo, which],
            "timestep": timestep,
            "noise": noise,
        }


def main() -> None:
    """Train each variant and print a table."""
    parser = argparse.ArgumentParser(description="Variants of the bundled model's denoiser.")
    parser.add_argument("--data", type=Path, required=True, help="of `pbe-train prepare demo`")
    parser.add_argument("--model", type=Path, help="a checkpoint [the bundled model]")
    parser.add_argument("--seconds", type=float, default=1200, help="of training each [1200]")
    parser.add_argument("--photos", type=int, default=3072, help="that samples are made of [3072]")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--times", type=int, default=1, help="batches so many times as large [1]")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    model = PaintByExample.from_checkpoint(args.model, device=args.device)
    training, held = make_samples(model, args.data, args.photos + HELD).split(HELD)
    for side in (16, 8, 4, 2):
        print(f"as a hole of {side} pixels: {shrunk_error(model.vae, held, side):.3f}", flush=True)
    print(
        "\n| variant | parameters | samples a second | pure noise | ... on trained photos "
        "| ... wrong exemplar | middle |\n|---|---|---|---|---|---|---|"
    )
    whitening = Whitening(training.token)
    for name in args.only:
        variant = replace(VARIANTS[name], batch=VARIANTS[name].batch * args.times)
        sets = [training, held]
        if variant.whitened:
            sets = [replace(s, token=whitening(s.token)) for s in sets]
        try:
            found = row(variant, sets[0], sets[1], args.seconds)
        except Exception as error:  # the others are worth having
            found = repr(error)
        print(f"| {name} | {found} |", flush=True)


# ---- samples -----------------------------------------------------------------------------------


@torch.no_grad()
def make_samples(model: PaintByExample, root: Path, count: int) -> Samples:
    """Encode `count` composites with `EXEMPLARS` exemplars each."""
    config = load_config("bundled").data
    device = next(model.parameters()).device
    size, exemplar_size = model.config.resolution, model.config.exemplar.image_size
    recipes, textures = endless(
        root, config.composites, config.geometry, size=size, seed=7, device=device
    )
    encoder = LatentEncoder(model.vae, device, at_once=2 * _AT_ONCE)
    parts: dict[str, list[Tensor]] = {"latent": [], "masked": [], "keep": [], "token": []}
    loader = DataLoader(
        _Drawn(recipes, count), batch_size=_AT_ONCE, num_workers=max(0, (os.cpu_count() or 1) - 2)
    )
    for photo_layers, hole, exemplar_layers in loader:
        photo = textures.draw(photo_layers, size)[0]
        exemplars = textures.draw(exemplar_layers.flatten(0, 1), exemplar_size)[0]
        with torch.autocast(device.type, torch.bfloat16):
            encoded = encoder.encode(photo * 2 - 1, hole.to(device).float() / 255)
            token = model.encoder(normalise(exemplars))
        parts["latent"].append(encoded["latent"].bfloat16())
        parts["masked"].append(encoded["masked_latent"].bfloat16())
        parts["keep"].append(encoded["keep_mask"].bfloat16())
        parts["token"].append(token.bfloat16().unflatten(0, (len(photo), EXEMPLARS)))
    return Samples(**{name: torch.cat(tensors) for name, tensors in parts.items()})


class _Drawn(Dataset[tuple[np.ndarray, ...]]):
    """Layers of a photo `(3, ROW)`, its hole `(1, R, R)`, layers of exemplars `(E, 2, ROW)`."""

    def __init__(self, recipes: Recipes, count: int) -> None:
        self.recipes = recipes
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[np.ndarray, ...]:
        layers, hole = self.recipes.photo(number)
        first = number * EXEMPLARS
        exemplars = [self.recipes.exemplar(number, first + k) for k in range(EXEMPLARS)]
        return layers, hole[None], np.stack(exemplars)


class Whitening:
    """The linear map after which all directions of tokens have the same spread.

    Those that vary by less than a hundredth of the widest count as noise and are not widened more.

    Args:
        token: `(..., D)`, many.
        spread: Root mean square of what comes out.
    """

    def __init__(self, token: Tensor, spread: float = 0.5) -> None:
        flat = token.float().flatten(0, -2)
        self.mean = flat.mean(dim=0)
        values, vectors = torch.linalg.eigh((flat - self.mean).T.cov())
        deviations = values.clamp(min=0).sqrt()
        widest = deviations.max()
        matrix = vectors / deviations.clamp(min=0.01 * widest) @ vectors.T
        self.matrix = matrix * spread / ((flat - self.mean) @ matrix).std()

    def __call__(self, token: Tensor) -> Tensor:
        """The same shape and type."""
        return ((token.float() - self.mean) @ self.matrix).to(token.dtype)


# ---- training ----------------------------------------------------------------------------------


def row(variant: Variant, training: Samples, held: Samples, seconds: float) -> str:
    """Train a variant for so long, judge it, and give its row of the table."""
    torch.manual_seed(0)
    device = training.latent.device
    unet = UNet(variant.unet)
    initialise(unet, identity=False)
    unet.to(device).to(memory_format=torch.channels_last)
    loss = Loss(unet, NoiseSchedule.linear(SCHEDULE), weight=0.1).train()
    optimizers = _optimizers(variant, unet)
    generator = torch.Generator(device).manual_seed(1)
    passes = (
        Graph(loss, _batch(variant, training, generator), "bf16") if device.type == "cuda" else None
    )
    updates, clock = 0, Clock(device)
    while (spent := clock.seconds()) < seconds:
        # Down to nothing at the end, so that variants are not compared by the noise of their rate.
        rate = variant.lr * min((updates + 1) / 50, 1 - spent / seconds)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
        batch = _batch(variant, training, generator)
        if passes is not None:
            passes(batch)
        else:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        updates += 1
    speed = updates * variant.batch / clock.seconds()
    parameters = sum(p.numel() for p in unet.parameters()) / 1e6
    noise, middle = TIMESTEPS
    figures = (
        judge(loss, held, noise),
        judge(loss, training.split(HELD)[1], noise),
        judge(loss, held, noise, shift=1),
        judge(loss, held, middle),
    )
    return " | ".join([f"{parameters:.1f} M", f"{speed:.0f}", *(f"{x:.3f}" for x in figures)])


def _batch(variant: Variant, training: Samples, generator: torch.Generator) -> dict[str, Tensor]:
    device, size = training.latent.device, (variant.batch,)
    photo = torch.randint(len(training.latent), size, generator=generator, device=device)
    which = torch.randint(EXEMPLARS, size, generator=generator, device=device)
    uniform = torch.rand(size, generator=generator, device=device)
    timestep = (1000 * uniform**variant.noisy).long().clamp(max=999)
    return training.batch(photo, which, timestep, generator)


def _optimizers(variant: Variant, unet: UNet) -> list[torch.optim.Optimizer]:
    matrices = [p for p in unet.parameters() if variant.muon and p.ndim == 2]
    rest = [p for p in unet.parameters() if not (variant.muon and p.ndim == 2)]
    options = {"lr": variant.lr, "betas": (0.9, 0.99), "weight_decay": 0.01}
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, **options)]
    if matrices:
        # Its updates are rescaled to the size of AdamW's, so that the rate can stay.
        found.append(torch.optim.Muon(matrices, lr=variant.lr, adjust_lr_fn="match_rms_adamw"))
    return found


class Clock:
    """Seconds of training: of the processors, over the threads, or of a card's clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def seconds(self) -> float:
        """Since the clock was made."""
        return self._now() - self._start


class Loss(nn.Module):
    """Mean squared error of v, with `weight` outside the hole and 1 inside."""

    def __init__(self, unet: UNet, schedule: NoiseSchedule, weight: float) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = schedule
        self.weight = weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss`, of a batch of `Samples.batch`."""
        return {"loss": self.errors(batch, self.weight).mean()}

    def errors(self, batch: dict[str, Tensor], weight: float) -> Tensor:
        """The same `(B,)`, with another weight."""
        latent, keep, noise = (batch[name].float() for name in ("latent", "keep", "noise"))
        noisy = self.schedule.add_noise(latent, noise, batch["timestep"])
        x = unet_input(noisy, batch["masked"].float(), keep)
        with torch.autocast(latent.device.type, torch.bfloat16, cache_enabled=False):
            predicted = self.unet(x, batch["timestep"], batch["token"])
        error = predicted.float() - self.schedule.target(latent, noise, batch["timestep"])
        return hole_mean(error.square(), keep, weight)


@torch.no_grad()
def judge(loss: Loss, held: Samples, timestep: int, *, shift: int = 0) -> float:
    """Error of the clean latent in the hole, with the exemplars of the photo `shift` further on."""
    device = held.latent.device
    generator = torch.Generator(device).manual_seed(2)
    if shift:
        held = replace(held, token=held.token.roll(shift, dims=0))
    found = []
    for photo in torch.arange(len(held.latent), device=device).split(_AT_ONCE):
        first, steps = torch.zeros_like(photo), torch.full_like(photo, timestep)
        found.append(loss.errors(held.batch(photo, first, steps, generator), weight=0.0))
    # A clean latent is sqrt(a) * noisy - sqrt(1 - a) * v.
    return float(torch.cat(found).mean() * (1 - loss.schedule.alphas_cumprod[timestep]))


@torch.no_grad()
def shrunk_error(vae: AutoencoderKL, held: Samples, side: int) -> float:
    """Error of the latent in the hole if the photo's holes had `side` pixels across."""
    scale, found = vae.config.scale_factor, []
    for latent, keep in zip(held.latent.split(_AT_ONCE), held.keep.split(_AT_ONCE), strict=True):
        latent, keep = latent.float(), keep.float()
        photo = vae.decode(latent / scale)
        size = photo.shape[-1]
        hole = F.interpolate(1 - keep, size=size, mode="bilinear")
        # A hole is half as wide as its photo, about.
        small = F.interpolate(photo, size=2 * side, mode="area")
        coarse = F.interpolate(small, size=size, mode="bicubic").clamp(-1, 1)
        encoded = vae.encode(photo * (1 - hole) + coarse * hole).mean * scale
        found.append(hole_mean((encoded - latent).square(), keep, 0.0))
    return float(torch.cat(found).mean())


if __name__ == "__main__":
    main()
