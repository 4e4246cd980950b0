"""Runs as real processes on a machine whose clock jumps and whose disk fills up.

`make soak` runs it; ROUNDS says how often each is tried (a fifth of it, 50 unless told).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from training import checkpoints as state
from training.config import RunConfig, to_toml
from training.loop import train

from ..training.conftest import first_stage, photos, small_model_named_tiny  # noqa: F401
from ..training.runs import digest, logged, run_config

ROUNDS = max(2, int(os.environ.get("ROUNDS", "50")) // 5)
REPOSITORY = Path(__file__).parents[2]

JUMPING = """
import random, runpy, sys, time
real, chance = time.time, random.Random({seed})
def jumping():
    if chance.random() < 0.1:
        jumping.by = chance.choice((0, -1e9, 3600, -3600, 1e6, -86400))
    return max(0.0, real() + jumping.by)
jumping.by = 0
time.time = jumping
sys.argv = ["runs", "train", {file!r}]
runpy.run_module("tests.training.runs", run_name="__main__", alter_sys=False)
"""
"""A run whose system clock is set to and fro, years back at times, from its first import on."""


def start(config: RunConfig, *, seed: int = 0, **extra: object) -> subprocess.CompletedProcess[str]:
    """A run with a clock that jumps."""
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    environment = {**os.environ, **{name: str(value) for name, value in extra.items()}}
    return subprocess.run(
        [sys.executable, "-c", JUMPING.format(seed=seed, file=str(file))],
        cwd=REPOSITORY,
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def whole(first_stage: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory):  # noqa: F811
    """A run that nothing happened to."""
    options = {"steps": 8, "checkpoint.every": 2, "log.sample_every": 4, "ema.decay": 0.9}
    return run_config(photos, tmp_path_factory.mktemp("whole") / "run", first_stage, **options)


@pytest.fixture(autouse=True)
def trained(whole: RunConfig, small_model_named_tiny: None) -> None:  # noqa: F811
    if not whole.out.exists():
        train(whole)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_clock_that_jumps_changes_nothing(seed: int, whole: RunConfig, tmp_path: Path):
    config = whole.model_copy(update={"out": tmp_path / "run"})
    done = start(config, seed=seed)
    assert done.returncode == 0, done.stderr
    assert digest(config.out) == digest(whole.out)
    assert logged(config.out) == logged(whole.out)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_no_file_may_grow_beyond_a_random_size(seed: int, whole: RunConfig, tmp_path: Path):
    """Whatever cannot be written, the run says so, or ends in a sentence; what it has is whole."""
    config = whole.model_copy(update={"out": tmp_path / "run"})
    largest = int(10 ** random.Random(seed).uniform(3, 6.5))
    done = start(config, seed=seed, LARGEST=largest)
    assert done.returncode in (0, 1, 2), (largest, done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, (largest, done.stderr)
    if done.returncode:
        assert done.stderr.strip().splitlines()[-1].startswith("pbe-train: "), done.stderr
    for path in state.checkpoints(config.out / "checkpoints"):
        assert state.load(path)["step"] == state.step_of(path)
