"""What training the published size costs at 512 pixels, and whether that is what was planned."""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.clock import interleaved, matmul_rate, milliseconds
from benchmarks.gpu.networks import sizes
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report, free
from benchmarks.gpu.speed import peer_unet
from pbe_model import PBEConfig
from pbe_model.networks.vae import AutoencoderKL
from pbe_model.sampling.schedule import NoiseSchedule
from training.config import RunConfig
from training.optim.gradients import Bf16GradOptimizer
from training.optim.optimizer import build_optimizer
from training.planning.counting import count_step, loss_modules
from training.planning.hardware import peak_flops
from training.planning.report import GIB, Plan, optimizer_bytes
from training.stages.latents import LatentEncoder

ORDER = (False, 8), (True, 8), (False, 1), (False, 16), (True, 32), (False, 4), (False, 32)
"""Gradient checkpointing and micro-batch, the most telling first."""
_plans: dict[bool, Plan] = {}


def prepare(options: Options) -> None:
    """Count the step, which takes half a minute of a CPU and no card."""
    config = run_config()
    model = sizes(options.small)
    _plans[options.small] = Plan(
        config=config, sizes=model, gpus=1, mfu=1.0, price=None, kinds=(),
        plain=count_step(config, model), encoding=0.0,
        checkpointed=count_step(config, model, checkpointing=True),
        optimizer_bytes=optimizer_bytes(config.optim),
    )  # fmt: skip


def run_config() -> RunConfig:
    """The published training in bf16, from a bank of latents."""
    return RunConfig.model_validate({"precision": "bf16", "data": {"geometry_variants": 1}})


def run(report: Report, options: Options) -> None:
    """Steps by micro-batch, then the first stage, then diffusers' step."""
    if options.small not in _plans:
        prepare(options)
    _ours(report, options)
    free()
    report.attempt("encoding", lambda: _encoding(report, options), needs=3 if options.cuda else 0)
    name = "diffusers' denoiser, AdamW, bf16 autocast"
    if not importlib.util.find_spec("diffusers"):
        report.skip(name, "not installed")
        return
    report.attempt(name, lambda: _peer(report, options, name), needs=8 if options.cuda else 0)


def _ours(report: Report, options: Options) -> None:
    step = _Step(options, _plans[options.small])
    report.attempt("rates", lambda: step.rates(report))
    order = ((False, 2), (True, 2)) if options.small else ORDER
    for checkpointing, batch in order:
        name = step.name(checkpointing, batch)
        report.attempt(name, lambda c=checkpointing, b=batch: step.measure(report, c, b),
                       needs=5 if options.cuda else 0)  # fmt: skip


