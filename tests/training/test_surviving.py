"""Runs as real processes: killed, asked to stop, without space, over ranks and nodes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training import checkpoints as state
from training.config import RunConfig
from training.lock import RunLock
from training.loop import train

from .runs import changed, digest, logged, newest, run_config, start

pytestmark = pytest.mark.slow


def config_of(photos: Path, out: Path, first_stage: Path, **options) -> RunConfig:
    return run_config(
        photos,
        out,
        first_stage,
        **{
            "steps": 7,
            "checkpoint.every": 2,
            "train_tower": True,
            "loss.min_snr": 5.0,
            "ema.decay": 0.9,
            "optim.decay": "cosine",
            **options,
        },
    )


@pytest.mark.parametrize("variants", [None, 1], ids=["fresh", "latent-bank"])
def test_killed_and_resumed_equals_uninterrupted(
    photos: Path, tmp_path: Path, first_stage: Path, variants: int | None
) -> None:
    """Killed between two checkpoints, resumed with other workers."""
    options = {"data.geometry_variants": variants}
    whole = config_of(photos, tmp_path / "whole", first_stage, **options)
    train(whole)
    killed = config_of(photos, tmp_path / "killed", first_stage, **options)
    assert start(killed, AT=5, SIGNAL=9).returncode == -signal.SIGKILL
    assert newest(killed.out)["step"] == 4
    assert len(logged(killed.out)) == 4  # update 5 was made, and lost
    data = killed.data.model_copy(update={"workers": 2})
    done = start(changed(killed, data=data))
    assert done.returncode == 0, done.stderr
    assert digest(killed.out) == digest(whole.out)
    assert logged(killed.out) == logged(whole.out)


def test_bf16_gives_nearly_the_same(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    plain = run_config(photos, tmp_path / "plain", first_stage, steps=3)
    train(plain)
    half = changed(plain, out=tmp_path / "half", precision="bf16")
    done = start(half)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(logged(plain.out), logged(half.out), strict=True):
        assert ours["loss"] != theirs["loss"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


def assert_equal_runs(one: Path, two: Path) -> None:
    """Up to the order of sums, which the number of ranks changes."""
    ours, theirs = logged(one), logged(two)
    first = [entry["grad_norm"] for entry in (ours[0], theirs[0])]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["lr"] == b["lr"]  # not advanced once for each rank
    weights, others = newest(one)["module"], newest(two)["module"]
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_ranks_may_change_on_the_way(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    """One process, then two, then one with accumulation; the whole batch stays the same."""
    whole = config_of(photos, tmp_path / "whole", first_stage)
    train(whole)
    parts = changed(whole, out=tmp_path / "parts")
    assert start(parts, AT=3, SIGNAL=9).returncode == -signal.SIGKILL
    assert newest(parts.out)["step"] == 2
    done = start(parts, processes=2, AT=2, SIGNAL=15)
    assert newest(parts.out)["step"] == 5, done.stderr  # asked after 4, it saved after the next
    found = re.findall(r"process \d of \d", done.stdout)
    assert sorted(found) == ["process 0 of 2", "process 1 of 2"]
    train(changed(parts, accumulate=2))
    assert_equal_runs(whole.out, parts.out)


@pytest.fixture(scope="module")
def two_processes(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, first_stage: Path
) -> Path:
    """A run of two processes that nothing happened to."""
    config = config_of(photos, tmp_path_factory.mktemp("runs") / "two", first_stage)
    done = start(config, processes=2)
    assert done.returncode == 0, done.stderr
    return config.out


@pytest.mark.long
def test_two_nodes_equal_one(
    photos: Path, tmp_path: Path, first_stage: Path, two_processes: Path
) -> None:
    """Two agents of torchrun with one process each, as on two machines."""
    config = config_of(photos, tmp_path / "nodes", first_stage)
    done = start(config, nodes=2)
    assert done.returncode == 0, done.stderr
    assert digest(config.out) == digest(two_processes)
    assert logged(config.out) == logged(two_processes)


@pytest.mark.long
def test_torchrun_starts_again_after_a_killed_rank(
    photos: Path, tmp_path: Path, first_stage: Path, two_processes: Path
) -> None:
    hit = config_of(photos, tmp_path / "hit", first_stage)
    done = start(
        hit, processes=2, restarts=1, AT=5, SIGNAL=9, WHOM=1, ONCE=tmp_path / "once"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "once").exists()
    assert digest(hit.out) == digest(two_processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_with_all_its_processes_it_saves_first(
    photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As by a scheduler or a terminal, which tell the processes that make samples as well."""
    config = run_config(photos, tmp_path / "run", steps=50, **{"data.workers": 2})
    done = start(config, AT=3, SIGNAL=int(number), TO="group")
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert "stopped at step 4, saved; the same command resumes from there" in done.stdout
    assert newest(config.out)["step"] == 4
    assert logged(config.out)[-1]["step"] == 4


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_torchrun_asked_to_stop_lets_the_run_save(
    photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """It passes the signal on to all processes that its own have started."""
    config = run_config(photos, tmp_path / "run", steps=500, **{"data.workers": 1})
    done = start(config, processes=2, AT=3, SIGNAL=int(number), TO="parent")
    assert done.returncode != 0
    (said,) = re.findall(r"stopped at step (\d+), saved", done.stdout)
    assert newest(config.out)["step"] == int(said) >= 4
    assert "DataLoader" not in done.stderr, done.stderr


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_dead_worker_ends_the_run_after_a_checkpoint(
    photos: Path, tmp_path: Path, processes: int
) -> None:
    config = run_config(photos, tmp_path / "run", steps=50, **{"data.workers": 1})
    done = start(config, processes=processes, AT=3, SIGNAL=9, TO="worker")
    if processes == 1:
        assert done.returncode == 2 and "Traceback" not in done.stderr
    step = newest(config.out)["step"]
    assert 3 <= step <= 6  # what it had made in advance
    assert re.search(
        rf"a process that makes samples has died, .*; stopped at step {step}, saved", done.stderr
    )
    assert logged(config.out)[-1]["step"] == step


def test_photos_that_vanish_are_replaced_and_counted(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "data")
    gone = tmp_path / "data/*/[0-5].png"
    config = run_config(tmp_path / "data", tmp_path / "run", steps=12, **{"data.workers": 1})
    done = start(config, AT=2, REMOVE=gone)
    assert done.returncode == 0, done.stderr
    assert logged(config.out)[-1]["skipped_photos"] > 4
    listed = (config.out / "unreadable.txt").read_text().splitlines()
    assert "train/0.png\tNo such file or directory" in listed


@pytest.mark.parametrize(
    ("variants", "workers", "processes"),
    [
        (None, 1, 1),
        (None, 0, 1),
        (2, 0, 1),
        pytest.param(None, 1, 2, marks=pytest.mark.long),
    ],
    ids=["worker", "alone", "latent-bank", "two-processes"],
)
def test_without_any_photo_left_the_run_ends_after_a_checkpoint(
    photos: Path,
    tmp_path: Path,
    first_stage: Path,
    variants: int | None,
    workers: int,
    processes: int,
) -> None:
    shutil.copytree(photos, tmp_path / "data")
    config = run_config(
        tmp_path / "data",
        tmp_path / "run",
        first_stage,
        steps=60,
        **{"data.workers": workers, "data.geometry_variants": variants, "log.sample_every": 5},
    )
    done = start(config, processes=processes, AT=2, REMOVE=tmp_path / "data/*/*.png")
    step = newest(config.out)["step"]
    assert 2 <= step < 10
    assert re.search(
        rf"10 photos in a row cannot be read, .*; stopped at step {step}, saved", done.stderr
    )
    if processes == 1:
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_one_trainer_at_a_time_in_a_folder(photos: Path, tmp_path: Path) -> None:
    config = run_config(photos, tmp_path / "run", steps=5, **{"data.workers": 2})
    held = RunLock(config.out)
    done = start(config)
    assert done.returncode == 2 and not (config.out / "checkpoints").exists()
    assert done.stderr.count("\n") == 1 and f"process {os.getpid()} on " in done.stderr
    assert f"{config.out} is in use by another training" in done.stderr
    held.release()
    assert start(config, AT=2, SIGNAL=9).returncode == -signal.SIGKILL
    done = start(config)  # at once: the dead one's workers may still be there
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be made by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint(
    photos: Path, small_disk: Path, tmp_path: Path, first_stage: Path
) -> None:
    """Log, pictures, TensorBoard and the list of unreadable photos as well; all is said once."""
    shutil.copytree(photos, tmp_path / "data")
    config = run_config(
        tmp_path / "data",
        small_disk / "run",
        first_stage,
        steps=8,
        **{"checkpoint.every": 1, "log.sample_every": 1, "log.trackers": ["tensorboard"]},
    )
    fill, gone = small_disk / "filler", tmp_path / "data/train/3.png"
    done = start(config, AT=3, FILL=fill, REMOVE=gone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "could not write the checkpoint of step 3" in done.stdout
    what = "the sample pictures"  # lines of the log may still fit into its last block
    assert done.stdout.count(f"could not write {what}: ") == 1
    assert done.stdout.count(f"{what} can be written again") == 1
    assert [entry["step"] for entry in logged(config.out)] == list(range(1, 9))
    assert newest(config.out)["step"] == 8


def test_a_bank_of_latents_that_has_no_room_is_refused(
    photos: Path, small_disk: Path, first_stage: Path
) -> None:
    many = {"data.geometry_variants": 8000, "log.trackers": []}
    config = run_config(photos, small_disk / "run", first_stage, **many)
    done = start(config)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.search(
        r"the latents of 80,000 crops take 0.0922 GB, which .* has no room", done.stderr
    )
    assert [path.name for path in (config.out / "latents").iterdir()] == []


def test_a_full_disk_leaves_the_last_good_checkpoint(photos: Path, tmp_path: Path) -> None:
    config = run_config(photos, tmp_path / "run", steps=2)
    train(config)
    (good,) = state.checkpoints(config.out / "checkpoints")
    before = good.read_bytes()
    more = run_config(photos, config.out, steps=5, **{"checkpoint.every": 1})
    done = start(more, LARGEST=len(before) // 2)
    assert done.returncode == 2
    assert "could not write the checkpoint of step 3" in done.stdout + done.stderr
    assert done.stderr.rstrip().endswith("it resumes from the newest checkpoint")
    assert "Traceback" not in done.stderr
    assert [path.name for path in (config.out / "checkpoints").iterdir()] == [good.name]
    assert good.read_bytes() == before
    assert start(more).returncode == 0
    assert newest(config.out)["step"] == 5
