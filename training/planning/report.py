"""What a run will take: parameters, FLOPs, memory by micro-batch, hours on cards of a kind.

All of it is counted on the run's own training step (`training.planning.counting`), except what one
has to assume: the share of their peak rate that the cards reach, and their price. This machine's
CPU is measured.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from pbe_model.config import CONFIGS, PBEConfig
from training.config import DataConfig, LossConfig, OptimConfig, RunConfig, to_toml
from training.optim.optimizer import build_optimizer
from training.planning.counting import ENCODING, StepCount, count_flops, count_step
from training.planning.hardware import KINDS
from training.planning.measuring import CpuRate, cpu_rate
from training.progress import duration

GIB = 2**30
BATCHES = (1, 2, 4, 8, 16, 32)
CARDS = (8, 12, 16, 24, 40, 80)
"""Memory sizes of cards, GiB."""
RESERVED = 1.0
"""GiB of a card that CUDA's context and its libraries' workspaces take."""
FRAGMENTED = 0.05
"""Share of the rest that is lost to fragmentation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a run takes.

    Attributes:
        config: The run.
        sizes: Its model's architecture.
        gpus: Number of cards, one process each.
        mfu: Share of the peak rate that they are assumed to reach.
        price: Price of a card per hour; `None` leaves costs out.
        kinds: Cards to give the hours for.
        plain: A step that keeps all activations.
        checkpointed: The same step with gradient checkpointing.
        encoding: FLOPs per sample that a bank of latents would save; 0 if the run has one.
        optimizer_bytes: Bytes of optimizer state per trained parameter.
        cpu: What this machine's CPU reaches; `None` where it was not measured.
    """

    config: RunConfig
    sizes: PBEConfig
    gpus: int
    mfu: float
    price: float | None
    kinds: Sequence[str]
    plain: StepCount
    checkpointed: StepCount
    encoding: float
    optimizer_bytes: float
    cpu: CpuRate | None = None

    @property
    def step(self) -> StepCount:
        """The step as it is configured."""
        return self.checkpointed if self.config.gradient_checkpointing else self.plain

    def resident(self) -> dict[str, float]:
        """Bytes in one process that do not depend on the batch, by what they hold."""
        averages = bool(self.config.ema.decay) + len(self.config.ema.lengths)
        trained = self.plain.trained_bytes
        parts = {
            "weights": float(self.plain.weight_bytes),
            "optimizer states": self.optimizer_bytes * self.plain.parameters["trained"],
            "averages": float(averages * trained),
        }
        if self.gpus > 1:
            parts["gradient buckets"] = float(trained)
        if self.config.accumulate > 1:
            parts["gradients"] = float(trained)
        return parts

    def memory(self, batch: int, *, checkpointing: bool) -> float:
        """Most bytes that a process uses with micro-batches of `batch` samples."""
        count = self.checkpointed if checkpointing else self.plain
        return sum(self.resident().values()) + max(count.peak(batch), count.update_bytes)

    def largest_batch(self, gib: float, *, checkpointing: bool) -> int:
        """The largest micro-batch for a card of `gib` GiB; 0 if none fits."""
        count = self.checkpointed if checkpointing else self.plain
        room = (gib - RESERVED) * (1 - FRAGMENTED) * GIB - sum(self.resident().values())
        return count.largest_batch(room) if count.update_bytes <= room else 0

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return self.config.steps * self.config.batch_size

    def hours(self, kind: str) -> float | None:
        """Hours of the run on the planned number of cards, including recomputation.

        `None` for cards whose matrix units lack the run's precision.
        """
        rate = KINDS[kind].flops(self.config.precision)
        if rate is None:
            return None
        return self.samples * self.step.total_flops / (self.gpus * rate * self.mfu) / 3600

    def to_dict(self) -> dict[str, Any]:
        """The plan for programs: numbers in FLOPs, bytes and hours."""
        memory = {
            name: {
                "bytes": {b: self.memory(b, checkpointing=on) for b in BATCHES},
                "largest_micro_batch": {c: self.largest_batch(c, checkpointing=on) for c in CARDS},
            }
            for name, on in (("plain", False), ("gradient_checkpointing", True))
        }
        hours = {kind: self.hours(kind) for kind in self.kinds}
        return {
            "flops_per_sample": {
                "forward_and_backward": self.plain.total_flops,
                "parts": self.plain.flops,
                "gradient_checkpointing_adds": self._recomputed,
                "latent_bank_would_spare": self.encoding,
            },
            "parameters": self.plain.parameters,
            "memory": {"resident": self.resident(), **memory},
            "samples": self.samples,
            "gpus": self.gpus,
            "mfu": self.mfu,
            "hours": hours,
            "price": {kind: self._cost(value) for kind, value in hours.items()},
            "this_cpu": self.cpu
            and {**asdict(self.cpu), "hours": self.samples * self._seconds_on(self.cpu) / 3600},
        }

    def _seconds_on(self, cpu: CpuRate) -> float:
        """Of a sample."""
        return self.step.total_flops / cpu.flops

    @property
    def _recomputed(self) -> float:
        return self.checkpointed.total_flops - self.plain.total_flops

    def _cost(self, hours: float | None) -> float | None:
        if hours is None or self.price is None:
            return None
        return hours * self.gpus * self.price

    def __str__(self) -> str:
        config, sizes = self.config, self.sizes
        tokens = "one exemplar token" if config.tokens == "class" else "all exemplar tokens"
        lora = f", adapters of rank {config.lora.rank}" if config.lora.rank else ""
        micro = config.batch_size / (config.accumulate * self.gpus)
        lines = [
            f"{config.model}, {config.stage}: {sizes.resolution} px, {tokens}{lora}, precision "
            f"{config.precision}",
            f"batch {config.batch_size} = {self.gpus} GPUs x {config.accumulate} accumulated x "
            f"{micro:g}",
            "",
            *self._flops_table(),
            "",
            "Parameters",
            *_table([[name, f"{n / 1e6:.1f} M"] for name, n in self.plain.parameters.items()]),
            "",
            *self._memory_table(),
            "",
            *self._hours_table(),
        ]
        return "\n".join(lines)

    def _flops_table(self) -> list[str]:
        rows = [["GFLOP per sample", "forward", "backward"]]
        for part, (forward, backward) in self.plain.flops.items():
            rows.append([part, _giga(forward), _giga(backward) if backward else "-"])
        forward = sum(f for f, _ in self.plain.flops.values())
        rows.append(["all", _giga(forward), _giga(self.plain.total_flops - forward)])
        notes = [f"Gradient checkpointing recomputes {_giga(self._recomputed)} GFLOP."]
        if self.encoding:
            notes.append(
                f"A bank of latents (data.geometry_variants) would save {_giga(self.encoding)} "
                f"GFLOP, {self.encoding / self.plain.total_flops:.0%}."
            )
        return [*_table(rows), *notes]

    def _memory_table(self) -> list[str]:
        resident = ", ".join(f"{k} {v / GIB:.2f}" for k, v in self.resident().items() if v)
        rows = [["micro-batch", *map(str, BATCHES)]]
        cards = [["card of GiB", *map(str, CARDS)]]
        for name, on in (("everything kept", False), ("gradient checkpointing", True)):
            sizes = [f"{self.memory(b, checkpointing=on) / GIB:.1f}" for b in BATCHES]
            rows.append([f"GiB, {name}", *sizes])
            largest = [self.largest_batch(c, checkpointing=on) for c in CARDS]
            cards.append([f"largest, {name}", *(str(b) if b else "-" for b in largest)])
        return [
            "Peak memory of one process",
            *_table(rows),
            *_table(cards),
            f"Whatever the micro-batch: {resident}.",
            f"Each card loses {RESERVED:g} GiB to CUDA and {FRAGMENTED:.0%} to fragmentation.",
        ]

    def _hours_table(self) -> list[str]:
        rows = [
            ["cards", "TFLOP/s each", "images/s", "hours", *["cost"] * (self.price is not None)]
        ]
        for kind in self.kinds:
            hours, rate = self.hours(kind), KINDS[kind].flops(self.config.precision)
            if hours is None or rate is None:
                rows.append([f"{self.gpus} x {kind}", f"no {self.config.precision}", "-", "-"])
                continue
            row = [
                f"{self.gpus} x {kind}",
                f"{rate / 1e12:g}",
                f"{self.samples / hours / 3600:.4g}",
            ]
            cost = self._cost(hours)
            rows.append([*row, f"{hours:.4g}", *([f"{cost:.4g}"] if cost is not None else [])])
        return [
            f"{self.config.steps} steps of {self.config.batch_size} = {self.samples / 1e6:.4g} M "
            f"samples, at {self.mfu:.0%} of the cards' peak rate (--mfu)",
            *_table(rows),
            *self._cpu_lines(),
        ]

    def _cpu_lines(self) -> list[str]:
        if self.cpu is None:
            return []
        seconds = self._seconds_on(self.cpu)
        how = "measured on this step" if self.cpu.own else "an estimate, from a small model's step"
        return [
            f"This machine's CPU, {self.cpu.threads} threads and nothing else to do: "
            f"{self.cpu.flops / 1e9:.3g} GFLOP/s",
            f"({how}), {1 / seconds:.3g} images/s, {duration(self.samples * seconds)}",
        ]


def make_plan(
    config: RunConfig,
    *,
    gpus: int = 1,
    kinds: Iterable[str] = (),
    mfu: float = 0.35,
    price: float | None = None,
    measured: bool = False,
) -> Plan:
    """Count what a run takes; no file is needed, no memory of its size used.

    Args:
        config: The run.
        gpus: Number of cards, one process each.
        kinds: Names in `KINDS` to give the hours for; all of them by default.
        mfu: Share of the peak rate that the cards are assumed to reach, in (0, 1].
        price: Price of a card per hour.
        measured: Try how fast this machine's CPU is, which takes some seconds.

    Raises:
        ValueError: An unknown kind, a share out of range, a batch that cannot be split, an
            optimizer that does not run on this machine.
    """
    kinds = tuple(kinds) or tuple(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown card {kind!r}; choose from {list(KINDS)}")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu:g}; give a share of the peak rate, above 0 and at most 1")
    if price is not None and not 0 <= price < float("inf"):
        raise ValueError(f"price is {price:g}; give the price of a card per hour")
    shares = gpus * config.accumulate
    if config.batch_size % shares:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split over {gpus} GPUs and "
            f"{config.accumulate} accumulation steps; choose a multiple of {shares}"
        )
    states = optimizer_bytes(config.optim)
    sizes = model_sizes(config)
    plain = count_step(config, sizes, processes=gpus)
    encoding = sum(sum(plain.flops.get(part, ())) for part in ENCODING)
    return Plan(
        config=config,
        sizes=sizes,
        gpus=gpus,
        mfu=mfu,
        price=price,
        kinds=kinds,
        plain=plain,
        checkpointed=count_step(config, sizes, processes=gpus, checkpointing=True),
        encoding=encoding,
        optimizer_bytes=states,
        cpu=cpu_rate(config, sizes) if measured else None,
    )


def model_sizes(config: RunConfig) -> PBEConfig:
    """Architecture of the model that a run trains."""
    return replace(CONFIGS[config.model], tokens=config.tokens)


def optimizer_bytes(config: OptimConfig) -> float:
    """Bytes of state per parameter, found by making one step on a small matrix.

    Raises:
        ValueError: An optimizer that does not exist, or does not run on this machine's CPU.
    """
    parameter = nn.Parameter(torch.zeros(256, 256))  # 8-bit optimizers leave smaller ones alone
    parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(config, [parameter])
    try:
        optimizer.step()
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{config.name} cannot make a step on this machine's CPU, so its memory is unknown "
            f"({str(error).splitlines()[0]}); plan with --optim.name torch.optim.AdamW"
        ) from error
    state = optimizer.state[parameter].values()
    return sum(v.nbytes for v in state if isinstance(v, torch.Tensor)) / parameter.numel()


def flops_per_sample(config: RunConfig) -> float:
    """Training FLOPs per sample, forward and backward, without what checkpointing recomputes.

    Counted once per configuration: a moment for the small model, some seconds at full size.
    """
    # Only what the count depends on, so that runs which differ in other settings share it.
    relevant = RunConfig(
        stage=config.stage,
        model=config.model,
        tokens=config.tokens,
        train_tower=config.train_tower,
        data=DataConfig(
            source=config.data.source, geometry_variants=config.data.geometry_variants and 1
        ),
        loss=LossConfig(thumbnail_weight=config.loss.thumbnail_weight),
        lora=config.lora,
    )
    return _counted(relevant.model_dump_json())


@functools.lru_cache
def _counted(dump: str) -> float:
    config = RunConfig.model_validate_json(dump)
    parts = count_flops(config, model_sizes(config))
    return sum(forward + backward for forward, backward in parts.values())


def describe(config: RunConfig) -> str:
    """All settings of a run as TOML, followed by its plan as comments: what a dry run prints."""
    plan = str(make_plan(config, measured=True))
    return to_toml(config) + "\n" + "\n".join(f"# {line}".rstrip() for line in plan.splitlines())


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _giga(flops: float) -> str:
    return _number(flops / 1e9)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = []
    for first, *numbers in rows:
        cells = [cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]))
    return lines
