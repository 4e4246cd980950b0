"""Stage two: train the denoiser and its image condition (arXiv 2211.13227, section 3).

At official size the first stage and CLIP's tower stay frozen. The bundled model trains its small
tower along.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pbe_model.checkpoints import load as checkpoint
from pbe_model.checkpoints.clip_tower import PUBLISHED, load_tower
from pbe_model.checkpoints.infer_config import METADATA_KEY, infer_config
from pbe_model.config import CONFIGS, PBEConfig, ScheduleConfig
from pbe_model.editing.denoise import InpaintInputs, guided
from pbe_model.model import PaintByExample
from pbe_model.networks.exemplar_encoder import normalise
from pbe_model.networks.layers import BasicTransformerBlock, ResBlock, SpatialTransformer
from pbe_model.networks.unet import UNet
from pbe_model.networks.vae import AutoencoderKL
from pbe_model.sampling.samplers import sample
from pbe_model.sampling.schedule import NoiseSchedule
from training.config import RunConfig
from training.data.dataset import BoxDataset, Stream, collate, keyed_rng
from training.demo.recipes import endless
from training.demo.textures import Textures
from training.picture_grid import Pictures
from training.stages.latents import AT_ONCE, LatentBank, LatentEncoder, LatentPool, latent_shape
from training.stages.lora import add_lora
from training.stages.loss import DiffusionLoss

_VALIDATION = 64  # held-out samples that the validation loss is taken over
_SIMILARITIES = (1.0, 3.0)  # of the pictures in the log


class Diffusion:
    """Data, loss, validation and pictures of the second stage; the loop is in `training.loop`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.run = config
        self.device = device
        self.model = starting_model(config)
        freeze(self.model, config)
        self.model.to(device)
        # The layout that 16-bit convolutions are fast in; a CPU's group normalisation is not.
        if config.precision != "no" and device.type == "cuda":
            self.model.unet.to(memory_format=torch.channels_last)
        sizes = self.model.config
        self.num_timesteps = sizes.schedule.num_timesteps
        data = config.data
        variants = data.geometry_variants
        shared = {
            "resolution": sizes.resolution,
            "exemplar_size": sizes.exemplar.image_size,
            "seed": config.seed,
            "exemplar": data.exemplar,
            "geometry": data.geometry,
            "report": config.out / "unreadable.txt",
        }
        self._held_out = BoxDataset(data.root, data.val_index, shuffle=False, **shared)
        self._encoder = LatentEncoder(self.model.vae, device)
        self._bank: LatentBank | LatentPool | None = None
        self._textures: Textures | None = None
        if data.source == "composites":
            recipes, self._textures = endless(
                data.root,
                data.composites,
                data.geometry,
                size=sizes.resolution,
                seed=config.seed,
                device=device,
            )
            self.model.vae.to(memory_format=torch.channels_last)
            encoder = LatentEncoder(self.model.vae, device, at_once=2 * LatentPool.GROUP)
            workers = -(-data.workers // 4)
            self._bank = LatentPool(recipes, self._textures, encoder, config.batch_size, workers)
            samples: Dataset[dict[str, Any]] = recipes
            self.data_digest = ""
        else:
            photos = BoxDataset(
                data.root,
                data.index,
                sample=data.sample,
                recolour=data.recolour,
                geometry_variants=variants,
                with_image=variants is None,
                **shared,
            )
            if variants is not None:
                self._bank = LatentBank(config.out / "latents", photos, self._encoder)
            samples, self.data_digest = photos, photos.index.digest
        self.dataset = Noised(
            samples,
            latent_shape(sizes),
            self.num_timesteps,
            config,
            posterior=self._bank is None,
        )
        self.module = diffusion_loss(self.model, self.model.schedule, config).to(device)
        if config.compile:
            compile_blocks(self.model.unet)

    @property
    def bank(self) -> LatentBank | None:
        """Latents that are encoded before the first update."""
        return self._bank if isinstance(self._bank, LatentBank) else None

    def batch(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loss takes, from what the loader yields."""
        if self._bank is not None:
            encoded = self._bank(loaded["cache_key"])
        else:
            posterior = loaded["posterior"].transpose(0, 1)  # (2, B, z, r, r)
            encoded = self._encoder.encode(loaded["image"], loaded["hole_mask"], posterior)
        drawn = {
            name: loaded[name].to(self.device, non_blocking=True)
            for name in ("noise", "timestep", "drop")
        }
        return {**encoded, **self._exemplars(loaded), **drawn}

    def _exemplars(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._textures is None:
            return {"exemplar": loaded["exemplar"].to(self.device, non_blocking=True)}
        side = self.model.config.exemplar.image_size
        exemplar, silhouette = self._textures.draw(loaded["exemplar_layers"], side)
        return {"exemplar": exemplar, "silhouette": silhouette}

    def _validation(self, first: int, count: int) -> dict[str, Tensor]:
        return collate([self._held_out[i] for i in range(first, first + count)])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on held-out samples with fixed noise, at timesteps spread evenly."""
        losses = []
        count = min(_VALIDATION, len(self._held_out))
        for first in range(0, count, 16):
            loaded = self._validation(first, min(16, count - first))
            encoded = self._encoder.encode(loaded["image"], loaded["hole_mask"])
            rng = keyed_rng(self.run.seed, first, Stream.VALIDATION)
            noise = rng.standard_normal(tuple(encoded["latent"].shape), np.float32)
            batch = len(noise)
            spread = (torch.arange(batch) * 2 + 1) * self.model.config.schedule.num_timesteps
            values = self.module(
                {
                    **encoded,
                    "exemplar": loaded["exemplar"].to(self.device),
                    "noise": torch.from_numpy(noise).to(self.device),
                    "timestep": (spread // (2 * batch)).to(self.device),
                    "drop": torch.zeros(batch, dtype=torch.bool, device=self.device),
                }
            )
            losses.append(values["eps_mse"])
        return {"val_eps_mse": float(torch.stack(losses).mean())}

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Photo, hole, exemplar, and edits at similarity 1 and 3, of two samples in a row."""
        loaded = self._validation(0, min(8, len(self._held_out)))
        image = loaded["image"].to(self.device)
        encoded = self._encoder.encode(image, (loaded["hole_mask"] > 0.5).float())
        inputs = InpaintInputs(**encoded)
        context = self.model.encoder(normalise(loaded["exemplar"].to(self.device)))
        rng = keyed_rng(self.run.seed, 0, Stream.PICTURES)
        noise = torch.from_numpy(rng.standard_normal(tuple(encoded["latent"].shape), np.float32))
        edits = [
            self.model.decode(
                sample(
                    "dpmpp_2m",
                    guided(self.model, inputs, context, similarity),
                    noise.to(self.device),
                    self.model.schedule,
                    16,
                )
            )
            for similarity in _SIMILARITIES
        ]
        size = image.shape[-2:]
        exemplar = nn.functional.interpolate(loaded["exemplar"].to(image), size) * 2 - 1
        hole = image * (loaded["hole_mask"] <= 0.5).to(image)
        rows = torch.stack([image, hole, exemplar, *edits], dim=1)  # (B, 5, 3, R, R)
        titles = ("photo", "hole", "exemplar", *(f"similarity {x:g}" for x in _SIMILARITIES))
        return Pictures(images=rows.flatten(0, 1), titles=2 * titles)


class Noised(Dataset[dict[str, Any]]):
    """Samples with what the loss draws for each from its number.

    It is drawn where samples are made, by the loader's processes: a graphics card would wait for
    it.

    Args:
        samples: With their `index`.
        shape: Of a latent, `(z, h, w)`.
        num_timesteps: Of the schedule.
        config: The run's.
        posterior: Whether pictures will be encoded with noise of their own.
    """

    def __init__(
        self,
        samples: Dataset[dict[str, Any]],
        shape: tuple[int, int, int],
        num_timesteps: int,
        config: RunConfig,
        *,
        posterior: bool,
    ) -> None:
        self.samples = samples
        self.shape = shape
        self.num_timesteps = num_timesteps
        self.seed = config.seed
        self.loss = config.loss
        self.posterior = posterior

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        """A sample, its `timestep`, whether its condition is dropped (`drop`), and `noise`."""
        rng = keyed_rng(self.seed, sample_index, Stream.NOISE)
        timestep = self._timestep(rng)
        drop = rng.random() < self.loss.drop_condition
        noise = rng.standard_normal(self.shape, np.float32)
        offset = rng.standard_normal((self.shape[0], 1, 1), np.float32)
        drawn: dict[str, Any] = {
            "timestep": timestep,
            "drop": drop,
            "noise": noise + self.loss.offset_noise * offset,
        }
        if self.posterior:
            drawn["posterior"] = rng.standard_normal((2, *self.shape), np.float32)
        return {**self.samples[sample_index], **drawn}

    def _timestep(self, rng: np.random.Generator) -> int:
        shift, drawn = self.loss.timestep_shift, rng.integers(self.num_timesteps)
        if shift == 1:
            return int(drawn)
        uniform = (drawn + 0.5) / self.num_timesteps
        return int(self.num_timesteps * shift * uniform / (1 + (shift - 1) * uniform))


def diffusion_loss(
    model: PaintByExample, schedule: NoiseSchedule, config: RunConfig
) -> DiffusionLoss:
    """The loss of a run, over the denoiser and the exemplar encoder of `model`."""
    settings = config.loss
    return DiffusionLoss(
        model.unet,
        model.encoder,
        schedule,
        settings.min_snr,
        settings.v_weight,
        settings.thumbnail_weight,
        settings.thumbnail_side,
        settings.keep_weight,
        compiled=config.compile or config.cuda_graphs,
    )


def loss_modules(
    config: RunConfig, sizes: PBEConfig, schedule: NoiseSchedule
) -> tuple[DiffusionLoss, AutoencoderKL]:
    """A run's loss and its frozen first stage with fresh weights: no file is opened."""
    model = PaintByExample(sizes)
    freeze(model, config)
    return diffusion_loss(model, schedule, config), model.vae


def empty_batch(
    config: RunConfig, sizes: PBEConfig, vae: AutoencoderKL, batch: int
) -> dict[str, Tensor]:
    """What `Diffusion.batch` gives, with nothing in it: encoded, or as from a bank of latents."""
    latent = (batch, *latent_shape(sizes))
    if config.data.geometry_variants is None:
        with torch.no_grad():
            vae.encode(torch.empty(AT_ONCE, 3, sizes.resolution, sizes.resolution))
    return {
        "latent": torch.empty(latent),
        "masked_latent": torch.empty(latent),
        "keep_mask": torch.empty(batch, 1, *latent[2:]),
        "exemplar": torch.empty(batch, 3, *[sizes.exemplar.image_size] * 2),
        "noise": torch.empty(latent),
        "timestep": torch.empty(batch, dtype=torch.int64),
        "drop": torch.empty(batch, dtype=torch.bool),
    }


def freeze(model: PaintByExample, config: RunConfig) -> None:
    """Leave trainable what a run trains, and put its adapters in."""
    model.vae.requires_grad_(False)
    if not config.train_tower:
        model.encoder.cond_stage_model.transformer.requires_grad_(False)
    if config.tokens == "class":
        # They get no gradient; data-parallel training would wait for it.
        for _, parameter in model.unet.inert_parameters():
            parameter.requires_grad_(False)
    if config.lora.rank:
        add_lora(model, config.lora)
    model.unet.gradient_checkpointing = config.gradient_checkpointing


def starting_model(config: RunConfig) -> PaintByExample:
    """The model of `starting_point`."""
    model, _ = starting_point(config)
    return model


def starting_point(config: RunConfig) -> tuple[PaintByExample, list[str]]:
    """Fresh weights, and those of `config.init` for the parts that it holds.

    That may be a first stage, a checkpoint of Stable Diffusion, or a whole model.

    Returns:
        The model, and which of its parts `init` held.

    Raises:
        ValueError: No `init`, or one that does not fit.
    """
    if config.init is None:
        raise ValueError(
            "the diffusion stage needs a trained first stage; set init to its exported file "
            "(for the demo: run `pbe-train train demo-first-stage` first), or to a checkpoint of "
            "Stable Diffusion 1.4 or of Paint by Example"
        )
    if not config.init.exists():
        raise ValueError(
            f"no checkpoint at {config.init}, which init names; fetch the published weights with "
            "pbe download --out models --dtype fp32, name another file with --init FILE, or take "
            "the configuration demo-finetune, which needs none"
        )
    file = checkpoint.starting_point(checkpoint.read(config.init))
    tensors = {n: t for n, t in file.tensors.items() if _part_of(n) in config.init_parts}
    sizes = CONFIGS[config.model]
    if METADATA_KEY in file.metadata:
        found = infer_config(file.tensors, file.metadata)
        denoises = any(name.startswith(checkpoint.PARTS["unet"]) for name in tensors)
        if "learnable_vector" in tensors:
            sizes = found
            if denoises:
                _check_schedule(config, found.schedule)
        elif denoises:
            sizes = replace(sizes, unet=found.unet, vae=found.vae, resolution=found.resolution)
        else:  # a first stage alone says nothing of the denoiser
            sizes = replace(sizes, vae=found.vae)
    schedule = replace(
        sizes.schedule,
        prediction=config.loss.prediction,
        zero_terminal_snr=config.loss.zero_terminal_snr,
    )
    torch.manual_seed(config.seed)
    model = PaintByExample(replace(sizes, tokens=config.tokens, schedule=schedule))
    initialise(model.unet, identity=config.loss.prediction == "epsilon")
    found = checkpoint.load_parts(model, tensors, file.path)
    if config.init_tower is not None:
        load_tower(model, config.init_tower)
    elif "encoder" not in found and not config.train_tower:
        raise ValueError(
            f"{file.path} has no image tower, which would stay as random as it starts: set "
            f"init_tower to {PUBLISHED}, or train_tower to true"
        )
    return model, found


def _check_schedule(config: RunConfig, found: ScheduleConfig) -> None:
    """A trained denoiser would have to learn anew what it predicts."""
    for name in ("prediction", "zero_terminal_snr"):
        trained, asked = getattr(found, name), getattr(config.loss, name)
        if trained != asked:
            raise ValueError(
                f"the denoiser of {config.init} was trained with {name} {trained!r}, but "
                f"loss.{name} is {asked!r}; set it to {json.dumps(trained)}"
            )


def _part_of(name: str) -> str:
    """The part of the model, of `checkpoint.PARTS`, that a tensor belongs to."""
    starts = {part: start for part, start in checkpoint.PARTS.items() if start}
    return next((part for part, start in starts.items() if name.startswith(start)), "encoder")


def compile_blocks(unet: UNet) -> None:
    """Compile the denoiser for the device at its first use, block by block.

    Blocks of one shape share the result, so it takes a fraction of the time of the whole network.
    """
    from torch._dynamo import config as settings  # seconds: only where used

    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, name, max(64, getattr(settings, name)))  # a large one has more shapes than 8
    for module in unet.modules():
        if isinstance(module, ResBlock | SpatialTransformer):
            module.compile(dynamic=False)


@torch.no_grad()
def initialise(unet: UNet, *, identity: bool = True) -> None:
    """Start residual branches at zero, as the official code does, and the whole as the identity.

    Without `identity` the whole starts at zero, the best linear guess of v.

    At the noisiest timesteps the noise is almost the input, and what the network has to say is the
    small difference. Learning to repeat its input to a percent takes thousands of updates, so the
    noisy latent is handed on from the start: through the first convolution, the outermost skip
    connection and the output, as pairs x and -x, because silu(x) - silu(-x) = x.
    """
    for module in unet.modules():
        last = None
        if isinstance(module, ResBlock):
            last = module.out_layers[-1]
        elif isinstance(module, SpatialTransformer):
            last = module.proj_out
        elif isinstance(module, UNet):
            last = module.out[-1]
        if isinstance(last, nn.Conv2d):
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        if isinstance(module, BasicTransformerBlock):
            # Two linear layers in a row, which would hand on a third of a token's variance each.
            for linear in (module.attn2.to_v, *module.attn2.to_out.children()):
                if isinstance(linear, nn.Linear):
                    linear.weight.mul_(3**0.5)

    if not identity:
        return
    first = next(unet.input_blocks[0].children())
    skip = next(unet.output_blocks[-1].children()).skip_connection
    out = unet.out[-1]
    assert isinstance(first, nn.Conv2d) and isinstance(skip, nn.Conv2d)
    assert isinstance(out, nn.Conv2d) and first.bias is not None and skip.bias is not None
    passed = skip.in_channels - first.out_channels  # the skip is what comes last in the block
    for channel in range(unet.config.out_channels):
        # Both of a pair lie in one group of the normalisation, which then keeps the mean.
        for row, sign in ((2 * channel, 1.0), (2 * channel + 1, -1.0)):
            for layer in (first, skip):
                layer.weight[row] = 0
                nn.init.zeros_(layer.bias[row : row + 1])  # pyright: ignore[reportOptionalSubscript]
            first.weight[row, channel, 1, 1] = sign
            skip.weight[row, passed + row] = 1
            out.weight[channel, row, 1, 1] = sign
