"""What a run writes about itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.picture_grid import Pictures, picture_grid
from training.progress import duration
from training.runlog import BINS, RunLog, Window

from ..limits import largest_file

TWO = Pictures(images=torch.zeros(2, 3, 96, 96), titles=("photo", "decoded"))


def steps(folder: Path) -> list[int]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def write(folder: Path, start: int, end: int) -> None:
    with RunLog(folder, start=start, total=9, trackers=["tensorboard"]) as log:
        for step in range(start + 1, end + 1):
            log.advance()
            log.figures(step, {"loss": 0.5 / step, "lr": 0.1})
            log.grid(step, TWO)


def test_figures_and_pictures_are_written_and_continued(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    write(tmp_path, 1, 2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "loss": 0.5 / step, "lr": 0.1} for step in (1, 2)
    ]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    with Image.open(tmp_path / "samples/step-00000001.png") as picture:
        assert picture.size == (96 + 2 + 96, 16 + 96)


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
        log.grid(1, TWO)
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


def test_a_grid_has_titles_above_rows_on_white() -> None:
    levels = torch.tensor([-1.0, 0.0, 1.0, -2.0, 2.0])
    pictures = levels[:, None, None, None].expand(-1, 3, 96, 100)
    grid = picture_grid(Pictures(images=pictures, titles=("a", "", "c"))).numpy()
    assert grid.shape == (16 + 2 * 98 - 2, 3 * 102 - 2, 3)
    tops, lefts = (16, 16 + 98), (0, 102, 204)
    cells = [grid[top : top + 96, left : left + 100] for top in tops for left in lefts]
    assert [np.unique(cell).tolist() for cell in cells] == [[0], [128], [255], [0], [255], [255]]
    assert (grid[112:114] == 255).all() and (grid[:, 100:102] == 255).all()
    titled = [grid[:16, left : left + 100].min() < 128 for left in lefts]
    assert titled == [True, False, True]


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    picture = torch.rand(1, 3, 40, 40) * 2 - 1
    grid = picture_grid(Pictures(images=picture, titles=("photo", "hole"))).numpy()
    assert grid.shape == (16 + 120, 120, 3)  # one picture makes no second column
    for x, y in ((0, 0), (39, 17)):
        block = grid[16 + 3 * y : 19 + 3 * y, 3 * x : 3 * x + 3].reshape(9, 3)
        expected = ((picture[0, :, y, x] + 1) * 127.5).round()
        assert (block == expected.numpy()).all()


def test_a_full_disk_costs_lines_until_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once; what waited is written with the next line, in order and whole."""
    noise = Pictures(images=torch.rand(2, 3, 96, 96), titles=("photo", "decoded"))
    with RunLog(tmp_path, start=0, total=9, trackers=["tensorboard"]) as log:
        log.figures(1, {"loss": 0.5})
        full = (tmp_path / "log.jsonl").stat().st_size + 7  # in the middle of the next line
        with largest_file(full):
            for step in (2, 3):
                log.figures(step, {"loss": 0.5 / step})
                log.grid(step, noise)
        assert not list((tmp_path / "samples").iterdir())
        log.figures(4, {"loss": 0.1})
        log.grid(4, noise)
    assert steps(tmp_path) == [1, 2, 3, 4]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]
    said = capsys.readouterr().out
    for what in ("log.jsonl", "the sample pictures", "the figures for tensorboard"):
        assert said.count(f"could not write {what}: ") == 1
        assert said.count(f"{what} can be written again") == 1


def test_a_line_that_found_no_room_is_dropped_when_the_run_starts_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, start=0, total=9) as log:
        log.figures(1, {"loss": 0.5})
        with largest_file((tmp_path / "log.jsonl").stat().st_size + 7):
            log.figures(2, {"loss": 0.5})
            log.close()
    write(tmp_path, 1, 2)
    assert steps(tmp_path) == [1, 2]


def test_without_a_terminal_there_is_a_line_for_each_line_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, start=0, total=40) as log:
        for step in range(1, 41):
            log.advance()
            if step % 20 == 0:
                figures = {"loss": 0.25, "lr": 0.1, "images_per_second": 8.0}
                log.figures(step, figures, seconds_left=(40 - step) * 200)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "step 20 of 40: loss 0.25, 8 images/s, 1:06:40 left",
        "step 40 of 40: loss 0.25, 8 images/s",
    ]
    assert printed.err == "" and "\r" not in printed.out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "0:07"), (750, "12:30"), (18240, "5:04:00"), (3 * 86400 + 18240, "3 days 5:04:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


PRINTS = """
import sys
from pathlib import Path
from training.runlog import RunLog
with RunLog(Path(sys.argv[1]), start=0, total=2) as log:
    log.say("hello")
    for step in (1, 2):
        log.advance()
        log.figures(step, {"loss": 0.5})
"""


@pytest.mark.parametrize("output", ["/dev/full", "closed pipe", "closed"])
def test_output_that_cannot_be_printed_changes_nothing(tmp_path: Path, output: str) -> None:
    command = shlex.join([sys.executable, "-c", PRINTS, str(tmp_path)])
    if output == "closed pipe":
        command = f"({command}; echo $? > {tmp_path}/code) 2>&1 | true"
    elif output == "closed":
        command = f"{command} >&- 2>&-; echo $? > {tmp_path}/code"
    else:
        command = f"{command} > {output} 2>&1; echo $? > {tmp_path}/code"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=300)
    assert (tmp_path / "code").read_text().strip() == "0"
    assert steps(tmp_path) == [1, 2]
