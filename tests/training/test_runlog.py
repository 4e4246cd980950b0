"""What a run writes about itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.runlog import BINS, RunLog, Window, image_grid


def steps(folder: Path) -> list[int]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def write(folder: Path, start: int, end: int) -> None:
    with RunLog(folder, start=start, total=9, trackers=["tensorboard"]) as log:
        for step in range(start + 1, end + 1):
            log.advance()
            log.figures(step, {"loss": 0.5 / step, "lr": 0.1})
            log.grid(step, torch.zeros(2, 3, 4, 4), columns=2)


def test_figures_and_pictures_are_written_and_continued(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    write(tmp_path, 1, 2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "loss": 0.5 / step, "lr": 0.1} for step in (1, 2)
    ]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    with Image.open(tmp_path / "samples/step-00000001.png") as picture:
        assert picture.size == (10, 4)


def test_what_was_logged_after_the_checkpoint_is_taken_back(tmp_path: Path) -> None:
    write(tmp_path, 0, 4)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a process killed while writing
    write(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3]


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", start=0, total=2, active=False) as log:
        log.advance()
        log.say("nothing")
        log.figures(1, {"loss": 0.5})
        log.grid(1, torch.zeros(1, 3, 4, 4), columns=1)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install no_such_tracker"):
        RunLog(tmp_path, start=0, total=1, trackers=["no_such_tracker"])


def test_a_window_gives_means_and_losses_by_timestep() -> None:
    window = Window()
    sums, counts = [0.0] * BINS, [0.0] * BINS
    sums[0], counts[0], sums[9], counts[9] = 3.0, 2.0, 1.0, 4.0
    window.add({"loss": 1.0}, (sums, counts))
    window = Window(json.loads(json.dumps(window.state())))  # through a checkpoint
    window.add({"loss": 2.0}, (sums, counts))
    assert window.means() == {"loss": 1.5, "loss_t00": 1.5, "loss_t90": 0.25}


def test_grid_puts_pictures_in_rows_on_white() -> None:
    levels = torch.tensor([-1.0, 0.0, 1.0, -2.0, 2.0])
    grid = image_grid(levels[:, None, None, None].expand(-1, 3, 2, 3), columns=3, gap=1).numpy()
    assert grid.shape == (5, 11, 3)
    tops, lefts = (0, 3), (0, 4, 8)
    cells = [grid[top : top + 2, left : left + 3] for top in tops for left in lefts]
    assert [np.unique(cell).tolist() for cell in cells] == [[0], [128], [255], [0], [255], [255]]
    assert (grid[2] == 255).all() and (grid[:, 3] == 255).all()