class _Step:
    """An update of the whole model as the loop of training makes it, on random latents."""

    def __init__(self, options: Options, plan: Plan) -> None:
        self.options = options
        self.plan = plan
        self.device = options.on
        self.peak = {"measured": 0.0}
        schedule = NoiseSchedule.linear(plan.sizes.schedule)
        with torch.device(self.device):
            self.module, self.vae = loss_modules(plan.config, plan.sizes, schedule)
        unet: Any = self.module.get_submodule("unet")
        unet.to(memory_format=torch.channels_last)
        self.unet = unet
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = Bf16GradOptimizer(self.module, build_optimizer(plan.config.optim, trained))

    def rates(self, report: Report) -> None:
        """What the share of the card's rate is taken of."""
        side = 256 if self.options.small else 8192
        self.peak["measured"] = matmul_rate(self.device, torch.bfloat16, side)
        report.value("matrix product, bf16", self.peak["measured"] / 1e12, "TFLOP/s")
        if self.options.cuda and (sheet := peak_flops(self.device, "bf16")):
            self.peak["data sheet's"] = sheet
            report.value("data sheet, bf16", sheet / 1e12, "TFLOP/s")

    def name(self, checkpointing: bool, batch: int) -> str:
        """Of a case."""
        how = "checkpointed" if checkpointing else "everything kept"
        return f"training step, bf16, micro-batch {batch}, {how}"

    def measure(self, report: Report, checkpointing: bool, batch: int) -> None:
        """Time, rate and memory of an update."""
        name = self.name(checkpointing, batch)
        self.optimizer.zero_grad()  # there are some if the case before ran out of memory
        self.unet.enable_gradient_checkpointing(checkpointing)
        self.module.train()
        values = random_batch(self.plan.sizes, batch, self.device)
        free()
        if self.options.cuda:
            torch.cuda.reset_peak_memory_stats()
        loss = self._update(values)
        self._update(values)
        found = statistics.median(
            milliseconds(lambda: self._update(values), self.device)
            for _ in range(1 if self.options.small else 3)
        )
        flops = self.plan.plain.total_flops * batch / (found / 1000)
        shares = [f"{flops / p:.0%} of the {n} rate" for n, p in self.peak.items() if p]
        detail = f"{1000 * batch / found:.3g} images/s, MFU {', '.join(shares)}, loss {loss:.3g}"
        report.value(name, found, "ms", detail)
        planned = self.plan.memory(batch, checkpointing=checkpointing) / GIB
        if not self.options.cuda:
            report.skip(f"{name}: memory", f"needs CUDA; planned {planned:.3g} GiB")
            return
        taken = torch.cuda.max_memory_allocated() / GIB
        reserved = torch.cuda.max_memory_reserved() / GIB
        report.check(f"{name}: memory against the plan", abs(taken / planned - 1), 0.1,
                     detail=f"{taken:.2f} GiB allocated, {reserved:.2f} reserved, planned "
                            f"{planned:.2f}")  # fmt: skip

    def _update(self, values: dict[str, Tensor]) -> float:
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.module(values)["loss"]
        loss.backward()
        self.optimizer.clip(1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def random_batch(sizes: PBEConfig, batch: int, device: torch.device) -> dict[str, Tensor]:
    """What the loss takes, as a bank of latents gives it."""
    side, z = sizes.resolution // sizes.vae.downscale, sizes.vae.z_channels
    latent = (batch, z, side, side)
    return {
        "latent": torch.randn(latent, device=device),
        "masked_latent": torch.randn(latent, device=device),
        "keep_mask": torch.rand(batch, 1, side, side, device=device).round(),
        "exemplar": torch.rand(batch, 3, *[sizes.exemplar.image_size] * 2, device=device),
        "noise": torch.randn(latent, device=device),
        "timestep": torch.randint(sizes.schedule.num_timesteps, (batch,), device=device),
        "drop": torch.rand(batch, device=device) < 0.2,
    }


def _encoding(report: Report, options: Options) -> None:
    """What a training without a bank of latents adds: two pictures a sample."""
    config, device = sizes(options.small), options.on
    with torch.device(device):
        vae = AutoencoderKL(config.vae).requires_grad_(False)
    batch, side = 2 if options.small else 8, config.resolution
    encoder = LatentEncoder(vae, device)
    image = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    hole_mask = torch.rand(batch, 1, side, side, device=device).round()

    def job() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            encoder.encode(image, hole_mask)

    job()
    found = interleaved({"job": job}, device, seconds=0.2)["job"]
    report.value(f"encoding {batch} samples, two pictures each, bf16 autocast", found, "ms",
                 f"{1000 * batch / found:.3g} samples/s")  # fmt: skip


def _peer(report: Report, options: Options, name: str) -> None:
    """The denoiser alone, every weight trained: what a plain training script does."""
    config, device = sizes(options.small), options.on
    with torch.device(device):
        unet: Any = peer_unet(config)
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True)
    batch, side = 2 if options.small else 8, config.resolution // config.vae.downscale
    x = torch.randn(batch, config.unet.in_channels, side, side, device=device)
    t = torch.randint(1000, (batch,), device=device)
    context = torch.randn(batch, 1, config.unet.context_dim, device=device)
    amp = torch.autocast(device.type, torch.bfloat16)

    def update() -> None:
        with amp:
            said = unet(x, t, encoder_hidden_states=context).sample
        F.mse_loss(said.float(), x[:, :4]).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if options.cuda:
        torch.cuda.reset_peak_memory_stats()
    update()
    update()
    found = statistics.median(milliseconds(update, device) for _ in range(3))
    memory = f", {torch.cuda.max_memory_allocated() / GIB:.2f} GiB" if options.cuda else ""
    report.value(f"{name}, micro-batch {batch}", found, "ms",
                 f"{1000 * batch / found:.3g} images/s{memory}")  # fmt: skip
