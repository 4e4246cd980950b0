"""Gradients of 16 bits: the same updates as with the widened ones, to the bit, in less memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from training import loop
from training.loop import train
from training.optim import gradients
from training.optim.gradients import SixteenBitGradients

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

    class Watched(SixteenBitGradients):
        def step(self) -> None:
            used.append({gradient.dtype for gradient in self._kept.values()})
            super().step()

    monkeypatch.setattr(gradients, "AT_ONCE", 1)
    monkeypatch.setattr(loop, "SixteenBitGradients", Watched)
    narrow = run_config(photos, tmp_path / "narrow", init, steps=2, **options)
    train(narrow)
    assert used == [{torch.bfloat16}] * 2
    monkeypatch.setattr(loop, "SixteenBitGradients", lambda *_: None)
    wide = run_config(photos, tmp_path / "wide", init, steps=2, **options)
    train(wide)
    assert logged(narrow.out) == logged(wide.out)
    assert all(entry["grad_norm"] > 0.05 for entry in logged(wide.out))
    assert digest(narrow.out) == digest(wide.out)


@pytest.mark.usefixtures("_other_precision")
def test_sums_keep_their_bits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 has no 16 bits to keep, and a sum over micro-batches has more than 16."""

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loop, "SixteenBitGradients", refuse)
    train(run_config(photos, tmp_path / "float32", steps=1))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(run_config(photos, tmp_path / "sum", steps=1, precision="bf16", accumulate=2))


def test_what_is_kept_between_backward_pass_and_update() -> None:
    module = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.Linear(256, 64))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    kept = SixteenBitGradients(module, optimizer)

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
