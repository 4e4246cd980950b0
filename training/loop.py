"""The training loop: updates, checkpoints, resume, averages, logs.

Position in the data is a sample count, randomness is keyed by sample number, and the learning
rate is a function of the update: so the state of a run is weights, optimizer, averages and two
numbers, and a killed run continues as if it had not been killed, with any number of workers,
processes and accumulation steps.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from pbe_model.atomic import replacing
from pbe_model.editing.denoise import SEEDS
from pbe_model.untrusted import first_line
from training import checkpoints
from training.config import RunConfig
from training.data.dataset import StatelessBatchSampler
from training.data.loader import load_batches
from training.lock import RunLock, check_free
from training.optim.ema import EMA, classic, power_function, save_snapshot
from training.optim.gradients import clipping_optimizer
from training.optim.optimizer import build_optimizer, learning_rate, restore
from training.picture_grid import Pictures
from training.planning.hardware import peak_flops
from training.planning.report import flops_per_sample
from training.resuming import check_saved
from training.runlog import BINS, RunLog, Window
from training.signals import stop_signals
from training.stages import graphs
from training.stages.latents import LatentBank


class Stage(Protocol):
    """What a stage of training brings to the loop."""

    num_timesteps: int
    """Length of the noise schedule; 0 where the loss has no timesteps."""

    @property
    def module(self) -> nn.Module:
        """The loss, with the weights that it trains."""
        ...

    @property
    def dataset(self) -> Dataset:
        """Samples by their number in the run; the same number always gives the same sample."""
        ...

    def batch(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loss takes, on the device, from what the data loader yields."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out samples; the same draws at every call."""
        ...

    def pictures(self) -> Pictures:
        """What the sample grid shows; the same draws at every call."""
        ...

    @property
    def bank(self) -> LatentBank | None:
        """Latents that are encoded before the first update."""
        ...

    @property
    def data_digest(self) -> str:
        """Hash of the photos and boxes that it trains on."""
        ...


@dataclass(frozen=True, kw_only=True)
class _MicroBatches:
    """What this process has found in its micro-batches of one update; tensors on its device."""

    figures: dict[str, Tensor]
    """Means, `()` each."""
    bins: Tensor
    """`(2, BINS)`: sums and counts of the losses by timestep."""
    skipped: int
    """Photos that could not be read."""


@dataclass(frozen=True, kw_only=True)
class _Update:
    """The same over all processes, on the CPU."""

    figures: dict[str, float]
    bins: tuple[list[float], list[float]]
    skipped: int
    stop: bool
    """Whether any process was asked to stop."""
    failed: bool
    """Whether any process had no samples for this update, which then counts for nothing."""


