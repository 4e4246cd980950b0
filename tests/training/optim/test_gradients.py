"""Gradients kept in bfloat16 give the same updates to the bit; fp16 leaves out overflows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from training.loop import Trainer, train
from training.optim import gradients
from training.optim.gradients import Bf16GradOptimizer, PreparedOptimizer

from ..runs import digest, logged, run_config


@pytest.fixture
def _other_precision() -> Iterator[None]:
    """Accelerate allows a process one precision, unless it is made to forget."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_other_precision")
@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [
        ("first_stage", "schedulefree.AdamWScheduleFree"),
        ("diffusion", "torch.optim.AdamW"),
    ],
)
def test_a_run_is_that_of_the_widened_gradients(
    photos: Path,
    tmp_path: Path,
    first_stage: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    optimizer: str,
) -> None:
    """Also with an update in as many parts as there are weights, and every update clipped."""
    init = first_stage if stage == "diffusion" else None
    options = {"precision": "bf16", "optim.name": optimizer, "optim.clip": 0.05}
    used = []

    class Watched(Bf16GradOptimizer):
        def step(self) -> None:
            used.append({gradient.dtype for gradient in self._gradients.values()})
            super().step()

    monkeypatch.setattr(gradients, "CHUNK_BYTES", 1)
    monkeypatch.setattr(gradients, "Bf16GradOptimizer", Watched)
    narrow = run_config(photos, tmp_path / "narrow", init, steps=2, **options)
    train(narrow)
    assert used == [{torch.bfloat16}] * 2
    monkeypatch.setattr(gradients, "keeps_bf16_grads", lambda *_: False)
    wide = run_config(photos, tmp_path / "wide", init, steps=2, **options)
    train(wide)
    assert logged(narrow.out) == logged(wide.out)
    assert all(entry["grad_norm"] > 0.05 for entry in logged(wide.out))
    assert digest(narrow.out) == digest(wide.out)


@pytest.mark.usefixtures("_other_precision")
@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "accumulate": 2}])
def test_sums_keep_their_bits(photos: Path, tmp_path: Path, options: dict) -> None:
    """Float32 gradients do not fit into bfloat16, nor does a sum over micro-batches."""
    trainer = Trainer(run_config(photos, tmp_path, steps=1, **options))
    assert isinstance(trainer.optimizer, PreparedOptimizer)


@pytest.mark.usefixtures("_other_precision")
def test_the_only_process_of_torchrun_makes_the_same_updates(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There accelerate wraps the module, and the wrapper fills in gradients that are taken away."""
    alone = run_config(photos, tmp_path / "alone", steps=2, precision="bf16")
    train(alone)
    AcceleratorState._reset_state(reset_partial_state=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    launched["OMP_NUM_THREADS"] = 1  # else accelerate sets as many as there are cores
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    wrapped = Trainer(run_config(photos, tmp_path / "wrapped", steps=2, precision="bf16"))
    assert isinstance(wrapped.module, nn.parallel.DistributedDataParallel)
    wrapped.run()
    assert logged(wrapped.config.out) == logged(alone.out)
    assert digest(wrapped.config.out) == digest(alone.out)


def test_what_is_kept_between_backward_pass_and_update() -> None:
    module = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.Linear(256, 64))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    kept = Bf16GradOptimizer(module, optimizer)

    def backward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(torch.randn(8, 64)).square().mean()
        loss.backward()

    backward()
    there = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert there == {"0.bias", "1.weight", "1.bias", "2.bias"}
    before = [parameter.detach().clone() for parameter in module.parameters()]
    kept.zero_grad()  # as after a loss that is not finite: nothing of it comes later
    backward()
    norm = kept.clip(1e-3)
    kept.step()
    assert all(parameter.grad is None for parameter in module.parameters())
    pairs = zip(before, module.parameters(), strict=True)
    moved = torch.cat([(new - old).flatten() for old, new in pairs]).norm()
    torch.testing.assert_close(moved, torch.tensor(0.1 * 1e-3), rtol=1e-2, atol=0)
    assert norm > 1e-3


class HalfPrecision:
    """What `PreparedOptimizer` needs of an accelerator in fp16, which has none on CPUs."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        self.prepared = SimpleNamespace(optimizer=optimizer, zero_grad=optimizer.zero_grad)

    def clip_grad_norm_(self, parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
        self.scaler.unscale_(self.prepared.optimizer)
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def backward(self, x: torch.Tensor) -> None:
        self.scaler.scale(self.module(x).sum()).backward()


@pytest.mark.parametrize("fused", [True, False])
def test_the_scaler_of_fp16_follows_the_updates(fused: bool) -> None:
    """As with the scaler's own step, but without its question whether gradients are finite."""
    ours, theirs = nn.Linear(3, 1), nn.Linear(3, 1)
    theirs.load_state_dict(ours.state_dict())
    one, two = (
        HalfPrecision(module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused))
        for module in (ours, theirs)
    )
    optimizer = PreparedOptimizer(one, one.prepared, list(ours.parameters()))  # pyright: ignore
    for value in (1.0, float("inf"), 2.0, 3.0, -1.0):
        x = torch.tensor([[value, 1.0, 2.0]])
        one.backward(x)
        if optimizer.clip(1.0).isfinite():
            optimizer.step()
        optimizer.zero_grad()
        two.backward(x)
        two.clip_grad_norm_(list(theirs.parameters()), 1.0)
        two.scaler.step(two.prepared.optimizer)
        two.scaler.update()
        two.prepared.zero_grad()
        assert one.scaler.state_dict() == two.scaler.state_dict()
        assert all(p.grad is None for p in ours.parameters())
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, other)
    assert one.scaler.get_scale() == 4.0  # halved once, doubled once
