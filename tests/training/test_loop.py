"""Runs: learning rate, exact resume, accumulation, several processes, numbers gone bad."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path

import pytest
import torch

from training import state
from training.config import OptimConfig, RunConfig
from training.loop import learning_rate, train

from .runs import digest, logged, newest, run_config, start


def test_learning_rate_warms_up_and_decays() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4, decay="cosine")
    rates = [learning_rate(config, update, 12) for update in range(12)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)  # half way down
    assert rates[6] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < rates[11] < 0.1
    constant = OptimConfig(lr=2.0, warmup_steps=0)
    assert [learning_rate(constant, update, 12) for update in (0, 11, 99)] == [2.0] * 3


def test_first_stage_run_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    whole = run_config(photos, tmp_path / "whole", steps=4, ema=0.9)
    parts = run_config(photos, tmp_path / "parts", steps=2, ema=0.9)
    train(whole)
    train(parts)
    train(parts.model_copy(update={"steps": 4}))
    assert digest(whole.out) == digest(parts.out)
    assert logged(whole.out) == logged(parts.out)
    assert [entry["step"] for entry in logged(whole.out)] == [1, 2, 3, 4]
    assert len(list((whole.out / "samples").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("variants", [None, 1], ids=["fresh", "latent-bank"])
def test_killed_and_resumed_equals_uninterrupted(
    photos: Path, tmp_path: Path, first_stage: Path, variants: int | None
) -> None:
    """By real processes, killed between two checkpoints, resumed with other workers."""

    def config(name: str, workers: int) -> RunConfig:
        return run_config(
            photos,
            tmp_path / name,
            first_stage,
            steps=7,
            save_every=2,
            train_tower=True,
            min_snr=5.0,
            ema=0.9,
            decay="cosine",
            workers=workers,
            geometry_variants=variants,
        )

    done = start(config("whole", workers=1))
    assert done.returncode == 0, done.stderr
    killed = config("killed", workers=0)
    assert start(killed, kill_at=5).returncode == -signal.SIGKILL
    assert newest(killed.out)["step"] == 4
    assert len(logged(killed.out)) == 4  # update 5 was made, and lost
    done = start(config("killed", workers=2))
    assert done.returncode == 0, done.stderr
    assert newest(killed.out)["step"] == 7
    assert digest(killed.out) == digest(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_equal_one(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    one = run_config(photos, tmp_path / "one", first_stage, steps=3)
    two = one.model_copy(update={"out": tmp_path / "two"})
    train(one)
    done = start(two, processes=2)
    assert done.returncode == 0, done.stderr
    # Their lines may run into each other.
    found = re.findall(r"process \d of \d", done.stdout)
    assert sorted(found) == ["process 0 of 2", "process 1 of 2"]
    assert_equal_runs(one, two)


def test_accumulated_steps_equal_one_batch(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    one = run_config(photos, tmp_path / "one", first_stage, steps=3)
    two = one.model_copy(update={"out": tmp_path / "two", "accumulate": 2})
    train(one)
    train(two)
    assert_equal_runs(one, two)


def assert_equal_runs(one: RunConfig, two: RunConfig) -> None:
    """Up to the order of sums."""
    for ours, theirs in zip(logged(one.out), logged(two.out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = newest(one.out)["module"], newest(two.out)["module"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)


def test_batch_that_cannot_be_split_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size 4 cannot be split.*multiple of 3"):
        train(run_config(photos, tmp_path, accumulate=3))


def test_loss_that_is_not_finite_stops_the_run(photos: Path, tmp_path: Path) -> None:
    config = run_config(photos, tmp_path / "run", lr=1e25, warmup_steps=0, save_every=1, steps=5)
    with pytest.raises(ValueError, match=r"the loss at step 2 is (nan|inf); lower optim.lr"):
        train(config)
    assert [p.name for p in state.checkpoints(config.out / "checkpoints")] == ["step-00000001.pt"]
    assert logged(config.out)[-1]["step"] == 1


def test_trained_module_holds_the_average(photos: Path, tmp_path: Path) -> None:
    module = train(run_config(photos, tmp_path, steps=2, ema=0.9))
    saved = newest(tmp_path)
    weights = dict(module.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in saved["ema"].items())
    assert any(not torch.equal(weights[n], saved["module"][n]) for n in weights)
