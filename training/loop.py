"""The training loop: updates, checkpoints, resume, averages, logs.

Position in the data is a sample count, randomness is keyed by sample number, and the learning
rate is a function of the update: so the state of a run is weights, optimizer, averages and two
numbers, and a killed run continues as if it had not been killed, with any number of workers,
processes and accumulation steps.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from training import checkpoints as state
from training.config import RunConfig, changed_settings
from training.data.dataset import StatelessBatchSampler, data_loader
from training.optim.ema import EMA, classic, power_function, save_snapshot
from training.optim.gradients import SixteenBitGradients, have_sixteen_bits
from training.optim.optimizer import build_optimizer, learning_rate, restore
from training.planning.hardware import peak_flops
from training.planning.report import flops_per_sample
from training.runlog import BINS, RunLog, Window


class Stage(Protocol):
    """What a stage of training brings to the loop."""

    num_timesteps: int
    """Of the schedule; 0 where the loss knows no timesteps."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def dataset(self) -> Dataset: ...
    def batch(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]: ...
    def validate(self) -> dict[str, float]: ...
    def pictures(self) -> tuple[Tensor, int]: ...


def train(config: RunConfig) -> nn.Module:
    """Run `config` to its last step, from its newest checkpoint if there is one.

    SIGTERM and Ctrl-C save and stop; the process then ends with code 143 or 130.

    Returns:
        The trained loss module (averaged weights where the run keeps the classic average).

    Raises:
        ValueError: Bad data or settings; losses that are not finite; a checkpoint that could not
            be written to the end.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = _accelerator(config)
    shares = config.accumulate * accelerator.num_processes
    if config.batch_size % shares:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split over {accelerator.num_processes} "
            f"processes and {config.accumulate} accumulation steps; choose a multiple of {shares}"
        )
    set_seed(config.seed)
    with stop_signals() as caught:
        return _Run(config, accelerator, _stage(config, accelerator.device), caught).finish()


class _Run:
    """A run in progress.

    Args:
        config: Its settings.
        accelerator: Devices, processes and precision.
        stage: Data and loss.
        caught: Signals that ask to stop, as they come.
    """

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, stage: Stage, caught: list[int]
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.stage = stage
        self.caught = caught
        self.trained = [p for p in stage.module.parameters() if p.requires_grad]
        optimizer = build_optimizer(config.optim, self.trained)
        self.averages: dict[str, EMA] = {}
        if config.ema.decay:
            self.averages["classic"] = EMA(stage.module, classic(config.ema.decay))
        self.by_length = {x: EMA(stage.module, power_function(x)) for x in config.ema.lengths}
        self.averages |= {f"{length:g}": ema for length, ema in self.by_length.items()}
        self.step = self.samples = self.skipped = self.bad_steps = 0
        self.window = Window()
        self.figures: dict[str, float] = {}
        self.notice = self._resume(optimizer)
        # torchrun's wrapper, there even for one process, fills in gradients that are taken away.
        alone = accelerator.distributed_type == DistributedType.NO
        self.halved = (
            SixteenBitGradients(stage.module, optimizer)
            if alone and have_sixteen_bits(config, accelerator.num_processes)
            else None
        )
        # Never the loader or the schedule: accelerate would advance them once per process.
        self.module, self.optimizer = accelerator.prepare(stage.module, optimizer)
        self.peak_flops = peak_flops(accelerator.device, config.precision)

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def finish(self) -> nn.Module:
        """Make the updates that are missing."""
        config = self.config
        settings = config.model_dump(mode="json")
        log = RunLog(
            config.out,
            start=self.step,
            total=config.steps,
            trackers=config.log.trackers,
            config=settings,
            active=self.main,
        )
        with log:
            if self.main:
                (config.out / "config.json").write_text(config.model_dump_json(indent=2))
            if self.notice:
                log.say(self.notice)
            self._train(log)
        if "classic" in self.averages:
            self.averages["classic"].swap(self.stage.module)
        self.accelerator.end_training()
        return self.stage.module

    def _train(self, log: RunLog) -> None:
        config = self.config
        self.optimizer.train()
        batches = self._batches()
        since, counted, saved = time.perf_counter(), self.samples, True
        while self.step < config.steps:
            rate = learning_rate(config.optim, self.step, config.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            stop = self._update(batches)
            self.step += 1
            self.samples += config.batch_size
            for ema in self.averages.values():
                ema.update(self.stage.module, self.step)
            log.advance()
            last = self.step == config.steps
            logged = self._due(config.log.every, last)
            if logged:
                speed = (self.samples - counted) / (time.perf_counter() - since)
                log.figures(self.step, {**self.window.means(), "lr": rate, **self._cost(speed)})
                self.window = Window()
            looks = self._due(config.log.sample_every, last)
            saves = self._due(config.checkpoint.every, last) or stop
            if looks or saves:
                with self._at_rest():
                    if looks:
                        self._look(log)
                    if saves:
                        saved = self._save(log)
            if self.by_length and self._due(config.ema.snapshot_every, last):
                self._snapshot(log)
            if logged:  # what came after the figures does not count as training
                self.accelerator.wait_for_everyone()
                since, counted = time.perf_counter(), self.samples
            if stop and not last:
                self._leave(log, saved)
        if not saved:
            raise ValueError(
                f"the last checkpoint could not be written to {config.out}; free space and run "
                "the same command again: it goes on from the newest one"
            )

    def _due(self, every: int, last: bool) -> bool:
        return self.step % every == 0 or last

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Some optimizers (schedule-free ones) train with other weights than they have found."""
        self.optimizer.eval()
        yield
        self.optimizer.train()

    # ---- an update ----------------------------------------------------------------------------

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """This process's micro-batches, forever."""
        sampler = StatelessBatchSampler(
            self.config.batch_size // self.config.accumulate,
            start_sample=self.samples,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        loader = data_loader(
            self.stage.dataset,
            sampler,
            num_workers=self.config.data.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _update(self, batches: Iterator[dict[str, Tensor]]) -> bool:
        """One optimizer step over `accumulate` micro-batches; whether a process was asked to stop.

        An update with a loss or gradient that is not finite changes nothing.
        """
        accelerator, parts = self.accelerator, self.config.accumulate
        # For dropout alone; all else is keyed by sample.
        torch.manual_seed(self.config.seed + self.samples + accelerator.process_index)
        totals: dict[str, Tensor] = {}
        bins = torch.zeros(2, BINS, device=accelerator.device)
        skipped = 0
        for micro in range(parts):
            loaded = next(batches)
            skipped += int(loaded["skipped"].sum())
            last = micro == parts - 1
            with nullcontext() if last else accelerator.no_sync(self.module):
                with accelerator.autocast():
                    batch = self.stage.batch(loaded)
                    values = self.module(batch)
                accelerator.backward(values["loss"] / parts)
            losses = values.pop("per_sample", None)
            if losses is not None:
                place = batch["timestep"] * BINS // self.stage.num_timesteps
                bins[0].index_add_(0, place, losses.float())
                bins[1].index_add_(0, place, torch.ones_like(losses, dtype=torch.float32))
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + value.detach() / parts
        limit, halved = self.config.optim.clip, self.halved
        norm = halved.clip(limit) if halved else accelerator.clip_grad_norm_(self.trained, limit)
        assert norm is not None
        # One exchange for all: figures, losses by timestep, photos skipped, and whether to stop.
        rest = torch.tensor([skipped, bool(self.caught)], device=accelerator.device)
        mine = torch.cat([torch.stack([v.float() for v in totals.values()]), bins.flatten(), rest])
        found = accelerator.reduce(mine, "sum")
        assert isinstance(found, Tensor)
        numbers = found.tolist()
        ranks = accelerator.num_processes
        figures: dict[str, float] = {n: numbers[i] / ranks for i, n in enumerate(totals)}
        figures["grad_norm"] = float(norm)
        good = self._is_good(figures)
        if good or accelerator.scaler:  # the scaler leaves bad steps out itself
            (halved or self.optimizer).step()
        if good:
            sums = numbers[len(totals) : -2]
            self.window.add(figures, (sums[:BINS], sums[BINS:]))
        (halved or self.optimizer).zero_grad()
        self.skipped += int(numbers[-2])
        return numbers[-1] > 0

    def _is_good(self, figures: Mapping[str, float]) -> bool:
        """Whether an update may be made; all processes see the same figures.

        In fp16 a gradient may overflow: the scaler then leaves the step out and lowers its scale.
        """
        finite = math.isfinite(figures["loss"])
        if self.accelerator.scaler is None:
            finite = finite and math.isfinite(figures["grad_norm"])
        if finite:
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        if self.bad_steps > self.config.optim.skip_bad_steps:
            raise ValueError(
                f"the loss at step {self.step + 1} is {figures['loss']:.4g}, its gradient's norm "
                f"{figures['grad_norm']:.4g}; lower optim.lr ({self.config.optim.lr}) or set "
                "precision to 'no', and start again: the newest checkpoint is from before"
            )
        return False

    # ---- looking ------------------------------------------------------------------------------

    def _look(self, log: RunLog) -> None:
        """Validate and draw, with the classic average if the run keeps it."""
        if not self.main:
            return
        module, ema = self.stage.module, self.averages.get("classic")
        module.eval()
        if ema:
            ema.swap(module)
        with _as_written() if self.config.compile else nullcontext():
            self.figures = self.stage.validate()
            log.figures(self.step, self.figures)
            log.grid(self.step, *self.stage.pictures())
        if ema:
            ema.swap(module)
        module.train()

    def _cost(self, speed: float) -> dict[str, float]:
        """Images a second over all processes, the share of the hardware's rate, peak memory."""
        figures = {"images_per_second": speed}
        if self.skipped:
            figures["skipped_photos"] = self.skipped  # `unreadable.txt` names them
        if peak := _peak_memory(self.accelerator.device):
            figures["peak_memory_gb"] = peak / 1e9
        if self.peak_flops:
            rate = flops_per_sample(self.config) * speed / self.accelerator.num_processes
            figures["mfu"] = rate / self.peak_flops
        return figures

    # ---- saving and resuming ------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.config.out / "checkpoints"

    def _save(self, log: RunLog) -> bool:
        """Write a checkpoint; whether it is there. Without space the run goes on for the next."""
        if not self.main:
            return True
        keep = self.config.checkpoint
        try:
            state.save(self._folder, self.step, self._state(), keep.keep, keep.keep_every)
        except OSError as error:
            log.say(f"checkpoint of step {self.step} not written: {error}; older ones are whole")
            return False
        return True

    def _snapshot(self, log: RunLog) -> None:
        if not self.main:
            return
        try:
            save_snapshot(self.config.out, self.step, self.by_length)
        except OSError as error:
            log.say(f"snapshot of the averages at step {self.step} not written: {error}")

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "samples": self.samples,
            "module": state.trainable(self.stage.module),
            "optimizer": self.optimizer.state_dict(),
            "ema": {name: ema.average for name, ema in self.averages.items()},
            "scaler": scaler.state_dict() if scaler else {},
            "window": self.window.state(),
            "figures": self.figures,
            "config": self.config.model_dump(mode="json"),
        }

    def _resume(self, optimizer: torch.optim.Optimizer) -> str:
        """Take over the newest checkpoint; what there is to say about it.

        Raises:
            ValueError: It does not fit the configuration, or processes see different ones.
        """
        saved = state.load_newest(self._folder)
        self._agree(saved["step"] if saved else 0)
        if saved is None:
            return ""
        if missing := [name for name in state.ENTRIES if name not in saved]:
            raise ValueError(
                f"the newest checkpoint in {self._folder} lacks {', '.join(missing)}, so it is not "
                "one of a run; give another out"
            )
        state.load_trainable(self.stage.module, saved["module"], self._folder)
        self.step, self.samples = saved["step"], saved["samples"]
        self.window, self.figures = Window(saved["window"]), saved["figures"]
        before = saved["config"]["optim"]["name"]
        if before != self.config.optim.name:
            raise ValueError(
                f"{self._folder} was made with {before}, not with {self.config.optim.name}; set "
                "optim.name back, or give another out"
            )
        restore(optimizer, saved["optimizer"], self.config.optim)
        for name, ema in self.averages.items():
            if name in saved["ema"]:
                ema.load(saved["ema"][name])
        scaler = self.accelerator.scaler
        if scaler and saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        changed = changed_settings(saved["config"], self.config.model_dump(mode="json"))
        if not changed:
            return ""
        return f"going on from step {self.step} with other settings than before: " + ", ".join(
            f"{name} {before!r} -> {after!r}" for name, (before, after) in changed.items()
        )

    def _agree(self, step: int) -> None:
        """Raise `ValueError` unless all processes found the same checkpoint."""
        mine = torch.tensor([step], device=self.accelerator.device)
        steps = self.accelerator.gather(mine)
        assert isinstance(steps, Tensor)
        if len(set(steps.tolist())) > 1:
            raise ValueError(
                f"the processes found checkpoints of steps {steps.tolist()} in {self.config.out}; "
                "put out on a file system that all nodes share"
            )

    def _leave(self, log: RunLog, saved: bool) -> None:
        """End the process after a signal; the exit code tells which."""
        number = self.caught[0] if self.caught else signal.SIGTERM
        done = "saved" if saved else "not saved"
        log.say(f"stopped at step {self.step}, {done}; the same command goes on from there")
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def _as_written() -> AbstractContextManager[None]:
    """Without what `compile` made for the training's batch size: another size takes a minute."""
    if hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()  # before torch 2.6


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and the first Ctrl-C instead of dying of them; a second Ctrl-C interrupts."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may ask for signals
        return

    def catch(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join_processes() -> None:
    """Find the other processes that torchrun started.

    Its store outlives restarts, and with it the addresses of processes that
    are gone; so each start has names of its own in it.
    """
    store, rank, ranks = next(distributed.rendezvous("env://"))  # pyright: ignore
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=distributed.PrefixStore(f"start-{start}", store),  # pyright: ignore
        rank=rank,
        world_size=ranks,
    )


def _accelerator(config: RunConfig) -> Accelerator:
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched > 1 and not distributed.is_initialized():
        _join_processes()
    # Without a GPU accelerate overlooks torchrun unless told: each process would train alone.
    cpu = launched > 1 and not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were started, but {accelerator.num_processes} found each other; "
            "start them with torchrun"
        )
    return accelerator


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU, or of the process where the system tells; 0 if not."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _stage(config: RunConfig, device: torch.device) -> Stage:
    if config.stage == "first_stage":
        from training.stages.first_stage import FirstStage

        return FirstStage(config, device)
    from training.stages.diffusion import Diffusion

    return Diffusion(config, device)
