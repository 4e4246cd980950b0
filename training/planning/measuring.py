"""How fast this machine's CPU trains: measured on some updates of a small model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pbe_model.config import CONFIGS, PBEConfig
from pbe_model.sampling.schedule import NoiseSchedule
from training.config import RunConfig
from training.planning.counting import (
    ENCODING,
    autocast,
    count_flops,
    empty_batch,
    loss_modules,
)

_SMALL = 20e9
"""FLOPs a sample of the largest step that is tried as it is."""
_BATCH = 8
_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class CpuRate:
    """What this machine's CPU reaches.

    Attributes:
        flops: FLOP/s of forward and backward passes.
        threads: Threads that it was measured with.
        own: Whether on the run's own step; otherwise on that of the small model, whose rate is an
            estimate for larger ones.
    """

    flops: float
    threads: int
    own: bool


def cpu_rate(config: RunConfig, sizes: PBEConfig) -> CpuRate:
    """Time the run's own step where it is small enough, else that of the bundled model's size.

    It takes a few seconds and some hundred MB. Time is the processor's, of all threads together, so
    that what else the machine is doing just now does not count.

    Args:
        config: The run.
        sizes: Its model's architecture.
    """
    flops = _without_encoding(config, sizes)
    own = flops <= _SMALL
    if not own:
        small = {"model": "tiny", "train_tower": True, "precision": config.precision}
        config, sizes = RunConfig.model_validate(small), CONFIGS["tiny"]
        flops = _without_encoding(config, sizes)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        per_second = _samples_per_second(config, sizes)
        return CpuRate(flops=flops * per_second, threads=torch.get_num_threads(), own=own)
    finally:
        torch.set_num_threads(before)


def _without_encoding(config: RunConfig, sizes: PBEConfig) -> float:
    parts = count_flops(config, sizes)
    return sum(sum(both) for name, both in parts.items() if name not in ENCODING)


def _samples_per_second(config: RunConfig, sizes: PBEConfig) -> float:
    banked = config.data.model_copy(update={"geometry_variants": 1})  # encodes no pictures here
    config = config.model_copy(update={"data": banked})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, vae = loss_modules(config, sizes, NoiseSchedule.linear(sizes.schedule))
        batch = {n: _filled(t) for n, t in empty_batch(config, sizes, vae, _BATCH).items()}
        updates, start = -1, 0.0
        while updates < 1 or time.process_time() - start < _SECONDS:
            if updates == 0:  # the first one sets up the kernels
                start = time.process_time()
            with autocast(config.precision):
                loss = module(batch)["loss"]
            loss.backward()
            module.zero_grad()
            updates += 1
        return updates * _BATCH * torch.get_num_threads() / (time.process_time() - start)


def _filled(empty: Tensor) -> Tensor:
    """Numbers of a usual size: denormal ones, as memory may hold, are slow."""
    return torch.randn_like(empty) if empty.is_floating_point() else torch.zeros_like(empty)
