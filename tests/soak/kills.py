"""Killed at random moments: what was there before is there, or what was being written.

`make soak` runs it; ROUNDS says how often each is tried (50 unless told).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbe_model.checkpoints.load import load_model
from pbe_model.checkpoints.save import save_diffusers, save_model, save_official
from pbe_model.image_io import read_image, write_image
from training import checkpoints as state
from training.config import RunConfig, to_toml
from training.loop import train

from ..pbe_model.small import small_model
from ..training.conftest import first_stage, photos, small_model_named_tiny  # noqa: F401
from ..training.runs import digest, logged, run_config

ROUNDS = int(os.environ.get("ROUNDS", "50"))
REPOSITORY = Path(__file__).parents[2]
MODEL = small_model()


def marked(number: int) -> torch.nn.Module:
    """The model with a number in all its weights."""
    with torch.no_grad():
        for parameter in MODEL.parameters():
            parameter.fill_(number)
    return MODEL


def write_run(folder: Path, number: int) -> None:
    """A checkpoint of a run, of eight megabytes."""
    weights = {str(i): torch.full((2**18,), float(number)) for i in range(8)}
    state.save(folder, number, {"module": weights}, keep=2)


def number_of_run(folder: Path) -> int:
    """The number in all weights of the newest checkpoint, which is also its step."""
    saved = state.load_newest(folder)
    assert saved is not None
    for tensor in saved["module"].values():
        assert (tensor == saved["step"]).all()
    return saved["step"]


def number_of_model(path: Path) -> int:
    """The number in all weights of a model."""
    found = {value for p in load_model(path).parameters() for value in p.unique().tolist()}
    assert len(found) == 1
    return int(found.pop())


def picture_of(number: int) -> torch.Tensor:
    return torch.full((700, 900, 3), number / 255)


Kind = tuple[str, Callable[[Path, int], object], Callable[[Path], int]]
KINDS: dict[str, Kind] = {
    "run": ("checkpoints", write_run, number_of_run),
    "model": ("a.safetensors", lambda p, n: save_model(p, marked(n)), number_of_model),
    "official": ("a.ckpt", lambda p, n: save_official(p, marked(n)), number_of_model),
    "picture": (
        "a.png",
        lambda p, n: write_image(p, picture_of(n)),
        lambda p: round(float(read_image(p).mean()) * 255),
    ),
}
"""What is written, by the name of the file, its writer, and the reader of the number in it."""


def killed(write: Callable[[int], object], first: int, seconds: float) -> int:
    """The last number that a process had written in full before it was killed, some time on.

    It writes `first` before the clock begins, then one after another.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            for number in range(first, first + 200):
                write(number)
                os.write(write_end, bytes([number]))
        finally:
            os._exit(1)
    os.close(write_end)
    said = os.read(read_end, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while more := os.read(read_end, 4096):
        said = more
    os.close(read_end)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it ended by itself"
    return said[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_it_writes(kind: str, tmp_path: Path):
    name, write, number_in = KINDS[kind]
    path = tmp_path / name
    chance, in_the_act = random.Random(kind), 0
    for _ in range(ROUNDS):
        written = killed(lambda number: write(path, number), 1, chance.uniform(0, 0.25))
        assert number_in(path) in (written, written + 1)
        in_the_act += any(file.suffix == ".part" for file in tmp_path.rglob("*"))
        if kind == "run":  # the next process begins to count anew
            shutil.rmtree(path)
    print(f"{kind}: killed {ROUNDS} times, {in_the_act} of them with a file half written")
    assert in_the_act


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path):
    """A folder of diffusers cannot be replaced, so each process writes new ones."""
    chance = random.Random(0)
    for _ in range(ROUNDS):
        place = tmp_path / str(chance.random())
        place.mkdir()
        write = lambda number: save_diffusers(place / str(number), marked(number))  # noqa: B023, E731
        killed(write, 1, chance.uniform(0, 0.5))
        for folder in place.iterdir():
            if not folder.name.startswith("."):
                assert number_of_model(folder) == int(folder.name)


def start(config: RunConfig, file: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    file.write_text(to_toml(config))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.runs", "train", str(file)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    photos: Path,  # noqa: F811
    first_stage: Path,  # noqa: F811
    tmp_path: Path,
):
    """Each time at a random moment after its first line of the log."""
    rounds = max(2, ROUNDS // 5)
    options = {"steps": 10 * rounds, "checkpoint.every": 1, "ema.decay": 0.9}
    whole = run_config(photos, tmp_path / "whole", first_stage, **options)
    train(whole)
    config = run_config(photos, tmp_path / "killed", first_stage, **options)
    log, chance = config.out / "log.jsonl", random.Random(1)
    for _ in range(rounds):
        process = start(config, tmp_path / "run.toml")
        before = log.stat().st_mtime_ns if log.exists() else 0
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        while process.poll() is None and log.stat().st_mtime_ns == before:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
    process = start(config, tmp_path / "run.toml")
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert digest(config.out) == digest(whole.out)
    assert logged(config.out) == logged(whole.out)
