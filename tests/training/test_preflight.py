"""A dry run refuses what a start would, in the same words, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from training.cli import main
from training.config import RunConfig, to_toml
from training.loop import Trainer, train
from training.preflight import check_start

from .runs import changed, run_config


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_what_can_start_passes_and_nothing_is_written(
    photos: Path, tmp_path: Path, first_stage: Path, small_checkpoint: Path
) -> None:
    for init in (None, first_stage, small_checkpoint):
        assert check_start(run_config(photos, tmp_path / "runs/run", init)) == []
    assert files(tmp_path) == []


def test_it_says_where_a_run_would_go_on(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    config = run_config(photos, tmp_path / "run", first_stage, steps=2)
    train(config)
    before = files(tmp_path)
    moved = shutil.copytree(photos, tmp_path / "moved")
    data = config.data.model_copy(update={"root": moved})
    more = changed(config, steps=5, data=data)
    expected = (
        f"resuming from step 2 with changed settings: data.root {str(photos)!r} -> "
        f"{str(moved)!r}, steps 2 -> 5"
    )
    assert check_start(more) == [expected]
    assert check_start(config) == ["2 steps are done already; set steps higher to go on"]
    lines = (moved / "train/boxes.jsonl").read_text().splitlines()
    (moved / "train/boxes.jsonl").write_text("\n".join(lines[1:]))
    assert check_start(more)[1] == f"the photos or boxes in {moved} are others than before"
    shutil.rmtree(moved)
    assert files(tmp_path) == before


def refusal(config: RunConfig) -> str:
    """The sentence of a dry run, which a start says too."""
    with pytest.raises(ValueError) as dry:
        check_start(config)
    with pytest.raises(ValueError) as real:
        Trainer(config)
    assert str(dry.value) == str(real.value)
    return str(dry.value)


def test_it_refuses_as_a_start_does(
    photos: Path, tmp_path: Path, first_stage: Path, small_checkpoint: Path
) -> None:
    run, gone = tmp_path / "run", tmp_path / "gone"
    assert "no checkpoint at" in refusal(run_config(photos, run, gone, train_tower=True))
    assert "no box index at" in refusal(run_config(gone, run, first_stage))
    named = {"data.val_index": "test.jsonl"}
    assert "test.jsonl" in refusal(run_config(photos, run, first_stage, **named))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(small_checkpoint.read_bytes()[:1000])
    assert "damaged.safetensors" in refusal(run_config(photos, run, damaged))
    (tmp_path / "file").write_text("")
    assert "file is no folder" in refusal(run_config(photos, tmp_path / "file/run", first_stage))
    with pytest.raises(ValueError, match="lists trackio, which is not installed"):
        check_start(run_config(photos, run, first_stage, **{"log.trackers": ["trackio"]}))
    with pytest.raises(ValueError, match=r"lists trackio, which is not installed"):
        train(run_config(photos, run, first_stage, **{"log.trackers": ["trackio"]}))


def test_it_refuses_photos_that_cannot_be_read(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    copied = shutil.copytree(photos, tmp_path / "data")
    for photo in copied.glob("train/*.png"):
        photo.unlink()
    with pytest.raises(ValueError, match="10 photos in a row cannot be read"):
        check_start(run_config(copied, tmp_path / "run", first_stage))


def test_the_command_prints_the_settings_and_ends_with_code_2(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(photos, tmp_path / "run", tmp_path / "gone.safetensors")
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "run.toml"), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "batch_size = 4" in printed.out and "Peak memory" in printed.out
    assert printed.err.count("\n") == 1 and "no checkpoint at" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
