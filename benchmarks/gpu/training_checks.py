"""Short trainings of the bundled model: precisions, memory savers, resume, one rank of NCCL."""

from __future__ import annotations

import json
import math
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from benchmarks.gpu.networks import SMALL, random_model
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report
from pbe_model.checkpoints.save import save_model
from training import checkpoints, loop
from training.config import RunConfig
from training.optim import gradients

CPU_UPDATES = 4


def run(report: Report, options: Options) -> None:
    """Every check is a run or two, compared with the first of its precision."""
    updates = 2 if options.small else 20
    needs = 3.0 if options.cuda else 0.0
    # It warns where an operation has no deterministic form; then only the comparison tells.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            checks = _Checks(report, Path(folder), options, updates)
            for name, job in checks.in_order().items():
                report.attempt(name, job, needs)
    finally:
        torch.use_deterministic_algorithms(False)


class _Checks:
    """Runs on a tiny collection of photos, each made once."""

    def __init__(self, report: Report, folder: Path, options: Options, updates: int) -> None:
        self.report = report
        self.folder = folder
        self.options = options
        self.updates = updates
        self.init = "bundled"
        # As the bundled model was trained; what it has learned to predict stays.
        self.loss = {"prediction": "v", "zero_terminal_snr": True}
        if options.small:
            self.loss = {}
            self.init = str(folder / "small.safetensors")
            save_model(Path(self.init), random_model(SMALL, torch.device("cpu")))
        self._done: dict[str, RunConfig] = {}
        write_photos(folder / "photos")

    def in_order(self) -> dict[str, Any]:
        """The checks by name, the most valuable first."""
        return {
            "training in bf16": lambda: self._like_float32("bf16", 0.05),
            "training in fp16 with a scaler": lambda: self._like_float32("fp16", 0.05),
            "resume, bf16": lambda: self._resume("bf16"),
            "resume, fp16": lambda: self._resume("fp16"),
            "gradient checkpointing": lambda: self._same(
                "gradient checkpointing against none, bf16", gradient_checkpointing=True
            ),
            "bf16 gradients": self._wide_gradients,
            "CUDA graphs": self._graphs,
            "NCCL": self._one_rank,
            "training on the CPU": self._against_the_cpu,
            "LoRA": self._lora,
            "without deterministic algorithms": self._as_users_run,
        }

    def _run(self, name: str, *, steps: int | None = None, **changes: Any) -> RunConfig:
        """A run of that name, made to its end if it is not there yet."""
        if name in self._done and steps is None:
            return self._done[name]
        settings: dict[str, Any] = {
            "model": "tiny", "init": self.init, "out": self.folder / name.replace(" ", "-"),
            "batch_size": 2 if self.options.small else 8, "steps": steps or self.updates,
            "data": {"root": self.folder / "photos", "workers": 0}, "loss": self.loss,
            "optim": {"lr": 1e-4, "warmup_steps": 0},
            "log": {"every": 1, "sample_every": 10**6, "trackers": ()},
        }  # fmt: skip
        config = RunConfig.model_validate(settings | changes)
        # accelerate refuses another precision in the same process.
        AcceleratorState._reset_state(reset_partial_state=True)
        # What no check reads takes longer than the updates: the share of the card's rate, pictures.
        with (
            mock.patch.object(loop, "peak_flops", return_value=None),
            mock.patch.object(loop.Trainer, "_validate"),
        ):
            loop.train(config)
        self._done[name] = config
        return config

    def _like_float32(self, precision: str, limit: float) -> None:
        plain = losses(self._run("no").out)
        found = losses(self._run(precision, precision=precision).out)
        difference = max(abs(a - b) / b for a, b in zip(found, plain, strict=True))
        name = f"{len(found)} updates in {precision}, losses against float32's"
        detail = f"last loss {found[-1]:.4g}, in float32 {plain[-1]:.4g}"
        if precision == "fp16" and self.options.cuda:
            detail += f", scale {saved(self._done[precision])['scaler']['scale']:g}"
        self.report.check(name, difference, limit, detail=detail)

    def _resume(self, precision: str) -> None:
        whole = self._run(precision, precision=precision)
        name = f"resumed {precision}"
        self._run(name, precision=precision, steps=self.updates // 2)
        parts = self._run(name, precision=precision, steps=self.updates)
        self._compare(f"stopped half-way and resumed, {precision}", parts, whole)

    def _same(self, title: str, **changes: Any) -> None:
        whole = self._run("bf16", precision="bf16")
        other = self._run(title.split(",")[0], precision="bf16", **changes)
        self._compare(title, other, whole)

    def _wide_gradients(self) -> None:
        with mock.patch.object(gradients, "keeps_bf16_grads", return_value=False):
            self._same("gradients widened at once against kept in bf16, bf16")

    def _graphs(self) -> None:
        if self.options.cuda:
            self._same("CUDA graphs against none, bf16", cuda_graphs=True)
        else:
            self.report.skip("CUDA graphs against none, bf16", "needs a CUDA card")

    def _one_rank(self) -> None:
        whole = self._run("bf16", precision="bf16")
        with rank_of_one(cpu=not self.options.cuda):
            other = self._run("one rank", precision="bf16")
            backend = PartialState().backend
        self._compare(f"the only rank under torchrun ({backend}), bf16", other, whole)

    def _against_the_cpu(self) -> None:
        updates = min(CPU_UPDATES, self.updates)
        found = losses(self._run("no").out)[:updates]
        with mock.patch.dict(os.environ, ACCELERATE_USE_CPU="true"):
            expected = losses(self._run("CPU", steps=updates).out)
        difference = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
        self.report.check(
            f"{updates} updates in float32, losses against the CPU's", difference, 1e-3
        )

    def _lora(self) -> None:
        adapters = {"rank": 4}
        config = self._run("LoRA", precision="bf16", lora=adapters)
        found = losses(config.out)
        moved = sum(bool(t.any()) for n, t in saved(config)["module"].items() if n.endswith(".up"))
        name = f"LoRA, {len(found)} updates in bf16: losses that are not finite"
        bad = sum(not math.isfinite(loss) for loss in found)
        self.report.check(name, bad, 0, detail=f"{moved} adapters trained")

    def _as_users_run(self) -> None:
        torch.use_deterministic_algorithms(False)
        try:
            first, second = (self._run(f"free {i}", precision="bf16") for i in range(2))
        finally:
            torch.use_deterministic_algorithms(True, warn_only=True)
        differing, largest = differences(saved(first)["module"], saved(second)["module"])
        self.report.value("two runs without deterministic algorithms, bf16: weights that differ",
                          differing, detail=f"largest difference {largest:.2g}")  # fmt: skip

    def _compare(self, title: str, found: RunConfig, expected: RunConfig) -> None:
        """Weights and moments, to the bit."""
        ours, theirs = saved(found), saved(expected)
        differing, largest = differences(
            {"module": ours["module"], "optimizer": ours["optimizer"]["state"]},
            {"module": theirs["module"], "optimizer": theirs["optimizer"]["state"]},
        )
        self.report.check(f"{title}: numbers that differ", differing, 0,
                          detail=f"largest difference {largest:.2g}")  # fmt: skip


def write_photos(root: Path) -> None:
    """Photos of noise with a plain box, and their indexes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 1)):
        (root / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            photo = rng.integers(0, 256, (96, 96, 3), np.uint8)
            photo[24:72, 24:72] = rng.integers(0, 256, 3)
            name = f"{split}/{number}.png"
            assert cv2.imwrite(str(root / name), photo)
            lines.append(json.dumps({"image": name, "box": [24, 24, 72, 72], "id": str(number)}))
        (root / split / "boxes.jsonl").write_text("\n".join(lines), encoding="utf-8")


def losses(out: Path) -> list[float]:
    """Of every update of a run."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def saved(config: RunConfig) -> dict[str, Any]:
    """The last checkpoint of a run."""
    found = checkpoints.load_newest(config.out / "checkpoints")
    assert found is not None
    return found


def differences(ours: Any, theirs: Any) -> tuple[int, float]:
    """How many numbers of two nests of tensors differ, and by how much at most."""
    if isinstance(ours, Tensor):
        apart = (ours.double() - theirs.double()).abs()
        return int((apart != 0).sum()), apart.max().item()  # NaN counts
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        found = [differences(ours[name], theirs[name]) for name in ours]
        return sum(n for n, _ in found), max((most for _, most in found), default=0.0)
    return int(ours != theirs), 0.0


@contextmanager
def rank_of_one(*, cpu: bool) -> Iterator[None]:
    """The environment of the only process that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    if cpu:
        names["ACCELERATE_USE_CPU"] = "true"
    with mock.patch.dict(os.environ, names):
        yield
