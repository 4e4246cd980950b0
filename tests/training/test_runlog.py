"""What a run writes about itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.runlog import RunLog, image_grid


def test_figures_and_pictures_are_written_and_continued(tmp_path: Path) -> None:
    for start in (0, 1):
        log = RunLog(tmp_path, start=start, total=2, batch_size=4)
        log.advance()
        log.figures(start + 1, {"loss": 0.5, "lr": 0.1})
        log.grid(start + 1, torch.zeros(2, 3, 4, 4), columns=2)
        log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "loss": 0.5, "lr": 0.1} for step in (1, 2)
    ]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    assert list((tmp_path / "tensorboard").iterdir())
    with Image.open(tmp_path / "samples/step-00000001.png") as picture:
        assert picture.size == (10, 4)


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", start=0, total=2, batch_size=4, active=False)
    log.advance()
    log.figures(1, {"loss": 0.5})
    log.grid(1, torch.zeros(1, 3, 4, 4), columns=1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_grid_puts_pictures_in_rows_on_white() -> None:
    levels = torch.tensor([-1.0, 0.0, 1.0, -2.0, 2.0])
    grid = image_grid(levels[:, None, None, None].expand(-1, 3, 2, 3), columns=3, gap=1).numpy()
    assert grid.shape == (5, 11, 3)
    tops, lefts = (0, 3), (0, 4, 8)
    cells = [grid[top : top + 2, left : left + 3] for top in tops for left in lefts]
    assert [np.unique(cell).tolist() for cell in cells] == [[0], [128], [255], [0], [255], [255]]
    assert (grid[2] == 255).all() and (grid[:, 3] == 255).all()