class _Figures:
    """An update's figures on their way to the CPU.

    Args:
        packed: Sums over processes: of the named ones, of `skipped`, `stop`, `failed`, of `bins`.
        named: In their order.
        processes: How many there are.
    """

    def __init__(self, packed: Tensor, named: list[str], processes: int) -> None:
        self._named = named
        self._processes = processes
        self._copied: torch.cuda.Event | None = None
        if packed.device.type == "cuda":
            packed = packed.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._packed = packed

    def wait(self) -> _Update:
        """The figures, as soon as they are there; what was queued later may be under way still."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers = iter(self._packed.tolist())  # taken below in the order of packing
        return _Update(
            figures={name: next(numbers) / self._processes for name in self._named},
            skipped=int(next(numbers)),
            stop=next(numbers) > 0,
            failed=next(numbers) > 0,
            bins=([next(numbers) for _ in range(BINS)], list(numbers)),
        )


class _Batches:
    """Micro-batches of one process, forever, on its device.

    When there are no more it repeats the last one, because the other processes of a run wait for
    its gradients, and says so in `failure`: then all end together, after a checkpoint.

    Args:
        loaded: What the loader yields.
        stage: Makes batches of it.
        accelerator: Knows the run's precision.

    Attributes:
        failure: Why there are no more.
    """

    def __init__(
        self, loaded: Iterator[dict[str, Tensor]], stage: Stage, accelerator: Accelerator
    ) -> None:
        self.loaded = loaded
        self.stage = stage
        self.accelerator = accelerator
        self.failure: ValueError | None = None
        self._ready: tuple[dict[str, Tensor], int] | None = None
        self._last: tuple[dict[str, Tensor], int] | None = None

    def take(self) -> tuple[dict[str, Tensor], int]:
        """The next batch, and how many photos of it could not be read.

        Raises:
            ValueError: There has never been a batch.
        """
        self.prepare()
        assert self._ready is not None
        self._last, self._ready = self._ready, None
        return self._last

    def prepare(self) -> None:
        """Queue the work of the next batch, so that a device has it while the CPU waits."""
        if self._ready is not None:
            return
        if self.failure is None:
            try:
                self._ready = self._next()
                return
            except ValueError as error:
                if self._last is None:
                    raise
                self.failure = error
        self._ready = self._last

    def _next(self) -> tuple[dict[str, Tensor], int]:
        loaded = next(self.loaded)
        with self.accelerator.autocast():
            batch = self.stage.batch(loaded)
        return batch, int(loaded["skipped"].sum())  # the loader's are on the CPU


def train(config: RunConfig) -> nn.Module:
    """Make a run from Python: `Trainer(config).run()`."""
    return Trainer(config).run()


class Trainer:
    """A training run, built up to its newest checkpoint if there is one.

    Args:
        config: Its settings.

    Attributes:
        step: Updates made so far.
        samples: Samples seen so far.

    Raises:
        ValueError: Bad data or settings, or a checkpoint that does not fit them.
    """

    def __init__(self, config: RunConfig) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.accelerator = _accelerator(config)
        shares = config.accumulate * self.accelerator.num_processes
        if config.batch_size % shares:
            raise ValueError(
                f"batch_size {config.batch_size} cannot be split over "
                f"{self.accelerator.num_processes} processes and {config.accumulate} accumulation "
                f"steps; choose a multiple of {shares}"
            )
        if config.cuda_graphs:
            graphs.check(config, self.accelerator.device, self.accelerator.num_processes)
        main = self.accelerator.is_main_process
        if main:
            check_free(config.out)  # before a model takes time, and the memory of another run
        self.graph: graphs.Graph | None = None
        set_seed(config.seed % 2**32)  # NumPy's own generator, which nothing here draws from
        torch.manual_seed(config.seed)
        self.stage = _build_stage(config, self.accelerator.device)
        trained = [p for p in self.stage.module.parameters() if p.requires_grad]
        optimizer = build_optimizer(config.optim, trained)
        self.averages: dict[str, EMA] = {}
        if config.ema.decay:
            self.averages["classic"] = EMA(self.stage.module, classic(config.ema.decay))
        self.by_length = {x: EMA(self.stage.module, power_function(x)) for x in config.ema.lengths}
        self.averages |= {f"{length:g}": ema for length, ema in self.by_length.items()}
        self.step = self.samples = self.skipped = self.bad_steps = 0
        self.window = Window()
        self.validation: dict[str, float] = {}
        self.lock = RunLock(config.out) if main else None
        self.notices = self._resume(optimizer)
        # Never the loader or the schedule: accelerate would advance them once per process.
        self.module, self.prepared_optimizer = self.accelerator.prepare(
            self.stage.module, optimizer
        )
        self.optimizer = clipping_optimizer(
            config, self.accelerator, self.stage.module, optimizer, self.prepared_optimizer
        )
        self.peak_flops = peak_flops(self.accelerator.device, config.precision)

    def run(self) -> nn.Module:
        """Make the updates that are missing.

        SIGTERM, Ctrl-C and SIGHUP save and stop; the process then ends with code 143, 130 or 129.

        Returns:
            The trained loss module, with averaged weights where the run keeps the classic average.

        Raises:
            ValueError: Losses that are not finite; no photo left or a dead worker, after a
                checkpoint; a last checkpoint that could not be written.
        """
        config = self.config
        with self._open_log() as log, stop_signals() as signals:
            if self.accelerator.is_main_process:
                with replacing(config.out / "config.json") as part:
                    part.write_text(config.model_dump_json(indent=2), encoding="utf-8")
            for notice in self.notices:
                log.say(notice)
            self.prepared_optimizer.train()
            self._encode_latents(log, signals)
            if self.step == 0:
                with self._eval_weights():
                    self._validate(log)
            batches = self._batches()
            ahead = config.data.source == "composites"  # else it would take memory at official size
            saved = True
            self._start_clock()
            while self.step < config.steps:
                rate = learning_rate(config.optim, self.step, config.steps)
                for group in self.prepared_optimizer.param_groups:
                    group["lr"] = rate

                # The CPU only queues work, and waits once: for the loss and gradient norm of all
                # processes, so that an update that is not finite is left out. Meanwhile, and while
                # it queues the optimizer's work, the device makes the next batch.
                micro_batches = self._forward_and_backward(batches)
                grad_norm = self.optimizer.clip(config.optim.clip)
                figures = self._reduce(
                    micro_batches, grad_norm, stop=bool(signals), failed=batches.failure is not None
                )
                if ahead and self.step + 1 < config.steps:
                    batches.prepare()
                update = figures.wait()
                if update.failed:
                    self._end_without_samples(log, batches.failure)
                self._step_if_finite(update)

                self.step += 1
                self.samples += config.batch_size
                for ema in self.averages.values():
                    ema.update(self.step)
                log.advance()

                last = self.step == config.steps
                logs = last or self.step % config.log.every == 0
                validates = last or (self.step % config.sample_every == 0 and not update.stop)
                saves = last or update.stop or self.step % config.checkpoint.every == 0
                if logs:
                    self._log_figures(log, rate)
                if validates or saves:
                    with self._eval_weights():
                        if validates:
                            self._validate(log)
                        if saves:
                            saved = self._save(log)
                if self.by_length and (last or self.step % config.ema.snapshot_every == 0):
                    self._save_snapshot(log)
                if logs:  # what came after the figures does not count as training
                    self.accelerator.wait_for_everyone()
                    self._start_clock()
                if update.stop and not last:
                    self._exit(log, signals, "saved" if saved else "not saved")
            if not saved:
                raise ValueError(
                    f"the last checkpoint could not be written to {config.out}; free some space "
                    "and run the same command again: it resumes from the newest checkpoint"
                )
            self._say_what_is_next(log)
        if "classic" in self.averages:
            self.averages["classic"].swap(self.stage.module)
        self.accelerator.end_training()
        if self.lock:
            self.lock.release()
        return self.stage.module

    # ---- before the first update, and after the last ------------------------------------------

    def _encode_latents(self, log: RunLog, signals: list[int]) -> None:
        """Fill the bank of latents, where the run has one; processes share the work."""
        bank, rank = self.stage.bank, self.accelerator.process_index
        if bank is None:
            return
        processes = self.accelerator.num_processes
        rows = bank.missing(range(self.samples, self._last_sample))
        with log.aside("encoding latents", rows) as going:
            for number, row in enumerate(going):
                if number % processes == rank:
                    bank.row(row)
                # Often enough for a signal, and for the processes not to wait long for each other.
                if number % (16 * processes) == 0 and self._any(bool(signals)):
                    self._exit(log, signals, "what is encoded is kept")
        self._any(False)  # all have written what they encoded
        bank.refresh()

    @property
    def _last_sample(self) -> int:
        """Where in the numbers of samples the run ends."""
        return self.samples + (self.config.steps - self.step) * self.config.batch_size

    def _any(self, mine: bool) -> bool:
        """Whether this is so in any process."""
        flag = torch.tensor(float(mine), device=self.accelerator.device)
        found = self.accelerator.reduce(flag, "sum")
        assert isinstance(found, Tensor)
        return found.item() > 0

    def _say_what_is_next(self, log: RunLog) -> None:
        """The end of a run: what there is, and the commands to use it."""
        config, model = self.config, "model.safetensors"
        log.say(f"finished: {self.step} steps; pictures are in {config.out / 'samples'}")
        if config.stage != "diffusion":
            log.say(
                "next: "
                + shlex.join(["pbe-train", "export", f"{config.out}", f"{config.out / model}"])
            )
            return
        log.say("next: " + shlex.join(["pbe-train", "export", f"{config.out}", model]))
        given = ["--data", f"{config.data.root}", "--index", config.data.val_index]
        log.say(
            "      "
            + shlex.join(["pbe-train", "evaluate", "photos", *given, "--checkpoint", model])
        )

    # ---- an update ----------------------------------------------------------------------------

    def _batches(self) -> _Batches:
        """This process's micro-batches, forever."""
        sampler = StatelessBatchSampler(
            self.config.batch_size // self.config.accumulate,
            start_sample=self.samples,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        loaded = load_batches(
            self.stage.dataset,
            sampler,
            num_workers=self.config.data.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return _Batches(loaded, self.stage, self.accelerator)

    def _forward_and_backward(self, batches: _Batches) -> _MicroBatches:
        """Accumulate the gradients of one update; its figures stay on the device."""
        config, accelerator = self.config, self.accelerator
        parts = config.accumulate
        # Dropout alone draws from this generator; all other draws are keyed by sample.
        torch.manual_seed((config.seed + self.samples + accelerator.process_index) % SEEDS)
        figures: dict[str, Tensor] = {}
        bins = torch.zeros(2, BINS, device=accelerator.device)
        skipped = 0
        for micro in range(parts):
            batch, unread = batches.take()
            skipped += unread
            last = micro == parts - 1
            # Processes exchange gradients once an update, in the last backward pass.
            with nullcontext() if last else accelerator.no_sync(self.module):
                if config.cuda_graphs:
                    if self.graph is None:
                        self.graph = graphs.Graph(self.stage.module, batch, config.precision)
                    values = self.graph(batch)
                else:
                    with accelerator.autocast():
                        values = self.module(batch)
                    accelerator.backward(values["loss"] / parts)
            losses = values.pop("per_sample", None)
            if losses is not None:
                place = batch["timestep"] * BINS // self.stage.num_timesteps
                bins[0].index_add_(0, place, losses.float())
                bins[1].index_add_(0, place, torch.ones_like(losses, dtype=torch.float32))
            for name, value in values.items():
                figures[name] = figures.get(name, 0) + value.detach() / parts
        return _MicroBatches(figures=figures, bins=bins, skipped=skipped)

    def _reduce(
        self, local: _MicroBatches, grad_norm: Tensor, *, stop: bool, failed: bool
    ) -> _Figures:
        """Add up over processes, and begin to bring to the CPU, all that an update has to tell.

        It goes as one tensor, because each reading from the device waits for it.
        """
        device, processes = self.accelerator.device, self.accelerator.num_processes
        named = {**local.figures, "grad_norm": grad_norm}
        # Filled in on the device: a copy from the CPU would wait as well.
        counts = [torch.full((), float(n), device=device) for n in (local.skipped, stop, failed)]
        packed = torch.stack([*(value.float() for value in named.values()), *counts])
        reduced = self.accelerator.reduce(torch.cat([packed, local.bins.flatten()]), "sum")
        assert isinstance(reduced, Tensor)
        return _Figures(reduced, list(named), processes)

    def _step_if_finite(self, update: _Update) -> None:
        """Make the update, or leave the weights, the moments and the log as they are.

        All processes see the same figures and so decide alike.

        Raises:
            ValueError: More updates in a row that are not finite than the settings allow.
        """
        loss, norm = update.figures["loss"], update.figures["grad_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped += update.skipped
        # In fp16 a gradient may overflow now and then: the scaler has seen to that.
        overflow = self.accelerator.scaler is not None and not math.isfinite(norm)
        if math.isfinite(loss) and (math.isfinite(norm) or overflow):
            self.bad_steps = 0
            self.window.add(update.figures, update.bins)
            return
        self.bad_steps += 1
        if self.bad_steps > self.config.optim.skip_bad_steps:
            raise ValueError(
                f"the loss at step {self.step + 1} is {loss:.4g} and the gradient norm is "
                f"{norm:.4g}; lower optim.lr ({self.config.optim.lr}) or set precision to 'no', "
                "and run again: the newest checkpoint is from before this step"
            )

    # ---- the log ------------------------------------------------------------------------------

    def _open_log(self) -> RunLog:
        config = self.config
        return RunLog(
            config.out,
            start=self.step,
            total=config.steps,
            trackers=config.log.trackers,
            config=config.model_dump(mode="json"),
            active=self.accelerator.is_main_process,
        )

    def _start_clock(self) -> None:
        self._clock = time.perf_counter(), self.samples

    def _log_figures(self, log: RunLog, rate: float) -> None:
        """Write the means since the last line, and what the run takes of the machine."""
        since, counted = self._clock
        speed = (self.samples - counted) / (time.perf_counter() - since)
        figures = {**self.window.means(), "lr": rate, "images_per_second": speed}
        if self.skipped:
            figures["skipped_photos"] = self.skipped  # `unreadable.txt` names them
        if peak := _peak_memory(self.accelerator.device):
            figures["peak_memory_gb"] = peak / 1e9
        if self.peak_flops:
            flops = flops_per_sample(self.config) * speed / self.accelerator.num_processes
            figures["mfu"] = flops / self.peak_flops
        left = self._last_sample - self.samples
        log.figures(self.step, figures, seconds_left=left / speed)
        self.window = Window()

    @contextmanager
    def _eval_weights(self) -> Iterator[None]:
        """Schedule-free optimizers train with other weights than those that they have found."""
        self.prepared_optimizer.eval()
        yield
        self.prepared_optimizer.train()

    def _validate(self, log: RunLog) -> None:
        """Log validation and pictures, of the classic average if the run keeps it."""
        if not self.accelerator.is_main_process:
            return
        module, ema = self.stage.module, self.averages.get("classic")
        module.eval()
        if ema:
            ema.swap(module)
        try:
            with _uncompiled() if self.config.compile else nullcontext():
                self.validation = self.stage.validate()
                log.figures(self.step, self.validation)
                log.grid(self.step, self.stage.pictures())
        except ValueError as error:  # its photos are gone; those of the training may be there
            log.say(f"no validation at step {self.step}: {first_line(error)}")
        if ema:
            ema.swap(module)
        module.train()

    # ---- saving and resuming ------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return checkpoints.folder_of(self.config.out)

    def _save(self, log: RunLog) -> bool:
        """Write a checkpoint; whether it worked. A run without space goes on to the next one."""
        if not self.accelerator.is_main_process:
            return True
        keep = self.config.checkpoint
        try:
            checkpoints.save(self._folder, self.step, self._state(), keep.keep, keep.keep_every)
        except OSError as error:
            log.say(
                f"could not write the checkpoint of step {self.step}: {error}; the older ones are "
                "intact"
            )
            return False
        return True

    def _save_snapshot(self, log: RunLog) -> None:
        if not self.accelerator.is_main_process:
            return
        try:
            save_snapshot(self.config.out, self.step, self.by_length)
        except OSError as error:
            log.say(f"could not write the snapshot of the averages at step {self.step}: {error}")

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "samples": self.samples,
            "module": checkpoints.trainable(self.stage.module),
            "optimizer": self.prepared_optimizer.state_dict(),
            "ema": {name: ema.average for name, ema in self.averages.items()},
            "scaler": scaler.state_dict() if scaler else {},
            "window": self.window.state(),
            "figures": self.validation,
            "config": self.config.model_dump(mode="json"),
            "data": self.stage.data_digest,
        }

    def _resume(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Load the newest checkpoint, if there is one; returns what to tell the user of it.

        Raises:
            ValueError: It does not fit the configuration, or processes see different ones.
        """
        saved = checkpoints.load_newest(self._folder)
        self._check_same_step(saved["step"] if saved else 0)
        if saved is None:
            return []
        notices = check_saved(saved, self.config, self.stage.data_digest)
        checkpoints.load_trainable(self.stage.module, saved["module"], self._folder)
        self.step, self.samples = saved["step"], saved["samples"]
        self.window, self.validation = Window(saved["window"]), saved["figures"]
        restore(optimizer, saved["optimizer"], self.config.optim)
        for name, ema in self.averages.items():
            if name in saved["ema"]:
                ema.load(saved["ema"][name])
        scaler = self.accelerator.scaler
        if scaler and saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        return notices

    def _check_same_step(self, step: int) -> None:
        """Raise `ValueError` unless all processes found the same checkpoint."""
        mine = torch.tensor([step], device=self.accelerator.device)
        steps = self.accelerator.gather(mine)
        assert isinstance(steps, Tensor)
        if len(set(steps.tolist())) > 1:
            raise ValueError(
                f"the processes found checkpoints of steps {steps.tolist()} in {self.config.out}; "
                "set out to a folder on a file system that all nodes share"
            )

    def _end_without_samples(self, log: RunLog, failure: ValueError | None) -> NoReturn:
        """Save, and raise `ValueError` in all processes when one of them has no more samples."""
        self.optimizer.zero_grad()
        with self._eval_weights():
            saved = "saved" if self._save(log) else "not saved"
        self._any(False)  # the checkpoint is there before torchrun ends the other processes
        reason = first_line(failure) if failure else "another process has no more samples"
        raise ValueError(f"{reason}; stopped at step {self.step}, {saved}") from failure

    def _exit(self, log: RunLog, signals: list[int], state: str) -> NoReturn:
        """End the process after a signal; the exit code says which."""
        number = signals[0] if signals else signal.SIGTERM  # another process may have got it
        log.say(f"stopped at step {self.step}, {state}; the same command resumes from there")
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def _uncompiled() -> AbstractContextManager[None]:
    """Run compiled networks as written: compiling them for another batch size takes a minute."""
    if hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()  # before torch 2.6


def _join_processes() -> None:
    """Meet the other processes that torchrun started.

    Its store outlives restarts, and with it the addresses of processes that are gone; so each
    start uses its own prefix for names in the store.
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
            f"{launched} processes were started, but only {accelerator.num_processes} of them are "
            "connected; start them with torchrun"
        )
    return accelerator


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far, on the GPU or in the process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _build_stage(config: RunConfig, device: torch.device) -> Stage:
    if config.stage == "first_stage":
        from training.stages.first_stage import FirstStage

        return FirstStage(config, device)
    if config.stage == "exemplar":
        from training.stages.exemplar import Exemplar

        return Exemplar(config, device)
    from training.stages.diffusion import Diffusion

    return Diffusion(config, device)
