"""The training loop: updates, learning rate, checkpoints, resume, logs.

Position in the data is a sample count, randomness is keyed by sample number, and the learning
rate is a function of the update: so the state of a run is weights, optimizer, average and one
number, and a killed run continues as if it had not been killed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from training import state
from training.config import OptimConfig, RunConfig
from training.data import StatelessBatchSampler, data_loader
from training.ema import EMA
from training.runlog import RunLog


class Stage(Protocol):
    """What a stage of training brings to the loop."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def dataset(self) -> Dataset: ...
    def batch(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]: ...
    def validate(self) -> dict[str, float]: ...
    def pictures(self) -> tuple[Tensor, int]: ...


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Rate of update number `update` (from 0): linear warm-up, then constant or half a cosine."""
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    progress = (update - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def train(config: RunConfig) -> nn.Module:
    """Run `config` to its last step, from its newest checkpoint if there is one.

    Returns:
        The trained loss module (averaged weights where the run keeps an average).

    Raises:
        ValueError: Bad data or settings; a loss that is not finite.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = _accelerator(config)
    world = accelerator.num_processes
    if config.batch_size % (config.accumulate * world):
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split over {world} processes and "
            f"{config.accumulate} accumulation steps; choose a multiple of "
            f"{config.accumulate * world}"
        )
    set_seed(config.seed)
    stage = _stage(config, accelerator.device)
    trainable = [p for p in stage.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=config.optim.lr,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    ema = EMA(stage.module, config.ema) if config.ema else None

    folder = config.out / "checkpoints"
    saved = state.load_newest(folder)
    step = 0
    if saved is not None:
        step = saved["step"]
        stage.module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        if ema:
            ema.load_state_dict(saved["ema"])
    # Never the loader or the schedule: accelerate would advance them once per process.
    module, optimizer = accelerator.prepare(stage.module, optimizer)
    batches = _batches(config, stage, accelerator, start_sample=step * config.batch_size)
    main = accelerator.is_main_process
    log = RunLog(
        config.out, start=step, total=config.steps, batch_size=config.batch_size, active=main
    )
    if main:
        (config.out / "config.json").write_text(config.model_dump_json(indent=2))

    since, counted = time.perf_counter(), step
    while step < config.steps:
        rate = learning_rate(config.optim, step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        values = _update(accelerator, module, optimizer, batches, config)
        if not math.isfinite(values["loss"]):
            raise ValueError(
                f"the loss at step {step + 1} is {values['loss']}; lower optim.lr "
                f"({config.optim.lr}) or set precision to 'no', and start again: the newest "
                "checkpoint is from before"
            )
        step += 1
        if ema:
            ema.update(stage.module, step)
        log.advance()
        if step % config.log_every == 0 or step == config.steps:
            elapsed = time.perf_counter() - since
            speed = (step - counted) * config.batch_size / elapsed
            since, counted = time.perf_counter(), step
            log.figures(step, {**values, "lr": rate, "images_per_second": speed})
        if main and (step % config.sample_every == 0 or step == config.steps):
            _look(stage, ema, log, step)
        if main and (step % config.save_every == 0 or step == config.steps):
            state.save(folder, step, _state(stage, optimizer, ema), config.keep)
        accelerator.wait_for_everyone()
    log.close()
    if ema:
        ema.swap(stage.module)
    accelerator.end_training()
    return stage.module


def _accelerator(config: RunConfig) -> Accelerator:
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # Without a GPU accelerate overlooks torchrun unless told: each process would train alone.
    cpu = launched > 1 and not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were started, but {accelerator.num_processes} found each other; "
            "start them with torchrun"
        )
    return accelerator


def _stage(config: RunConfig, device: torch.device) -> Stage:
    if config.stage == "first_stage":
        from training.first_stage import FirstStage

        return FirstStage(config, device)
    from training.diffusion import Diffusion

    return Diffusion(config, device)


def _batches(
    config: RunConfig, stage: Stage, accelerator: Accelerator, start_sample: int
) -> Iterator[dict[str, Tensor]]:
    """This process's micro-batches, forever."""
    sampler = StatelessBatchSampler(
        config.batch_size // config.accumulate,
        start_sample=start_sample,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    loader = data_loader(
        stage.dataset,
        sampler,
        num_workers=config.data.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    return map(stage.batch, loader)


def _update(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, Tensor]],
    config: RunConfig,
) -> dict[str, float]:
    """One optimizer step over `accumulate` micro-batches; figures of the mean over them."""
    totals: dict[str, Tensor] = {}
    for micro in range(config.accumulate):
        last = micro == config.accumulate - 1
        context = accelerator.no_sync(module) if not last else nullcontext()
        with context:
            with accelerator.autocast():
                values = module(next(batches))
            accelerator.backward(values["loss"] / config.accumulate)
        for name, value in values.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
    norm = accelerator.clip_grad_norm_(module.parameters(), config.optim.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = accelerator.reduce(torch.stack(list(totals.values())), "mean")
    assert isinstance(means, Tensor) and norm is not None
    figures = (means / config.accumulate).tolist()
    return {**dict(zip(totals, figures, strict=True)), "grad_norm": norm.item()}


def _state(stage: Stage, optimizer: torch.optim.Optimizer, ema: EMA | None) -> dict:
    return {
        "module": stage.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema else {},
    }


def _look(stage: Stage, ema: EMA | None, log: RunLog, step: int) -> None:
    """Validate and draw with the averaged weights."""
    stage.module.eval()
    if ema:
        ema.swap(stage.module)
    log.figures(step, stage.validate())
    log.grid(step, *stage.pictures())
    if ema:
        ema.swap(stage.module)
    stage.module.train()
